"""A model of nine million parameters between real processes: in messages of a chunk and their framing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator.serve import FRAMING_BYTES
from site_client.agent.transfer import CHUNK_BYTES

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_nine_million_parameters_and_three_sites_need_no_message_over_a_chunk_and_framing(tmp_path: Path) -> None:
    """Upwards the sites' ledgers say so. Downwards the aggregator's limit does: gRPC refuses to send what is larger,
    and the round would not end.
    """
    figures = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "tests" / "benchmarks" / "round.py", "--sites", "3", "--params", "9000000"]
    subprocess.run([*command, "--rounds", "1", "--folder", tmp_path, "--json", figures], check=True, cwd=ROOT)
    measured = json.loads(figures.read_text())
    assert measured["bytes_up_per_site"] > 9 * MIB
    assert measured["bytes_down_per_site"] > 34 * MIB  # the model, four bytes a parameter
    assert CHUNK_BYTES <= measured["largest_message_up_bytes"] <= CHUNK_BYTES + FRAMING_BYTES
