"""Checks of this site's enrolment: certificate, clock, the aggregator's answer, ledger, files, speed of uploads."""

import ctypes
import fcntl
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from federation.errors import FederationError
from federation.roster import ROSTER_WARNING_DAYS

from site_client.agent.commands.session import session
from site_client.agent.egress import verify
from site_client.agent.egress.calls import FETCH_ROSTER, PUT_BLOB
from site_client.agent.egress.ledger import Entry
from site_client.agent.identity import keys
from site_client.agent.identity.identity import SiteIdentity, days_left
from site_client.agent.privacy.ledger import spending_of
from site_client.agent.rounds.rollback import read_rollback
from site_client.agent.status_file import CLOCK_FIX, clock_in_words, is_clock_off, read_status
from site_client.check_result import CheckResult, amber, green, grey, red
from site_client.config import PolicySettings, SiteSettings
from site_client.errors import LedgerBroken, LinkError, Refused, SiteError

PATIENCE_S: Final = 20.0  # for one answer: a person waits at a terminal
_DAYS_LOW: Final = 3.0
_ENTRIES_OF_UPLOAD: Final = 20_000  # the newest, in which the last upload is looked for: a week of polls
_TIME_ERROR: Final = 5  # sys/timex.h: the clock is not synchronized


def check_clock(state: int | None = None) -> Iterator[CheckResult]:
    """Check that the kernel's clock is synchronized.

    Args:
        state: The value that ntp_gettime(3) returns; None calls it.
    """
    state = _clock_state() if state is None else state
    if state == _TIME_ERROR:
        yield red("ntp", "no service synchronizes this machine's clock", "Enable NTP (systemd-timesyncd, chrony)")
    elif state < 0:
        yield grey("ntp", "the kernel does not tell whether its clock is synchronized")
    else:
        yield green("ntp", "the clock is synchronized")


def check_time(folder: Path) -> Iterator[CheckResult]:
    """Report what the running agent found when it compared this clock with the aggregator's."""
    status = read_status(folder) if agent_runs(folder) else None
    if status is None or status.clock_ahead_s is None:
        yield grey("clock", "no agent runs here that has compared this clock with the aggregator's")
    elif is_clock_off(status.clock_ahead_s):
        yield amber("clock", clock_in_words(status.clock_ahead_s).partition(";")[0], CLOCK_FIX)
    else:
        yield green("clock", clock_in_words(status.clock_ahead_s))


def check_certificate(identity: SiteIdentity, now: datetime) -> Iterator[CheckResult]:
    """Check the site's own certificate against this clock."""
    days = days_left(identity, now)
    if now < identity.valid_from:
        behind_s = (identity.valid_from - now).total_seconds()
        words = f"not valid before {behind_s:.0f} s from now, by this clock"
        yield red("certificate", words, f"Enable NTP; this clock is behind by {behind_s:.0f} s or more")
    elif days <= 0:
        yield red(
            "certificate", f"expired {-days:.1f} days ago", "Start the agent: it requests a new one; else join anew"
        )
    elif days < _DAYS_LOW and now > identity.renewal_due():
        yield red("certificate", f"expires in {days:.1f} days and was to be renewed", "Start the agent: it renews")
    else:
        yield green("certificate", f"of {identity.site}, {days:.1f} days left; renewed by the agent")


def check_roster(identity: SiteIdentity, policy: PolicySettings, now: datetime) -> Iterator[CheckResult]:
    """Check the end of the roster, and whether hospitals wait to be known here."""
    roster = identity.roster
    if roster.expires_at is not None and roster.expires_at - now < timedelta(days=ROSTER_WARNING_DAYS):
        ended = "ended" if roster.has_expired(now) else "ends"
        fix = "Ask the coordinator for a new roster; without one this site takes part in nothing"
        yield red("roster", f"it {ended} on {roster.expires_at:%Y-%m-%d}", fix)
        return
    waiting = [entry.site for entry, _ in identity.known_sites.waiting(roster, policy, now)]
    if waiting and policy.roster_approval == "ask":
        yield red("roster", f"{', '.join(waiting)} wait for you", "hemofed-site roster show, then roster approve")
    elif waiting:
        yield green("roster", f"{', '.join(waiting)} will count after policy.roster_wait_days")
    else:
        yield green("roster", f"{len(roster.entries)} hospitals, all known here")


def check_enrolment(
    settings: SiteSettings, identity: SiteIdentity, clock: Callable[[], datetime]
) -> Iterator[CheckResult]:
    """Check that the aggregator accepts this site: by the running agent's status, or by one request for the roster."""
    # The running agent holds the ledger, and nothing may be sent beside it.
    if agent_runs(settings.folders.agent):
        yield _from_status(settings, clock())
    elif settings.policy.dry_run:
        yield grey("aggregator", "policy.dry_run is set and no agent runs: nothing was sent")
    else:
        yield _from_call(settings, identity, clock)


def check_ledger(folder: Path) -> Iterator[CheckResult]:
    """Check every newest line, link and signature, every sealed segment's digest, and every kept payload."""
    path = folder / "ledger.jsonl"
    try:
        # Not every line of ten years: that takes longer than a person waits for doctor.
        entries, segments = verify.verify_newest(path, keys.load(folder / "identity").signing_public.hex())
        payloads = verify.check_payloads(path, folder / "payloads")
    except LedgerBroken as error:
        fix = "Keep the file for the investigation, and restore it from the backup"
        yield red("ledger", f"the chain is broken at entry {error.seq}", fix)
        return
    sealed = f", {segments} sealed segments as they were" if segments else ""
    yield green("ledger", f"{entries} entries unbroken and signed{sealed}, {payloads} payloads as recorded")


