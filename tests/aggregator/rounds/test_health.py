"""Monitoring's pages: alive, ready, figures; each check fails where it should, and nothing names a hospital."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec
import pytest

from aggregator.config import HealthSettings
from aggregator.context import AppContext
from aggregator.health.checks import HealthChecks
from aggregator.health.metrics import AggregatorMetrics
from aggregator.health.pages import create_health_app
from aggregator.health.status_line import status_line
from aggregator.network import listen
from aggregator.web_server import WebServer
from tests.federation.world import World

MakeWorld = Callable[..., World]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(sites=3, phase="keys")


class Pages:
    """The pages as monitoring gets them, of a service whose parts and driver are as the test says."""

    def __init__(self, app: AppContext) -> None:
        self.ended: str | None = None
        self.silent_s = 0.5
        checks = HealthChecks(app, lambda: self.ended, lambda: self.silent_s)
        listener = listen("health", "127.0.0.1:0")
        self._port = listener.getsockname()[1]
        web = create_health_app(checks, AggregatorMetrics(app, lambda: self.silent_s))
        self.server = WebServer("health", web, listener, app.settings.limits)
        self.server.start()

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=30) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def pages(world: World) -> Iterator[Pages]:
    made = Pages(world.aggregator.app)
    yield made
    made.server.stop()
    made.server.join()


def test_a_service_in_order_is_alive_and_ready_without_a_log_in(pages: Pages) -> None:
    assert pages.get("/healthz") == (200, "parts: ok\ndriver: ok\n")
    assert pages.get("/readyz") == (200, "parts: ok\ndriver: ok\ndatabase: ok\ndisk: ok\n")
    assert pages.get("/login")[0] == 404


def test_a_part_that_has_ended_or_a_driver_that_hangs_is_a_dead_service(pages: Pages) -> None:
    pages.ended = "housekeeping"
    assert pages.get("/healthz") == (
        503,
        "parts: expected every part to run, housekeeping has ended; start again\ndriver: ok\n",
    )
    pages.ended, pages.silent_s = None, 121.0
    status, text = pages.get("/healthz")
    assert status == 503
    assert "driver: expected a look at the rounds within 120 s, the last was 121 s ago" in text


def test_a_database_that_cannot_be_read_is_a_service_that_lives_and_is_not_ready(world: World, pages: Pages) -> None:
    with world.aggregator.app.store.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE runs RENAME TO away")
    status, text = pages.get("/readyz")
    assert (status, pages.get("/healthz")[0]) == (503, 200)
    assert "database: expected the database to answer, got OperationalError; see the log" in text
    with world.aggregator.app.store.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE away RENAME TO runs")
    assert pages.get("/readyz")[0] == 200


def test_a_disk_that_fills_is_a_service_that_is_not_ready(world: World) -> None:
    app = world.aggregator.app
    settings = replace_health(app, HealthSettings(disk_free_min_mib=1 << 30))
    checks = HealthChecks(settings, lambda: None, lambda: 0.0)
    [disk] = [check for check in checks.ready() if check.fault]
    assert disk.name == "disk"
    assert disk.fault.startswith("expected 1073741824 MiB free for the state folder, got ")


def replace_health(app: AppContext, health: HealthSettings) -> AppContext:
    return replace(app, settings=msgspec.structs.replace(app.settings, health=health))


def test_the_figures_follow_the_rows_and_name_no_hospital(world: World, pages: Pages) -> None:
    status, text = pages.get("/metrics")
    assert status == 200
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures['hemofed_sites{standing="approved"}']) == 3
    assert float(figures['hemofed_sites{standing="revoked"}']) == 0
    assert float(figures['hemofed_runs{state="running"}']) == 1
    assert float(figures['hemofed_round{state="keys"}']) == 1
    assert float(figures['hemofed_round{state="upload"}']) == 0
    assert float(figures["hemofed_round_number"]) == 1
    assert float(figures["hemofed_driver_silent_seconds"]) == 0.5
    assert float(figures["hemofed_site_certificate_seconds_min"]) > 0
    assert float(figures["hemofed_disk_free_bytes"]) > 0
    assert float(figures["process_resident_memory_bytes"]) > 0
    assert not [name for name in world.sites if name in text]
    assert world.run.run_id.hex() not in text
    before = float(figures["hemofed_audit_entries"])
    world.everybody()
    text = pages.get("/metrics")[1]
    assert 'hemofed_round{state="keys"} 0.0' in text
    assert float(text.split("hemofed_audit_entries ")[-1].split()[0]) > before


def test_the_line_for_systemctl_counts_hospitals_and_names_run_and_phase(world: World) -> None:
    app = world.aggregator.app
    assert status_line(app) == f"3 hospitals, run {world.run.name} running, round 1 keys"
    with app.store.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE runs RENAME TO away")
    assert status_line(app).startswith("the database does not answer (OperationalError)")
    with app.store.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE away RENAME TO runs")
