"""A consortium of thirteen hospitals in its fourth round behind a real web server, for the browser and its pictures."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from federation.labels import LABELS
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.plan import sign_plan
from federation.vocabulary import SiteState, StateReason

from aggregator import config
from aggregator.context import AppContext, open_context
from aggregator.dashboard.app import create_app
from aggregator.migrations import upgrade
from aggregator.network import listen
from aggregator.runs import lifecycle
from aggregator.runs.metrics import LabelMetrics, Report
from aggregator.runs.plan_file import read_plan
from aggregator.sites.authority import create_authority
from aggregator.states import Role, RoundState, SeatState
from aggregator.store import Cause, Change, people, round_rows, site_rows
from aggregator.store.tables import Certificate, ModelMetrics, Round, Site, SiteReport
from aggregator.web_server import WebServer
from tests.custodian import CUSTODIAN, sign_pending

PASSWORD = "correct horse battery"
PLAN = """
name = "pilot-2026"
architecture = "lite"
rounds = 20
purpose = "Does a network that all twelve hospitals train read better than that of each alone?"
cohort = { minimum = 3, target = 8, maximum = 12 }
"""
R, S = StateReason, SiteState
# Name, seat in the round, state, reason, progress, minutes since the last report, days of the certificate.
HOSPITALS = (
    ("aachen", SeatState.READY, S.READY, "", 100, 0, 71),
    ("basel", SeatState.READY, S.READY, "", 100, 1, 64),
    ("chemnitz", SeatState.OFFERED, S.PAUSED, R.USER_ACTIVE, 62, 0, 58),
    ("dresden", SeatState.OFFERED, S.TRAINING, "", 87, 0, 2),
    ("erlangen", SeatState.DECLINED, S.IDLE, "", 0, 2, 80),
    ("freiburg", SeatState.OFFERED, S.PREPARING, "", 5, 1, 44),
    ("graz", SeatState.OFFERED, S.TRAINING, "", 34, 1560, 39),
    ("hannover", SeatState.READY, S.READY, "", 100, 0, 77),
    ("innsbruck", SeatState.OFFERED, S.PAUSED, R.WINDOW, 12, 3, -1),
    ("jena", SeatState.READY, S.READY, "", 100, 0, 61),
    ("kiel", SeatState.OFFERED, S.IDLE, "", 0, 0, 70),
    ("linz", SeatState.OFFERED, S.IDLE, "", 0, 9000, 0),
)


@contextmanager
def scene(folder: Path) -> Iterator[tuple[AppContext, str]]:
    """Serve the scene; yields the aggregator and the address of its dashboard."""
    settings = config.AggregatorSettings(state=config.StateSettings(folder=folder))
    app = open_context(settings)
    upgrade(app.store.engine)
    _play(app, folder)
    listener = listen("dashboard", "127.0.0.1:0")
    server = WebServer("dashboard", create_app(app), listener, settings.limits)
    server.start()
    try:
        yield app, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        server.join()
        app.store.close()


def _play(app: AppContext, folder: Path) -> None:
    now = datetime.now(UTC)
    authority = create_authority(folder / "ca", app.clock, CUSTODIAN.public_key())
    with app.store.write() as session:
        for name, role in (("ada", Role.OPERATOR), ("vera", Role.VIEWER)):
            change = Change(now, "unix:root", f"administrator:{name}", "on the command line")
            people.add_administrator(session, name, PASSWORD, os.urandom(16), change, role)
        for name, *_ in HOSPITALS:
            session.add(_site(name, now - timedelta(days=20), now - timedelta(days=20)))
        session.flush()
        for name, _seat, state, reason, progress, minutes, days in HOSPITALS:
            session.add(_report(name, now - timedelta(minutes=minutes), state, reason, progress))
            expires_at = now + timedelta(days=days, hours=1)
            session.add(Certificate(fingerprint=os.urandom(32), site=name, issued_at=now, expires_at=expires_at))
    sign_pending(app.store, authority, now)
    with app.store.write() as session:
        site_rows.suspend(session, "kiel", Change(now, "person:ada", "site:kiel", "its scanner is being replaced"))
        site_rows.leave(session, "linz", site_rows.APPROVED, Change(now, "site:linz", "site:linz", "left for good"))
        session.add(_site("muenster", None, now))
    model_path, plan_path = folder / "model.safetensors", folder / "plan.toml"
    save_model(model_path, Model(Manifest((TensorSpec("weight", (4,)),)), np.zeros(4, np.float32)))
    plan_path.write_text(PLAN)
    signed = sign_plan(read_plan(plan_path, model_path, os.urandom), CUSTODIAN)
    began = replace(app, clock=lambda: now - timedelta(days=9))
    run = lifecycle.start_run(began, signed, model_path, CUSTODIAN.public_key(), "person:ada")
    members = [name for name, *_ in HOSPITALS[:8]]
    for number in range(1, 4):
        ended = now - timedelta(days=9 - 2 * number)
        with app.store.write() as session:
            row = round_rows.get(session, run.run_id, number)
            row.state, row.members, row.ended_at, row.sum_blob = RoundState.PUBLISHED, 8, ended, os.urandom(32)
            row.next_model = os.urandom(32)
            for seat in round_rows.seats(session, row.id):
                seat.state = SeatState.REVEALED if seat.site in members else SeatState.DECLINED
                seat.decline_reason = None if seat.site in members else R.TOO_FEW_STUDIES
                seat.bytes_up, seat.bytes_down = 13_400_000, 13_900_000
            round_rows.add_metrics(session, _metrics(row, number))
            lifecycle.continue_run(session, run, Cause(ended, "driver:here", "next round"))
    with app.store.write() as session:
        row = round_rows.get(session, run.run_id, 4)
        row.began_at = row.phase_since = now - timedelta(hours=30)
        row.deadline = now + timedelta(hours=29)
        for name, standing, *_ in HOSPITALS:
            taken = round_rows.seat(session, row.id, name)
            if taken is not None:
                taken.state = standing
                taken.decline_reason = R.TOO_FEW_STUDIES if standing is SeatState.DECLINED else None


def _site(name: str, approved_at: datetime | None, joined_at: datetime) -> Site:
    return Site(
        name=name,
        csr_der=b"",
        signing_key=os.urandom(32),
        sealing_key=os.urandom(1216),
        fingerprint="acid banner cobalt dune ember fjord",
        joined_at=joined_at,
        approved_at=approved_at,
        revoked_at=None,
        left_at=None,
        recoveries_left=5,
    )


def _report(site: str, seen_at: datetime, state: SiteState, reason: str, progress: int) -> SiteReport:
    return SiteReport(
        site=site,
        seen_at=seen_at,
        state=state,
        reasons=reason,
        progress_percent=progress,
        model_digest=b"",
        roster_epoch=1,
        version="0.2.0",
        ledger_entries=412,
        ledger_head=bytes(32),
    )


def _metrics(row: Round, number: int) -> ModelMetrics:
    labels = {
        label: LabelMetrics(40 + 9 * index, 900, 0.62 + 0.07 * number - 0.015 * index, 0.4 - 0.05 * number, 0.06)
        for index, label in enumerate(LABELS)
    }
    report = Report(labels, 0.42 - 0.06 * number)
    return ModelMetrics(
        round_id=row.id,
        model_digest=row.base_model,
        cohort_size=8,
        train_loss=0.5 - 0.08 * number,
        studies=2100,
        report=report.to_json(),
    )
