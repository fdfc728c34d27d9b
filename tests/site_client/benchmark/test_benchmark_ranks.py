"""The benchmark under torchrun: one process speaks and writes, the others compute their share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_make_one_table_and_speak_once(tmp_path: Path) -> None:
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--arms", "lite-slices", "--epochs", "2", "--batch", "3", "--image-size", "48", "--slices-max", "4"]
    options += ["--phantom-studies", "8", "--validation", "0.4", "--threads", "1", "--device", "cpu"]
    command = [*starter, "-m", "site_client.cli", "benchmark", *options, "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    for start in ("phantom: 8", "preparing 8 studies", "lite-slices: epoch 1", "lite-slices: epoch 2", "# Benchmark"):
        assert sum(line.startswith(start) for line in lines) == 1, start
    report = json.loads((tmp_path / "benchmark.json").read_text())
    (run,) = report["arms"][-1]["runs"]
    assert [epoch["number"] for epoch in run["by_epoch"]] == [1, 2]
    table = (tmp_path / "benchmark.md").read_text()
    assert "2xcpu-" in table
    assert "torchrun --nproc-per-node 2 --no-python hemofed-site benchmark" in table
