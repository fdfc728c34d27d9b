"""A model of nine million parameters between real processes: in messages of a chunk and their framing, and with no
more of the aggregator's memory for more sites."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from federation.chunk_sizes import FAST_CHUNK_BYTES

from aggregator.rpc.listeners import FRAMING_BYTES

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_nine_million_parameters_and_three_sites_need_no_message_over_a_chunk_and_framing(tmp_path: Path) -> None:
    """Upwards the sites' ledgers say so. Downwards the aggregator's limit does: gRPC refuses to send what is larger,
    and the round would not end.
    """
    measured = _measured(3, tmp_path)
    assert measured["bytes_up_per_site"] > 9 * MIB
    assert measured["bytes_down_per_site"] > 34 * MIB  # the model, four bytes a parameter
    assert FAST_CHUNK_BYTES <= measured["largest_message_up_bytes"] <= FAST_CHUNK_BYTES + FRAMING_BYTES


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_three_times_the_sites_take_no_more_of_the_aggregators_memory(tmp_path: Path) -> None:
    """Six more uploads are 90 MB; what is left of them is what gRPC holds for a connection."""
    few, many = _measured(3, tmp_path), _measured(9, tmp_path)
    assert many["aggregator_peak_mb"] / few["aggregator_peak_mb"] < 1.15


def _measured(sites: int, folder: Path) -> dict[str, Any]:
    figures = folder / f"{sites}.json"
    command: list[str | Path] = [sys.executable, ROOT / "tests" / "benchmarks" / "round.py", "--sites", str(sites)]
    command += ["--params", "9000000", "--rounds", "1", "--folder", folder, "--json", figures]
    subprocess.run(command, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(figures.read_text())
    return found
