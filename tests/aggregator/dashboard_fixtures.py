"""A dashboard with one administrator, and a run with three sites: what its tests start from."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.plan import sign_plan
from federation.vocabulary import SiteState, StateReason

from aggregator import config
from aggregator.context import AppContext, Clock, open_context
from aggregator.dashboard.app import create_app
from aggregator.runs import lifecycle
from aggregator.runs.metrics import LabelMetrics, Report
from aggregator.runs.plan_file import read_plan
from aggregator.sites.authority import Authority
from aggregator.store import Change, people, round_rows
from aggregator.store.tables import ModelMetrics, Round, Site, SiteReport
from tests.custodian import CUSTODIAN, sign_pending

PASSWORD = "correct horse battery"
SITES = ("north", "south", "east")
PLAN = 'name = "pilot"\narchitecture = "lite"\nrounds = 2\npurpose = "To see whether pages say what rows hold."\n'


@pytest.fixture
def app(tmp_path: Path, clock: Clock, migrated: Path, cheap_scrypt: None) -> Iterator[AppContext]:
    folder = tmp_path / "state"
    folder.mkdir()
    shutil.copy(migrated, folder / "hub.sqlite")
    opened = replace(open_context(config.AggregatorSettings(state=config.StateSettings(folder=folder))), clock=clock)
    with opened.store.write() as session:
        change = Change(clock(), "operator", "administrator:ada", "for the test")
        people.add_administrator(session, "ada", PASSWORD, os.urandom(16), change)
    yield opened
    opened.store.close()


@pytest.fixture
def client(app: AppContext) -> TestClient:
    return TestClient(create_app(app), follow_redirects=False)


@pytest.fixture
def ada(client: TestClient) -> TestClient:
    reply = client.post("/login", data={"name": "ada", "password": PASSWORD})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    return client


@pytest.fixture
def running(app: AppContext, tmp_path: Path, authority: Authority, clock: Clock) -> AppContext:
    """Three approved sites, two of which reported; a run in round 1; metrics of its base model."""
    with app.store.write() as session:
        for name in SITES:
            session.add(
                Site(
                    name=name,
                    csr_der=b"",
                    signing_key=os.urandom(32),
                    sealing_key=os.urandom(1216),
                    fingerprint="six words",
                    joined_at=clock(),
                    approved_at=clock(),
                    revoked_at=None,
                    left_at=None,
                    recoveries_left=5,
                )
            )
        session.flush()
        session.add(report_of("north", clock(), SiteState.TRAINING, "", 40))
        session.add(report_of("south", clock() - timedelta(hours=2), SiteState.PAUSED, StateReason.USER_ACTIVE, 10))
    model_path, plan_path = tmp_path / "model.safetensors", tmp_path / "plan.toml"
    save_model(model_path, Model(Manifest((TensorSpec("weight", (4,)),)), np.zeros(4, np.float32)))
    plan_path.write_text(PLAN)
    signed = sign_plan(read_plan(plan_path, model_path, os.urandom), CUSTODIAN)
    lifecycle.start_run(app, signed, model_path, CUSTODIAN.public_key())
    with app.store.write() as session:
        row = session.query(Round).one()
        for name in SITES:
            round_rows.add_seat(session, row, name)
        round_rows.add_metrics(session, metrics_of(row))
    return app


@pytest.fixture
def enrolled(running: AppContext, authority: Authority, clock: Clock) -> AppContext:
    """The run with its three sites in the roster."""
    sign_pending(running.store, authority, clock())
    return running


def form_of(browser: TestClient, path: str) -> dict[str, str]:
    """The hidden fields of the form that acts at `path`; none where the page holds no form."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', browser.get(path).text))


def act(browser: TestClient, path: str, **fields: str) -> tuple[int, str]:
    """Confirm an act as a person does; the code and the text of the page that follows."""
    form = browser.get(path)
    hidden = form_of(browser, path)
    if not hidden:
        return form.status_code, words_of(form.text)
    reply = browser.post(path, data={**hidden, "password": PASSWORD, **fields})
    if reply.status_code == 303:
        return 303, words_of(browser.get(reply.headers["location"]).text)
    return reply.status_code, words_of(reply.text)


def words_of(html: str) -> str:
    """The text a reader sees, in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).replace(" ;", ";").replace("&#39;", "'")


def report_of(site: str, seen_at: datetime, state: str, reasons: str, progress: int) -> SiteReport:
    return SiteReport(
        site=site,
        seen_at=seen_at,
        state=state,
        reasons=reasons,
        progress_percent=progress,
        model_digest=b"",
        roster_epoch=0,
        version="0.1.0",
        ledger_entries=3,
        ledger_head=bytes(32),
    )


def metrics_of(row: Round) -> ModelMetrics:
    any_label = LabelMetrics(20, 80, 0.8125, 0.4, 0.1)
    few = LabelMetrics(3, 97, None, None, None)
    report = Report({"any": any_label, "epidural": few}, 0.3456)
    return ModelMetrics(
        round_id=row.id,
        model_digest=row.base_model,
        cohort_size=3,
        train_loss=0.777,
        studies=90,
        report=report.to_json(),
    )
