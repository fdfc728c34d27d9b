"""The loop that looks for conditions, keeps those that hold as rows, and tells people of each, and when it is over.

A message that no way takes is tried again at the next turn. Several aggregators may share the rows: a guarded UPDATE
decides which of them tells.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from aggregator.alerts.conditions import ADVICE, Alert, AlertKind, audit_alert, raised
from aggregator.alerts.delivery import Notice, deliver
from aggregator.context import AppContext
from aggregator.errors import AuditBroken
from aggregator.store import alert_rows, audit_chain
from aggregator.store.tables import RaisedAlert

log = structlog.get_logger()

INTERVAL_S = 60.0
LOOK_S = 0.2
AUDIT_EVERY_S = 6 * 3600.0  # it reads every row


class AlertWatch:
    """One loop; `run` belongs to one thread."""

    def __init__(self, app: AppContext, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Make the loop.

        Args:
            app: The aggregator.
            monotonic: Seconds that never go back.
        """
        self._app, self._monotonic = app, monotonic
        self._audit_due_at = monotonic()
        self._audit: Alert | None = None
        self._stop = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Take turns until `stop` is set."""
        self._stop = stop
        while not stop.wait(INTERVAL_S):
            try:
                self.turn()
            except Exception:  # a locked database must not end the loop
                log.exception("alerts failed")

    def turn(self) -> None:
        """Look once, and tell of what is new, what is over, and once a day of what still holds."""
        with self._app.store.read() as session:
            holding = raised(self._app, session)
        if self._monotonic() >= self._audit_due_at:
            self._audit_due_at = self._monotonic() + AUDIT_EVERY_S
            self._audit = self._verify()
        holding += [self._audit] if self._audit is not None else []
        now = self._app.clock()
        with self._app.store.read() as session:
            known = {row.key: row for row in alert_rows.all_rows(session)}
        keys = {alert.key for alert in holding}
        if new := [alert for alert in holding if alert.key not in known]:
            with self._app.store.write() as session:
                alert_rows.add(session, [_row(alert, now) for alert in new])
        self._tell([alert for alert in holding if alert.key not in known or known[alert.key].told_at is None], now)
        self._remind([alert for alert in holding if alert.key in known], known, now)
        self._close([row for key, row in known.items() if key not in keys])

    def _verify(self) -> Alert | None:
        with self._app.store.read() as session:
            try:
                audit_chain.verify(session)
            except AuditBroken as error:
                return audit_alert(f"{error}.")
        return None

    def _tell(self, alerts: list[Alert], now: datetime) -> None:
        with self._app.store.write() as session:
            mine = [alert for alert in alerts if alert_rows.claim(session, alert.key, None, now)]
        for alert in mine:
            log.warning("alert raised", kind=alert.kind.value, subject=alert.subject)
        if not self._send([_notice(alert, "raised") for alert in mine]):
            with self._app.store.write() as session:
                alert_rows.untold(session, [alert.key for alert in mine])

    def _remind(self, alerts: list[Alert], known: dict[str, RaisedAlert], now: datetime) -> None:
        every = timedelta(hours=self._app.settings.alerts.remind_hours)
        due = [alert for alert in alerts if (told := known[alert.key].told_at) is not None and now - told >= every]
        if due:
            with self._app.store.write() as session:
                due = [alert for alert in due if alert_rows.claim(session, alert.key, known[alert.key].told_at, now)]
            self._send([_notice(alert, "reminder") for alert in due])

    def _close(self, rows: list[RaisedAlert]) -> None:
        if not rows:
            return
        with self._app.store.write() as session:
            closed = [row for row in rows if alert_rows.remove(session, row.key)]
        for row in closed:
            log.info("alert over", kind=row.kind, subject=row.subject)
        # Of those that nobody was told of there is nothing to take back.
        self._send([Notice(row.kind, "over", row.sentence, "") for row in closed if row.told_at is not None])

    def _send(self, notices: list[Notice]) -> bool:
        """Whether a way took the message, or there is none."""
        if not notices:
            return True
        failures: dict[str, str] = {}
        # In a thread of its own, which the end of the service does not wait for: a mail server may take minutes.
        sender = threading.Thread(
            target=lambda: failures.update(deliver(self._app.settings.alerts, notices)), name="alert", daemon=True
        )
        sender.start()
        while sender.is_alive() and not self._stop.is_set():
            sender.join(LOOK_S)
        if sender.is_alive():
            return False
        for way, why in failures.items():
            if why:
                log.error("alert not delivered", way=way, why=why)
        # One way is enough: with a retry for the other, people would be told on the first again and again.
        return not failures or not all(failures.values())


def _row(alert: Alert, now: datetime) -> RaisedAlert:
    return RaisedAlert(
        key=alert.key, kind=alert.kind.value, subject=alert.subject, sentence=alert.sentence, since=now, told_at=None
    )


def _notice(alert: Alert, state: str) -> Notice:
    return Notice(alert.kind.value, state, alert.sentence, alert.advice)


def advice_of(kind: str) -> str:
    """Return the step that a person takes; empty for a kind of a newer version."""
    return ADVICE.get(AlertKind(kind), "") if kind in list(AlertKind) else ""
