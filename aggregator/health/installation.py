"""Is this installation sound? For a person at the aggregator's machine, whether the service runs or not.

Unlike `checks`, which a running service answers of itself, this reads the state folder from outside. It changes
nothing.
"""

import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from sqlalchemy.exc import SQLAlchemyError

from aggregator.config import AggregatorSettings
from aggregator.context import AppContext
from aggregator.errors import AggregatorError, ConfigRefused
from aggregator.migrations import head_revision, revision_of
from aggregator.network import listen
from aggregator.sites.roster import roster_notices
from aggregator.store import audit_chain, audit_mark, people, site_rows

CERTIFICATE_DAYS: Final = 3.0  # a site renews ten days before its certificate ends; one this near has not
AUTHORITY_DAYS: Final = 365.0  # its end takes months of preparation: every hospital joins again
SECRET_FOLDERS: Final = ("ca", "blobs", "uploads")
_MIB = 1 << 20


class Severity(StrEnum):
    """The weight of a finding."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


class Finding(NamedTuple):
    """One question and its answer, a sentence."""

    name: str
    level: Severity
    words: str


@dataclass(frozen=True)
class Installation:
    """A state folder and its settings, seen from outside the service."""

    app: AppContext

    def findings(self) -> Iterator[Finding]:
        """Yield the answers, in the order of how much depends on them."""
        yield from settings_findings(self.app.settings)
        yield self._database()
        yield self._audit()
        yield self._disk()
        yield from self._keys()
        yield from self._own_certificates()
        yield from self._site_certificates()
        yield from self._listeners()
        yield self._clock()
        yield from self._roster()

    def _database(self) -> Finding:
        store, folder = self.app.store, self.app.settings.state.folder
        try:
            audit_mark.check(store, folder)
            revision, newest = revision_of(store.engine), head_revision()
        except (AggregatorError, SQLAlchemyError) as error:
            words = str(error) if isinstance(error, AggregatorError) else f"it refused: {type(error).__name__}"
            return Finding("database", Severity.FAULT, words)
        if revision != newest:
            return Finding("database", Severity.WARNING, f"has revision {revision}; the next `serve` makes it {newest}")
        return Finding("database", Severity.OK, "intact, and as far as its audit had come")

    def _audit(self) -> Finding:
        try:
            with self.app.store.read() as session:
                head = audit_chain.verify(session)
        except (AggregatorError, SQLAlchemyError) as error:
            words = str(error) if isinstance(error, AggregatorError) else f"it cannot be read: {type(error).__name__}"
            return Finding("audit", Severity.FAULT, words)
        return Finding("audit", Severity.OK, f"a chain of {head.entries} rows, head {head.digest.hex()}")

    def _disk(self) -> Finding:
        folder, least = self.app.settings.state.folder, self.app.settings.health.disk_free_min_mib
        free = shutil.disk_usage(folder).free // _MIB
        if free < least:
            return Finding("disk", Severity.FAULT, f"expected {least} MiB free for {folder}, got {free} MiB; make room")
        return Finding("disk", Severity.OK, f"{free} MiB free for {folder}")

    def _keys(self) -> Iterator[Finding]:
        folder = self.app.settings.state.folder
        paths = [folder, *(path for name in SECRET_FOLDERS for path in _below(folder / name))]
        open_to_others = [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]
        if open_to_others:
            words = f"{open_to_others[0]} is open to other users of this machine; chmod -R go= {folder}"
            yield Finding("keys", Severity.FAULT, words)
        else:
            yield Finding("keys", Severity.OK, "readable by their user only")
        key = folder / "ca" / "custodian.key"
        if key.exists():
            words = f"{key} lies on this machine; hand it over with `hemofed-custodian take-over {folder}`"
            yield Finding("custodian", Severity.FAULT, words)
        else:
            yield Finding("custodian", Severity.OK, "its key is not on this machine")

    def _own_certificates(self) -> Iterator[Finding]:
        folder = self.app.settings.state.folder / "ca"
        for name, least in (("ca.pem", AUTHORITY_DAYS), ("custodian.pem", AUTHORITY_DAYS), ("server.pem", 0.0)):
            path = folder / name
            if not path.exists():  # server.pem before the first `serve`
                continue
            ends = x509.load_pem_x509_certificate(_certificate(path)).not_valid_after_utc
            days = _days(ends - self.app.clock())
            # The service renews its own in time; after a long stop it does so when it starts.
            level = Severity.OK if days > least else Severity.WARNING if name == "server.pem" else Severity.FAULT
            advice = "" if level is Severity.OK else "; the next `serve` renews it"
            if level is Severity.FAULT:
                advice = "; every hospital has to join again before that day: plan it now"
            yield Finding(name, level, f"ends on {ends:%Y-%m-%d}, in {days:.0f} days{advice}")

    def _site_certificates(self) -> Iterator[Finding]:
        now = self.app.clock()
        with self.app.store.read() as session:
            members = {site.name for site in site_rows.active(session)}
            ends = site_rows.certificate_expiries(session)
        late = {name: at for name, at in ends.items() if name in members and _days(at - now) < CERTIFICATE_DAYS}
        for name, at in sorted(late.items()):
            how = "ended" if at <= now else "ends"
            words = f"{name}'s certificate {how} on {at:%Y-%m-%d %H:%M} UTC; its agent renews it once it reaches you"
            yield Finding("sites", Severity.WARNING, words)
        if not late:
            yield Finding("sites", Severity.OK, f"no certificate of {len(members)} members ends within 3 days")

    def _listeners(self) -> Iterator[Finding]:
        settings = self.app.settings
        if _is_served(settings.state.folder / "serve.lock"):
            yield Finding("service", Severity.OK, "runs on this state folder")
            for key, address in addresses(settings).items():
                host, _, port = address.rpartition(":")
                if port != "0":
                    yield _answers(key, host.strip("[]"), int(port), address)
            return
        yield Finding("service", Severity.WARNING, "does not run; `hemofed-aggregator serve` starts it")
        for key, address in addresses(settings).items():
            try:
                listen(key, address).close()
                yield Finding(f"listen.{key}", Severity.OK, f"{address} is free")
            except ConfigRefused as error:
                yield Finding(f"listen.{key}", Severity.FAULT, str(error))

    def _clock(self) -> Finding:
        now = self.app.clock()
        with self.app.store.read() as session:
            rows = people.audit_trail(session, limit=1)
        if rows and rows[0].at > now:
            words = f"shows {now:%Y-%m-%d %H:%M:%S} UTC, and the newest audit row is of {rows[0].at:%Y-%m-%d %H:%M:%S}"
            return Finding(
                "clock", Severity.FAULT, f"{words}: it was set back; set it right before hospitals refuse you"
            )
        synchronized = _is_synchronized()
        if synchronized is False:
            words = f"shows {now:%Y-%m-%d %H:%M:%S} UTC, and nothing keeps it right; set up NTP (timedatectl)"
            return Finding("clock", Severity.WARNING, words)
        return Finding("clock", Severity.OK, f"{now:%Y-%m-%d %H:%M:%S} UTC, later than every audit row")

    def _roster(self) -> Iterator[Finding]:
        with self.app.store.read() as session:
            notices = roster_notices(session, self.app.settings.state.folder, self.app.clock())
        about = [notice for notice in notices if "custodian's key lies" not in notice]  # said above
        for notice in about:
            yield Finding("roster", Severity.WARNING, notice)
        if not about:
            yield Finding("roster", Severity.OK, "in force, and nothing awaits a signature")


def settings_findings(settings: AggregatorSettings) -> Iterator[Finding]:
    """Yield what the settings say that a coordinator may not have meant."""
    listening = settings.listen
    if not listening.host_names:
        words = "no host_names in [listen]: hospitals elsewhere refuse the certificate; name what they dial"
        yield Finding("settings", Severity.WARNING, words)
    for key in ("dashboard", "health"):
        address: str = getattr(listening, key)
        host = address.rpartition(":")[0].strip("[]")
        if address and host not in ("127.0.0.1", "::1", "localhost"):
            words = f"[listen] {key} = {address!r} is plain HTTP beyond this machine; put a proxy with HTTPS in front"
            yield Finding("settings", Severity.WARNING, words)
    if settings.dashboard.enabled is False and not listening.health:
        words = "neither dashboard nor health listener: nothing shows from outside whether the service works"
        yield Finding("settings", Severity.WARNING, words)
    local = ("127.", "[::1]", "localhost")
    unreached = [key for key in ("sites", "enrolment") if getattr(listening, key).startswith(local)]
    if unreached:
        words = f"[listen] {' and '.join(unreached)}: of this machine only, so no hospital elsewhere reaches it"
        yield Finding("settings", Severity.WARNING, words)


def addresses(settings: AggregatorSettings) -> dict[str, str]:
    """Return every address that the service listens at, by its key in [listen]."""
    listening = settings.listen
    every = {"sites": listening.sites, "enrolment": listening.enrolment, "health": listening.health}
    if settings.dashboard.enabled:
        every["dashboard"] = listening.dashboard
    return {key: address for key, address in every.items() if address}


def _answers(key: str, host: str, port: int, address: str) -> Finding:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # as the coordinator wrote it
    try:
        socket.create_connection((target, port), timeout=3).close()
    except OSError as error:
        words = f"{address} does not answer: {error.strerror or error}; see the log"
        return Finding(f"listen.{key}", Severity.FAULT, words)
    return Finding(f"listen.{key}", Severity.OK, f"{address} answers")


def _is_served(lock: Path) -> bool:
    """Whether a service holds the lock of the folder. With a shared database there is no lock, and this says False."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    # Held for a moment only: a service that starts in that moment is refused, and its supervisor starts it again.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_synchronized() -> bool | None:
    """Whether the kernel's clock is kept right by NTP; None where systemd leaves no sign of it."""
    mark = Path("/run/systemd/timesync/synchronized")
    if mark.parent.exists():
        return mark.exists()
    return None


def _certificate(path: Path) -> bytes:
    data = path.read_bytes()
    return data[data.index(b"-----BEGIN CERTIFICATE-----") :]


def _below(folder: Path) -> Iterator[Path]:
    if folder.exists():
        yield folder
        yield from (path for path in folder.rglob("*") if not path.is_symlink())


def _days(span: timedelta) -> float:
    return span.total_seconds() / 86_400
