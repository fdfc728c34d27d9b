"""A consortium of as many sites and rounds as wanted, as rows, for tests and benchmarks of large pages."""

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from federation.labels import LABELS
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.plan import sign_plan
from federation.vocabulary import SiteState, StateReason
from sqlalchemy import insert

from aggregator.context import AppContext
from aggregator.runs import lifecycle
from aggregator.runs.metrics import LabelMetrics, Report
from aggregator.runs.plan_file import read_plan
from aggregator.sites.authority import create_authority
from aggregator.states import RoundState, SeatState
from aggregator.store.tables import (
    Certificate,
    ModelMetrics,
    ModelVersion,
    PhaseTime,
    Round,
    Seat,
    Site,
    SiteReport,
)
from tests.custodian import CUSTODIAN, sign_pending

PHASES = (RoundState.TRAINING, RoundState.KEYS, RoundState.SHARES, RoundState.UPLOAD, RoundState.REVEAL)


def fill(app: AppContext, folder: Path, *, sites: int, rounds: int, cohort: int, seated_rounds: int = 30) -> None:
    """Fill an empty store: `rounds` - 1 published rounds and one in training, in which half of the sites are ready.

    Args:
        app: The aggregator.
        folder: For the plan and the model.
        sites: Approved sites, all of which report.
        rounds: Rounds of the run.
        cohort: Members of each published round.
        seated_rounds: The newest rounds that have seats of every site; older ones have none.
    """
    now = app.clock()
    names = [f"hospital-{number:04}" for number in range(sites)]
    with app.store.write() as session:
        session.execute(insert(Site), [_site(name, now) for name in names])
        reported = [_report(name, index, now) for index, name in enumerate(names)]
        session.execute(insert(SiteReport), reported)
        certificates = [
            {"fingerprint": os.urandom(32), "site": name, "issued_at": now, "expires_at": now + timedelta(days=20)}
            for name in names
        ]
        session.execute(insert(Certificate), certificates)
    authority = create_authority(folder / "crowd-ca", app.clock, CUSTODIAN.public_key())
    sign_pending(app.store, authority, now)
    model, plan = folder / "model.safetensors", folder / "plan.toml"
    save_model(model, Model(Manifest((TensorSpec("weight", (4,)),)), np.zeros(4, np.float32)))
    bounds = f"minimum = {min(20, cohort)}, target = {cohort}, maximum = {max(cohort, 20)}"
    plan.write_text(f'name = "crowd"\narchitecture = "lite"\nrounds = {rounds + 5}\ncohort = {{ {bounds} }}\n')
    signed = sign_plan(read_plan(plan, model, os.urandom), CUSTODIAN)
    run = lifecycle.start_run(app, signed, model, CUSTODIAN.public_key())
    with app.store.write() as session:
        first = session.query(Round).one()
        base, first_id = first.base_model, first.id
        first.number, first.state = rounds, RoundState.TRAINING
        session.flush()
        rows = []
        for number in range(1, rounds):
            rows.append(_round(first_id + number, run.run_id, number, base, cohort, now))
            base = rows[-1]["next_model"]
        first.base_model = base
        if rows:
            session.execute(insert(Round), rows)
            session.execute(insert(ModelMetrics), [_metrics(row, index) for index, row in enumerate(rows)])
            session.execute(insert(PhaseTime), [_phase(row, phase) for row in rows for phase in PHASES])
            session.execute(insert(ModelVersion), [_model(row, now) for row in rows])
        seats = []
        for row in rows[-seated_rounds:]:
            for index, name in enumerate(names):
                state = SeatState.REVEALED if index < cohort else SeatState.DECLINED
                seats.append(_seat(row["id"], name, state))
        if seats:
            session.execute(insert(Seat), seats)
        for index, name in enumerate(names):
            if index % 2:
                session.get_one(Seat, (first_id, name)).state = SeatState.READY


def _site(name: str, now: datetime) -> dict[str, Any]:
    none = {"revoked_at": None, "left_at": None, "suspended_at": None}
    keys = {"csr_der": bytes(300), "signing_key": os.urandom(32), "sealing_key": os.urandom(1216)}
    times = {"joined_at": now - timedelta(days=9), "approved_at": now - timedelta(days=9)}
    return {"name": name, "fingerprint": "six words", "recoveries_left": 5, **none, **keys, **times}


def _report(name: str, index: int, now: datetime) -> dict[str, Any]:
    state = (SiteState.TRAINING, SiteState.PAUSED, SiteState.READY, SiteState.PREPARING)[index % 4]
    return {
        "site": name,
        "seen_at": now - timedelta(seconds=index % 200),
        "state": state.value,
        "reasons": StateReason.USER_ACTIVE.value if state is SiteState.PAUSED else "",
        "progress_percent": index % 100,
        "model_digest": b"",
        "roster_epoch": 1,
        "version": "0.2.0",
        "ledger_entries": 400 + index,
        "ledger_head": bytes(32),
    }


def _round(key: int, run_id: bytes, number: int, base: bytes, cohort: int, now: datetime) -> dict[str, Any]:
    began = now - timedelta(hours=1000) + timedelta(hours=number)
    return {
        "id": key,
        "run_id": run_id,
        "number": number,
        "attempt": 1,
        "state": RoundState.PUBLISHED,
        "reason": None,
        "base_model": base,
        "roster_epoch": 1,
        "began_at": began,
        "phase_since": began,
        "deadline": began,
        "ended_at": began + timedelta(minutes=50),
        "sum_blob": os.urandom(32),
        "sum_size_bytes": 1000,
        "members": cohort,
        "next_model": os.urandom(32),
    }


def _metrics(row: dict[str, Any], index: int) -> dict[str, Any]:
    level = 0.5 + 0.4 * (1 - 1 / (1 + index / 50))
    labels = {label: LabelMetrics(400, 9000, level - 0.01 * place, 0.3, 0.05) for place, label in enumerate(LABELS)}
    return {
        "round_id": row["id"],
        "model_digest": row["base_model"],
        "cohort_size": row["members"],
        "train_loss": 0.6 / (1 + index / 100),
        "studies": 9000,
        "report": Report(labels, 0.5 / (1 + index / 100)).to_json(),
    }


def _phase(row: dict[str, Any], phase: RoundState) -> dict[str, Any]:
    return {"round_id": row["id"], "attempt": 1, "state": phase, "seconds": 30.0}


def _model(row: dict[str, Any], now: datetime) -> dict[str, Any]:
    return {
        "run_id": row["run_id"],
        "round_number": row["number"],
        "digest": row["next_model"],
        "blob": os.urandom(32),
        "size_bytes": 1000,
        "created_at": row["ended_at"],
        "standing": None,
    }


def _seat(round_id: int, site: str, state: SeatState) -> dict[str, Any]:
    taken = state is SeatState.REVEALED
    return {
        "round_id": round_id,
        "site": site,
        "state": state,
        "decline_reason": None if taken else StateReason.TOO_FEW_STUDIES.value,
        "bytes_up": 13_400_000 if taken else 0,
        "bytes_down": 13_900_000 if taken else 0,
    }
