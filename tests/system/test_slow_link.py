"""A whole run with one hospital behind 1 Mbit/s, 5 % loss and a cut every 20 s: nothing is begun from the start.

The aggregator, three agents, TCP, TLS and gRPC are the real ones, in network namespaces; the line between them is
tests/system/slow_link.py. Training takes no time here.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from federation.encoding import Layout
from federation.limits import SLOW_CHUNK_BYTES
from federation.v1 import blobs_pb2

from aggregator.config import load_settings
from aggregator.context import AppContext, open_context
from aggregator.rpc.listeners import WINDOW_BYTES
from aggregator.runs.plans import plan_of
from aggregator.states import RunState
from aggregator.store import round_rows, run_rows
from site_client.agent.egress.payloads import kept
from tests.system import slow_link
from tests.system.processes import Place, Trainers, all_running, enrol_all, running, write_plan, write_settings

MISSING = slow_link.missing()
PARAMETERS = 1_000_000
FAR = "site-00"
LIMIT_S = 900.0
WIRE_MAX = 1.6  # bytes on the wire for one that has to be moved; and a chunk for each time an upload broke off
UNDER_WAY_BYTES = WINDOW_BYTES + 2 * SLOW_CHUNK_BYTES  # what a cut may take: gRPC's window, a chunk each side


@dataclass(frozen=True)
class Moved:
    """What the hospital behind the line had to move, and what it cost."""

    uploads: dict[bytes, list[tuple[int, int]]]  # by digest: offset and length of every chunk, in the order it left
    upload_bytes: int
    ledger_bytes: int
    received_bytes: int  # of them, by the aggregator's own count
    download_bytes: int
    wire_up_bytes: int
    wire_down_bytes: int
    cuts: int


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(bool(MISSING), reason=MISSING or "a line can be laid")
def test_a_run_over_a_slow_and_breaking_line_moves_little_more_than_it_has_to(tmp_path: Path) -> None:
    moved = run_over(slow_link.Quality(), tmp_path)
    print(moved)
    assert moved.cuts >= 3
    training = max(moved.uploads.values(), key=len)
    assert sum(dict(training).values()) == moved.upload_bytes
    broken_off = list(fallbacks(training))
    assert max(broken_off, default=0) <= UNDER_WAY_BYTES < moved.upload_bytes
    assert moved.received_bytes <= moved.ledger_bytes <= moved.received_bytes + (moved.cuts + 1) * UNDER_WAY_BYTES
    wire_up_max = WIRE_MAX * moved.upload_bytes + len(broken_off) * SLOW_CHUNK_BYTES
    assert moved.received_bytes <= moved.wire_up_bytes <= wire_up_max
    assert moved.download_bytes <= moved.wire_down_bytes <= WIRE_MAX * moved.download_bytes


def run_over(quality: slow_link.Quality, folder: Path) -> Moved:
    """One round of training and the one that judges, until every site has verified the model."""
    with slow_link.line(quality) as (line, near, far):
        spaces = {"aggregator": near, FAR: far, "site-01": near, "site-02": near}
        place = Place(folder, 3, (8443, 8444), slow_link.NEAR, spaces)
        write_settings(place)
        place.begin()
        model, plan = write_plan(place, PARAMETERS, 1)
        app = open_context(load_settings(place.aggregator_toml))
        with running("aggregator", place.serve_command, place.folder):
            enrol_all(place)
            with all_running(place.names, [place.site_command(name, "agent") for name in place.names], place.folder):
                trainers = Trainers(place, np.full(PARAMETERS, 1e-4, np.float32))
                trainers.start()
                place.start_run(plan, model)
                line.breaking = True
                try:
                    await_end(app)
                finally:
                    trainers.stop()
        return count(place, app, line, model)


def await_end(app: AppContext) -> None:
    ends_at = time.monotonic() + LIMIT_S
    while time.monotonic() < ends_at:
        with app.store.read() as session:
            run = run_rows.all_runs(session)[-1]
        if run.state is RunState.COMPLETED:
            return
        assert run.state is RunState.RUNNING, run.reason
        time.sleep(0.5)
    raise AssertionError(f"the run did not end within {LIMIT_S:.0f} s")


def count(place: Place, app: AppContext, line: slow_link.Line, model: Path) -> Moved:
    """After everything has stopped, so that the aggregator's last counts are written."""
    with app.store.read() as session:
        run = run_rows.all_runs(session)[-1]
        for row in round_rows.of_run(session, run.run_id):
            print({one.state.value: round(one.seconds, 1) for one in round_rows.phase_times(session, row.id)})
        seats = [seat for row in round_rows.of_run(session, run.run_id) for seat in round_rows.seats(session, row.id)]
        layout = Layout.of(plan_of(run), PARAMETERS)
    far = place.site(FAR)
    return Moved(
        uploads=uploads(far),
        upload_bytes=layout.bytes,
        ledger_bytes=ledger_bytes(far),
        received_bytes=sum(seat.bytes_up for seat in seats if seat.site == FAR),
        download_bytes=model.stat().st_size + layout.sum_bytes_for(place.sites),
        wire_up_bytes=line.up.bytes,
        wire_down_bytes=line.down.bytes,
        cuts=line.cuts,
    )


def uploads(site: Path) -> dict[bytes, list[tuple[int, int]]]:
    """From what the site keeps of what left it."""
    payloads = dict(kept(site / "state" / "agent" / "payloads"))
    found: dict[bytes, list[tuple[int, int]]] = {}
    for line in (site / "state" / "agent" / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["rpc"] == "Blobs/Put":
            chunk = blobs_pb2.BlobChunk.FromString(payloads[entry["seq"]])
            found.setdefault(chunk.digest, []).append((chunk.offset, len(chunk.data)))
    return found


def fallbacks(chunks: list[tuple[int, int]]) -> Iterator[int]:
    """By how much each new try began before the end of what had been handed to the line."""
    handed_over = 0
    for offset, size in chunks:
        if offset < handed_over:
            yield handed_over - offset
        handed_over = offset + size


def ledger_bytes(site: Path) -> int:
    """As the hospital is shown them, after the chain was checked."""
    command: list[str | Path] = [Path(sys.executable).parent / "hemofed-site", "ledger"]
    config: list[str | Path] = ["--config", site / "site.toml"]
    subprocess.run([*command, "verify", *config], check=True, capture_output=True)
    totals = subprocess.run([*command, "totals", "--json", *config], check=True, capture_output=True, text=True).stdout
    return sum(day["bytes_out"] for day in json.loads(totals))
