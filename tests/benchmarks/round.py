"""What a masked round costs, with real processes: one aggregator, N site agents, mutual TLS over the loopback.

    tests/benchmarks/round.py --sites 4|8|16 --params 7978856 --rounds 5 [--moving 1250000] [--private] --json FILE

Training is synthetic and takes no time: this process plays every site's trainer and puts an update into its spool as
soon as a job appears. Everything else is what a hospital runs. Printed, and written to FILE as JSON: wall seconds per
round and per phase, CPU seconds of the aggregator and of a site, peak memory of each, bytes per site; and beside them
what this machine's AES-256-CTR and SHA-256 need for the same bytes.

`masking_s` runs from the frozen cohort to the published model. `wall_s` runs from one published model to the next: it
includes what the sites do in between (recompute and verify the model, take and check an update), which in real life
happens in the hours of training.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from federation.encoding import Layout

from aggregator.config import load_settings
from aggregator.context import AppContext, open_context
from aggregator.runs.plans import plan_of
from aggregator.states import RoundState, RunState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import Seat
from tests.ports import free_port
from tests.system.processes import (
    Place,
    Trainers,
    all_running,
    enrol_all,
    running,
    write_plan,
    write_settings,
)

LIMIT_S = 1800.0
PHASES = ("keys", "shares", "upload", "confirm", "reveal", "aggregating")


@dataclass
class Usage:
    """CPU seconds now, peak memory so far."""

    cpu_s: float
    peak_mb: float

    @classmethod
    def of(cls, process: subprocess.Popen[bytes]) -> "Usage":
        times = psutil.Process(process.pid).cpu_times()
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return cls(times.user + times.system, peak_kb / 1024)


def main() -> None:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="hemofed-round-", dir=options.folder))
    try:
        place = Place(folder, options.sites, (free_port(), free_port()))
        result = measure(place, options.params, options.rounds, options.moving, private=options.private)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(
    place: Place, parameters: int, training_rounds: int, moving: int | None, *, private: bool
) -> dict[str, object]:
    """Bring everything up, let it run, take it down, and read what it cost."""
    write_settings(place)
    place.begin()
    model, plan = write_plan(place, parameters, training_rounds, moving=moving, private=private)
    delta = (np.random.default_rng(1).standard_t(3, moving or parameters) * 1e-4).astype(np.float32)
    app = open_context(load_settings(place.aggregator_toml))
    with running("aggregator", place.serve_command, place.folder) as aggregator:
        enrol_all(place)
        agents = [place.site_command(name, "agent") for name in place.names]
        with all_running(place.names, agents, place.folder) as sites:
            trainers = Trainers(place, delta)
            trainers.start()
            time.sleep(2.0)  # every agent polls: the run begins with all of them there
            place.start_run(plan, model)
            watched = _watch(app, aggregator, sites, training_rounds)
            trainers.stop()
            time.sleep(6.0)  # the last byte counts are written every five seconds
            return _report(app, place, parameters, training_rounds, watched)


@dataclass(frozen=True)
class Watched:
    """Usage when each round was published, round 0 being the start of the run."""

    aggregator: list[Usage]
    sites: list[list[Usage]]


def _watch(
    app: AppContext, aggregator: subprocess.Popen[bytes], sites: list[subprocess.Popen[bytes]], training_rounds: int
) -> Watched:
    seen = Watched([Usage.of(aggregator)], [[Usage.of(site) for site in sites]])
    ends_at = time.monotonic() + LIMIT_S
    while time.monotonic() < ends_at:
        time.sleep(0.2)
        with app.store.read() as session:
            run = run_rows.all_runs(session)[-1]
            over = [row for row in round_rows.of_run(session, run.run_id) if row.state in round_rows.OVER]
        for row in over[len(seen.aggregator) - 1 :]:
            if row.state is RoundState.ABANDONED:
                raise SystemExit(f"round {row.number} was abandoned: {row.reason}")
            seen.aggregator.append(Usage.of(aggregator))
            seen.sites.append([Usage.of(site) for site in sites])
        if run.state is RunState.COMPLETED:
            return seen
        if run.state is not RunState.RUNNING:
            raise SystemExit(f"the run is {run.state}: {run.reason}")
    raise SystemExit(f"the run did not end within {LIMIT_S:.0f} s")


def _report(
    app: AppContext, place: Place, parameters: int, training_rounds: int, watched: Watched
) -> dict[str, object]:
    with app.store.read() as session:
        run = run_rows.all_runs(session)[-1]
        rows = round_rows.of_run(session, run.run_id)[:training_rounds]
        times = [{one.state.value: one.seconds for one in round_rows.phase_times(session, row.id)} for row in rows]
        seats = [session.get(Seat, (row.id, name)) for row in rows for name in place.names]
        layout = Layout.of_round(plan_of(run), 2)
    # _watch returned after the last round was over, so each has an end.
    walls = [(row.ended_at - row.began_at).total_seconds() for row in rows if row.ended_at]
    per_round: list[dict[str, Any]] = [
        {
            "round": row.number,
            "wall_s": round(wall, 3),
            "masking_s": round(sum(phases[phase] for phase in PHASES), 3),
            "phase_s": {phase: round(seconds, 3) for phase, seconds in phases.items()},
        }
        for row, wall, phases in zip(rows, walls, times, strict=True)
    ]
    # The first round has everything to fetch and to warm up; the others are the rule.
    steady = per_round[1:] or per_round
    site_cpu = [
        (last.cpu_s - first.cpu_s) / training_rounds
        for first, last in zip(watched.sites[0], watched.sites[training_rounds], strict=True)
    ]
    machine = _machine_limits(layout.bytes, place.sites)
    masking_s = round(float(np.mean([row["masking_s"] for row in steady])), 3)
    return {
        "sites": place.sites,
        "parameters": parameters,
        "processes": place.sites + 1,
        "cores": os.cpu_count(),
        "rounds": per_round,
        "masking_s": masking_s,
        "wall_s": round(float(np.mean([row["wall_s"] for row in steady])), 3),
        "aggregator_cpu_s_per_round": round(
            (watched.aggregator[training_rounds].cpu_s - watched.aggregator[0].cpu_s) / training_rounds, 3
        ),
        "aggregator_peak_mb": round(watched.aggregator[-1].peak_mb, 1),
        "site_cpu_s_per_round": round(float(np.mean(site_cpu)), 3),
        "site_peak_mb": round(max(usage.peak_mb for usage in watched.sites[-1]), 1),
        "bytes_up_per_site": max(seat.bytes_up for seat in seats if seat),
        "bytes_down_per_site": max(seat.bytes_down for seat in seats if seat),
        "largest_message_up_bytes": max(_largest_message(place.site(name)) for name in place.names),
        "machine": machine,
        "ratio_to_machine": round(masking_s / machine["masking_floor_s"], 2),
    }


def _largest_message(site: Path) -> int:
    """Of all that left the site, by its own ledger."""
    with (site / "state" / "agent" / "ledger.jsonl").open() as ledger:
        return max(int(json.loads(line)["bytes"]) for line in ledger)


def _machine_limits(upload_bytes: int, sites: int) -> dict[str, float]:
    """Seconds this machine's cores need for nothing but the keystreams and the hashing of one round."""
    data = bytes(1 << 24)
    encryptor = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
    target = bytearray(len(data))
    aes = len(data) / _seconds(lambda: encryptor.update_into(data, target))
    sha = len(data) / _seconds(lambda: hashlib.sha256(data).digest())
    # A site draws one mask a peer and its own; the aggregator takes off one a site. Both hash each upload once.
    streams, hashes = sites * sites + sites, 2 * sites
    cores = os.cpu_count() or 1
    return {
        "aes_ctr_gb_s": round(aes / 1e9, 2),
        "sha256_gb_s": round(sha / 1e9, 2),
        "masking_floor_s": round((streams * upload_bytes / aes + hashes * upload_bytes / sha) / cores, 6),
    }


def _seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure masked rounds with real processes.")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--params", type=int, default=7_978_856)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--moving", type=int, help="parameters that move; default: all")
    parser.add_argument("--private", action="store_true", help="with differential privacy: noise in the sum")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; default: the system's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
