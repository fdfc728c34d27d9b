"""What the hot reads and writes of the aggregator's database cost beside SQLite itself, as JSON.

    python tests/benchmarks/store.py [--sites 16] [--repeat 300]

Processor microseconds of one thread, the best of five series, and their ratio to one bare SELECT of the same driver.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from aggregator.states import RoundState, RunState, SeatState
from aggregator.store import Change, Store, round_rows, site_rows
from aggregator.store.engine import open_store
from aggregator.store.tables import Base, Round, Run, Seat, Site

RUN, NOW = b"r" * 16, datetime(2026, 1, 1, tzinfo=UTC)


class _Undone(Exception):
    """Rolls a write back, so that it can be repeated."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=300)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'hub.sqlite'}")
        _fill(store, options.sites)
        print(json.dumps(measure(store, options.repeat), indent=1))
        store.close()


def measure(store: Store, repeat: int) -> dict[str, object]:
    """Microseconds of each kind of access, by its name."""
    connection = store.engine.raw_connection()

    def bare() -> None:
        connection.cursor().execute("SELECT state FROM seats WHERE round_id = 1 AND site = 'site-00'").fetchone()

    def read(act: Callable[..., object], *arguments: object) -> Callable[[], None]:
        def work() -> None:
            with store.read() as session:
                act(session, *arguments)

        return work

    def move() -> None:
        change = Change(NOW, "site:site-00", "seat", "upload")
        try:
            with store.write() as session:
                _run, row, seat = round_rows.lock(session, RUN, 1, "site-00")
                values = {"upload_claim": b"c" * 100}
                round_rows.move_seat(session, row, seat.site, seat.state, SeatState.UPLOADED, change, values)
                raise _Undone
        except _Undone:
            pass

    works = {
        "bare SELECT": bare,
        "authenticate": read(site_rows.holder, b"f" * 32),
        "position of a Poll": read(round_rows.position, "site-00"),
        "states of all seats": read(round_rows.seat_states, 1),
        "messages of all seats": read(round_rows.payloads, 1, Seat.advertisement),
        "lock a seat and move it": move,
    }
    taken = {name: _microseconds(work, repeat) for name, work in works.items()}
    connection.close()
    ratios = {name: round(us / taken["bare SELECT"], 1) for name, us in taken.items()}
    return {"us": {name: round(us, 1) for name, us in taken.items()}, "times_a_bare_select": ratios}


def _microseconds(work: Callable[[], None], repeat: int) -> float:
    series = []
    for _ in range(5):
        started = time.thread_time()
        for _ in range(repeat):
            work()
        series.append(1e6 * (time.thread_time() - started) / repeat)
    return min(series)


def _fill(store: Store, sites: int) -> None:
    Base.metadata.create_all(store.engine)
    names = [f"site-{number:02}" for number in range(sites)]
    with store.write() as session:
        for name in names:
            keys = {"csr_der": b"c", "signing_key": b"s" * 32, "sealing_key": b"x" * 1216, "fingerprint": name}
            session.add(Site(name=name, joined_at=NOW, approved_at=NOW, recoveries_left=3, **keys))
        plan = {"signed_plan": b"p" * 4000, "plan_digest": b"d" * 32}
        session.add(Run(run_id=RUN, name="benchmark", state=RunState.RUNNING, created_at=NOW, **plan))
        session.flush()
        times = {"began_at": NOW, "phase_since": NOW, "deadline": NOW}
        phase = {"state": RoundState.UPLOAD, "attempt": 1, "roster_epoch": 1, "base_model": b"m" * 32}
        session.add(Round(id=1, run_id=RUN, number=1, **times, **phase))
        session.flush()
        for name in names:
            seat = Seat(round_id=1, site=name, state=SeatState.SHARED, bytes_up=0, bytes_down=0)
            seat.advertisement = b"a" * 1400
            session.add(seat)


if __name__ == "__main__":
    main()