def check_privacy(settings: SiteSettings) -> Iterator[CheckResult]:
    """Check every line, link and signature of the privacy ledger."""
    try:
        spending = spending_of(settings)
    except LedgerBroken as error:
        fix = "Keep the file for the investigation, and restore it from the backup"
        yield red("privacy", f"the privacy ledger is broken at entry {error.seq}; this site takes part in nothing", fix)
        return
    yield green("privacy", f"{len(spending.charges)} charges unbroken and signed")


def check_rollback(folder: Path) -> Iterator[CheckResult]:
    """Check that the state folder was not put back to an earlier day, or that an administrator knows why."""
    record = read_rollback(folder)
    if record is None:
        yield green("state", "the agent has noticed no restored backup or snapshot")
    elif record.acknowledged:
        yield green("state", f"put back to an earlier day, acknowledged; noticed on {record.noticed_at:%Y-%m-%d}")
    else:
        yield red("state", record.sentence, "Find out why, then hemofed-site ledger acknowledge")


def check_speed(folder: Path, update_bytes: int | None) -> Iterator[CheckResult]:
    """Report the speed of the newest upload, from the times of its pieces in the ledger. Sends no message."""
    try:
        rate = upload_rate(verify.newest(folder / "ledger.jsonl", _ENTRIES_OF_UPLOAD))
    except LedgerBroken:
        rate = None
    if rate is None:
        yield grey("speed", "no upload of several pieces is among the ledger's newest entries")
        return
    needs = "" if update_bytes is None else f"; a round's update needs about {update_bytes / rate:.0f} s"
    yield green("speed", f"the last upload moved at {rate / 1024:.0f} KiB/s{needs}")


def upload_rate(entries: list[Entry]) -> float | None:
    """Return the bytes a second of the newest upload; None when it has fewer than two pieces.

    A piece is recorded when the line has taken the one before it.
    """
    newest: list[Entry] = []
    for entry in reversed([entry for entry in entries if entry.left]):
        if entry.rpc == PUT_BLOB.name:
            newest.append(entry)
        elif newest:
            break
    took_s = (newest[0].utc - newest[-1].utc).total_seconds() if newest else 0.0
    return sum(entry.size_bytes for entry in newest[1:]) / took_s if took_s > 0 else None


def check_modes(settings: SiteSettings) -> Iterator[CheckResult]:
    """Check that only their owner reads the keys, and only the two services read the spool."""
    identity = settings.folders.agent / "identity"
    exposed = sorted(path.name for path in identity.glob("*") if path.is_file() and path.stat().st_mode & 0o077)
    if exposed:
        yield red("key files", f"others may read {', '.join(exposed)}", f"chmod 0600 {identity}/*")
    elif identity.is_dir():
        yield green("key files", "readable by their owner alone")
    spool = settings.folders.spool
    for street in ("to_trainer", "to_agent"):
        path = spool / street
        if not path.is_dir():
            yield grey("spool", f"{street} is not there yet; the services make it")
        elif path.stat().st_mode & 0o027:
            yield red("spool", f"others may read {street}", f"chmod 0750 {path}")
        else:
            yield green("spool", f"only the services may read {street}")


def agent_runs(folder: Path) -> bool:
    """Whether an agent runs on this state folder."""
    try:
        with (folder / "lock").open("rb") as lock:
            # Shared and at once released: the question must not keep an agent from starting.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _from_status(settings: SiteSettings, now: datetime) -> CheckResult:
    status = read_status(settings.folders.agent)
    if status is None:
        return grey("aggregator", "the agent has only just started")
    if "revoked" in status.last_error:
        return red("aggregator", "this site was revoked", "Contact the coordinator")
    if status.last_error:
        return red(
            "aggregator",
            f"the agent says: {status.last_error}",
            "See the lines above, and hemofed-site status",
            local=True,
        )
    if status.last_contact_at is None:
        return grey("aggregator", "the agent has not reached it since it started")
    return green("aggregator", f"the agent reached it {(now - status.last_contact_at).total_seconds():.0f} s ago")


def _from_call(settings: SiteSettings, identity: SiteIdentity, clock: Callable[[], datetime]) -> CheckResult:
    with session(settings, identity, clock, PATIENCE_S) as egress:
        try:
            began = clock()
            egress.send(FETCH_ROSTER, FETCH_ROSTER.request())
            return green("aggregator", f"it answered this site in {1000 * (clock() - began).total_seconds():.0f} ms")
        except Refused as error:
            # The aggregator's own word in its refusal; the code alone does not tell it from a wrong certificate.
            if "revoked" in str(error):
                return red("aggregator", "this site was revoked", "Contact the coordinator")
            return red("aggregator", str(error), "Contact the coordinator", local=True)
        except (LinkError, FederationError, SiteError) as error:
            return red("aggregator", str(error), "See the lines above", local=True)


def _clock_state() -> int:
    """Call ntp_gettime(3), which changes nothing and needs no privilege."""
    buffer = ctypes.create_string_buffer(256)  # struct ntptimeval, 72 bytes on 64-bit Linux
    try:
        return int(ctypes.CDLL(None).ntp_gettime(buffer))
    except AttributeError:  # another C library
        return -1
