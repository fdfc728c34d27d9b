"""Alerts: each condition is told once with what to do, again when it is over, and with nothing of a site's figures."""

import email
import email.policy
import hashlib
import hmac
import http.server
import json
import re
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from sqlalchemy import text, update

from aggregator import config
from aggregator.alerts.conditions import ADVICE, AlertKind, raised
from aggregator.alerts.delivery import SIGNATURE_HEADER, Notice, deliver
from aggregator.alerts.watch import AlertWatch
from aggregator.context import AppContext
from aggregator.health.metrics import AggregatorMetrics
from aggregator.runs import lifecycle
from aggregator.states import ModelStanding
from aggregator.store import Change, alert_rows, site_rows
from aggregator.store.tables import Certificate, ModelVersion, Round, SiteReport
from tests.aggregator.conftest import StandingClock
from tests.aggregator.test_cli_aggregator import Console, console, fresh
from tests.ports import free_port

__all__ = ["console", "fresh"]  # fixtures

ROOT = Path(__file__).resolve().parents[2]


Served = TypeVar("Served", bound=socketserver.BaseServer)


class Webhook(http.server.ThreadingHTTPServer):
    """Takes alerts, or answers with `status`."""

    status = 204

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Taker)

    @property
    def notices(self) -> list[tuple[str, str]]:
        """(kind, state) of every alert taken."""
        return [(alert["kind"], alert["state"]) for body in self.bodies for alert in json.loads(body)["alerts"]]


class _Taker(http.server.BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status < 300:
            self.server.bodies.append(body)
            self.server.headers.append(self.headers[SIGNATURE_HEADER])
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def served(server: Served) -> Iterator[Served]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    yield from served(Webhook())


class MailServer(socketserver.ThreadingTCPServer):
    """A mail server of a few words (RFC 5321)."""

    allow_reuse_address = True

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Session)


class _Session(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.wfile.write(b"220 ready\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.messages.append(b"".join(lines))
            self.wfile.write(b"250 ok\r\n")


@pytest.fixture
def mail() -> Iterator[MailServer]:
    yield from served(MailServer())


def with_alerts(app: AppContext, **settings: object) -> AppContext:
    alerts = msgspec.structs.replace(config.AlertSettings(disk_free_mib=1), **settings)
    return replace(app, settings=msgspec.structs.replace(app.settings, alerts=alerts))


def told_by(app: AppContext, webhook: Webhook) -> AppContext:
    return with_alerts(app, webhook=f"http://127.0.0.1:{webhook.server_port}/hook")


def kinds(app: AppContext) -> set[tuple[AlertKind, str]]:
    with app.store.read() as session:
        return {(alert.kind, alert.subject) for alert in raised(app, session)}


# --- conditions ---


def test_a_consortium_at_work_raises_nothing(enrolled: AppContext) -> None:
    assert kinds(with_alerts(enrolled)) == set()


def test_a_site_that_is_silent_too_long_is_an_alert_and_a_suspended_one_is_not(
    enrolled: AppContext, clock: StandingClock
) -> None:
    app = with_alerts(enrolled, silent_hours=30)
    clock.advance(hours=29)
    assert AlertKind.SITE_SILENT not in {kind for kind, _ in kinds(app)}
    clock.advance(hours=2)
    # `east` has never reported; its time began with its approval.
    assert kinds(app) >= {(AlertKind.SITE_SILENT, name) for name in ("north", "south", "east")}
    with app.store.write() as session:
        site_rows.suspend(session, "east", Change(clock(), "person:ada", "site:east", "a new scanner"))
    assert (AlertKind.SITE_SILENT, "east") not in kinds(app)


def test_a_certificate_that_was_not_renewed_in_time_is_an_alert(enrolled: AppContext, clock: StandingClock) -> None:
    with enrolled.store.write() as session:
        ends = clock() + timedelta(days=9)
        session.add(Certificate(fingerprint=b"c" * 32, site="north", issued_at=clock(), expires_at=ends))
    app = with_alerts(enrolled, silent_hours=8760)
    assert (AlertKind.CERTIFICATE_ENDS, "north") not in kinds(app)
    clock.advance(days=2)
    assert (AlertKind.CERTIFICATE_ENDS, "north") in kinds(app)


def test_a_roster_that_ends_is_an_alert(enrolled: AppContext, clock: StandingClock) -> None:
    clock.advance(days=179)
    assert (AlertKind.ROSTER_ENDS, "") in kinds(with_alerts(enrolled))


def test_a_round_that_no_driver_steps_is_stalled_and_a_paused_run_asks_for_a_person(
    enrolled: AppContext, clock: StandingClock
) -> None:
    app = with_alerts(enrolled, silent_hours=8760)
    with app.store.read() as session:
        row = session.query(Round).one()
    clock.now = row.deadline + timedelta(minutes=9)
    assert AlertKind.ROUND_STALLED not in {kind for kind, _ in kinds(app)}
    clock.advance(minutes=2)
    assert (AlertKind.ROUND_STALLED, f"{row.run_id.hex()}/1") in kinds(app)
    lifecycle.pause(app, row.run_id, why="two rounds in a row were abandoned")
    assert (AlertKind.RUN_PAUSED, row.run_id.hex()) in kinds(app)


def test_a_refused_model_is_an_alert_until_a_later_one_is_not(enrolled: AppContext) -> None:
    app = with_alerts(enrolled)
    with app.store.write() as session:
        session.execute(update(ModelVersion).values(standing=ModelStanding.REFUSED.name))
    assert AlertKind.MODEL_REFUSED in {kind for kind, _ in kinds(app)}


def test_a_disk_that_fills_is_an_alert_before_the_service_is_not_ready(enrolled: AppContext) -> None:
    assert (AlertKind.DISK_FILLING, "") in kinds(with_alerts(enrolled, disk_free_mib=1 << 30))
    assert config.AlertSettings().disk_free_mib > config.HealthSettings().disk_free_min_mib


def test_a_broken_audit_is_an_alert(running: AppContext, webhook: Webhook) -> None:
    app = told_by(running, webhook)
    with app.store.write() as session:
        session.execute(text("UPDATE audit SET why = 'nothing happened' WHERE id = 2"))
    AlertWatch(app).turn()
    assert webhook.notices == [("audit_broken", "raised")]
    assert "audit row 2" in webhook.bodies[0].decode()


# --- telling ---


def test_each_alert_is_told_once_again_after_a_day_and_once_when_it_is_over(
    enrolled: AppContext, webhook: Webhook, clock: StandingClock
) -> None:
    app = told_by(enrolled, webhook)
    clock.advance(hours=25)
    watch = AlertWatch(app)
    for _ in range(3):
        watch.turn()
    assert webhook.notices == [("site_silent", "raised")] * 3
    AlertWatch(app).turn()  # after a restart
    assert len(webhook.notices) == 3
    clock.advance(hours=25)
    watch.turn()
    assert webhook.notices[3:] == [("site_silent", "reminder")] * 3
    with app.store.write() as session:
        session.merge(_report("north", clock))
    watch.turn()
    assert webhook.notices[6:] == [("site_silent", "over")]
    with app.store.read() as session:
        assert alert_rows.counts(session) == {"site_silent": 2}


def test_a_message_that_no_way_takes_is_tried_again(
    enrolled: AppContext, webhook: Webhook, clock: StandingClock
) -> None:
    app, watch = told_by(enrolled, webhook), None
    clock.advance(hours=25)
    watch = AlertWatch(app)
    for status in (500, 302):  # a redirection is not followed
        webhook.status = status
        watch.turn()
    assert webhook.notices == []
    webhook.status = 200
    watch.turn()
    assert webhook.notices == [("site_silent", "raised")] * 3


def test_two_aggregators_on_one_database_tell_once(
    enrolled: AppContext, webhook: Webhook, clock: StandingClock
) -> None:
    app = told_by(enrolled, webhook)
    clock.advance(hours=25)
    threads = [threading.Thread(target=AlertWatch(app).turn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(webhook.notices) == [("site_silent", "raised")] * 3


def test_no_message_holds_a_figure_of_a_site(enrolled: AppContext, webhook: Webhook, clock: StandingClock) -> None:
    """North trains at 40 %, and has a ledger of 3 entries; neither leaves in a message."""
    app = told_by(enrolled, webhook)
    clock.advance(hours=25)
    AlertWatch(app).turn()
    body = json.loads(webhook.bodies[0])
    assert {frozenset(alert) for alert in body["alerts"]} == {frozenset({"kind", "state", "sentence", "advice"})}
    sentences = [alert["sentence"] for alert in body["alerts"]]
    assert "north has been silent for 1 d 1 h." in sentences
    assert all(alert["advice"] == ADVICE[AlertKind(alert["kind"])] for alert in body["alerts"])


def test_every_kind_says_what_to_do() -> None:
    assert set(ADVICE) == set(AlertKind)


def test_a_webhook_is_signed_with_the_secret(enrolled: AppContext, webhook: Webhook, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret\n")
    app = with_alerts(enrolled, webhook=f"http://127.0.0.1:{webhook.server_port}/", webhook_secret_file=str(secret))
    assert deliver(app.settings.alerts, [_notice()]) == {"webhook": ""}
    expected = hmac.new(b"a secret", webhook.bodies[0], hashlib.sha256).hexdigest()
    assert webhook.headers == [f"sha256={expected}"]


def test_a_mail_says_what_holds_and_what_to_do(mail: MailServer) -> None:
    settings = config.AlertSettings(mail_to=("it@hospital.example",), smtp=f"127.0.0.1:{mail.server_address[1]}")
    assert deliver(settings, [_notice(), _notice()]) == {"mail": ""}
    message = email.message_from_bytes(mail.messages[0], policy=email.policy.default)
    assert message["Subject"] == "[hemofed] north has been silent for 2 d. and 1 more"
    assert message["To"] == "it@hospital.example"
    assert "north has been silent for 2 d.\r\nCall the hospital." in message.as_string().replace("\n", "\r\n")


def test_a_way_that_fails_is_named_without_a_word_of_the_other_side(webhook: Webhook) -> None:
    webhook.status = 401
    settings = config.AlertSettings(
        mail_to=("it@hospital.example",),
        smtp=f"127.0.0.1:{free_port()}",
        webhook=f"http://127.0.0.1:{webhook.server_port}/",
    )
    assert deliver(settings, [_notice()]) == {
        "mail": "expected the message to be taken, got ConnectionRefusedError",
        "webhook": "expected the message to be taken, got HTTPError 401",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"webhook": "file:///etc/passwd"},
        {"smtp": "nohost"},
        {"mail_to": ("it@hospital.example\nBcc: all@evil.test",)},
        {"smtp_user": "hemofed"},
    ],
)
def test_settings_that_would_send_elsewhere_or_in_clear_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        config.AlertSettings(**wrong)  # type: ignore[arg-type]  # of one of the kinds above


# --- the command ---


def test_a_test_is_sent_on_every_way_and_each_outcome_is_said(console: Console, webhook: Webhook) -> None:
    assert "expected mail_to or webhook in [alerts], got neither" in console.refused("alert", "test")
    address = f"http://127.0.0.1:{webhook.server_port}/"
    with console.config.open("a") as file:
        file.write(f'[alerts]\nwebhook = "{address}"\ndisk_free_mib = 1\n')
    assert console("alert", "test").stdout == "webhook: taken\n"
    assert webhook.notices == [("test", "test")]
    webhook.status = 500
    assert "a way did not take the message" in console.refused("alert", "test")
    assert console.json("alert", "list") == []


def test_the_list_says_what_to_do(console: Console) -> None:
    with console.config.open("a") as file:
        file.write(f"[alerts]\ndisk_free_mib = {1 << 30}\n")
    [row] = console.json("alert", "list")
    assert (row["kind"], row["advice"]) == ("disk_filling", ADVICE[AlertKind.DISK_FILLING])


# --- Prometheus ---


def test_the_rules_for_prometheus_name_metrics_and_kinds_that_there_are(enrolled: AppContext) -> None:
    rules = (ROOT / "deploy" / "prometheus" / "hemofed.rules.yml").read_text()
    page = AggregatorMetrics(enrolled, lambda: 0.0).text().decode()
    shown = set(re.findall(r"^(hemofed_\w+)", page, re.M)) | {"hemofed_site_certificate_seconds_min"}
    assert set(re.findall(r"hemofed_\w+", rules.split("groups:")[1])) - {"hemofed_aggregator"} <= shown
    assert set(re.findall(r'kind="(\w+)"', rules)) <= {kind.value for kind in AlertKind}
    expressions = re.findall(r"^ +expr: (.*)$", rules, re.M)
    assert len(expressions) == rules.count("action:") == rules.count("- alert:")


def test_metrics_count_the_alerts_by_kind(enrolled: AppContext, clock: StandingClock) -> None:
    app = with_alerts(enrolled)
    clock.advance(hours=25)
    AlertWatch(app).turn()
    page = AggregatorMetrics(app, lambda: 0.0).text().decode()
    assert 'hemofed_alerts{kind="site_silent"} 3.0' in page
    assert 'hemofed_alerts{kind="audit_broken"} 0.0' in page


def _notice() -> Notice:
    return Notice("site_silent", "raised", "north has been silent for 2 d.", "Call the hospital.")


def _report(site: str, clock: StandingClock) -> SiteReport:
    words = {"state": "idle", "reasons": "", "version": "0.2.0", "model_digest": b"", "ledger_head": bytes(32)}
    return SiteReport(site=site, seen_at=clock(), progress_percent=0, roster_epoch=1, ledger_entries=1, **words)
