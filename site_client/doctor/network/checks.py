"""The agent's checks, in the order in which a failing one explains the next."""

from collections.abc import Callable, Iterator
from datetime import datetime

from cryptography import x509
from federation.encoding import Layout
from federation.errors import FederationError

from site_client.agent.identity.identity import SiteIdentity, left_on
from site_client.agent.rounds.plans import Plans
from site_client.config import SiteSettings
from site_client.doctor.network import connection, echo, enrolment
from site_client.doctor.result import Check, CheckResult, green, grey, red
from site_client.errors import SiteError


def checks(settings: SiteSettings, clock: Callable[[], datetime]) -> dict[str, Check]:
    """By name. Nothing is read before the check runs."""
    identity = _identity(settings)
    found: dict[str, Check] = {"enrolment": lambda: [_enrolment(settings, identity)], "ntp": enrolment.check_clock}
    if settings.aggregator.address:
        ca = None if isinstance(identity, str) else x509.load_pem_x509_certificate(identity.ca_pem)
        found["dns"] = lambda: connection.check_name(settings.aggregator)
        found["way"] = lambda: connection.check_way(settings.aggregator, ca, clock())
    else:
        missing = red("address", "aggregator.address is empty", "Set aggregator.address; the coordinator knows it")
        found["address"] = lambda: [missing]
    if not isinstance(identity, str):
        found["certificate"] = lambda: enrolment.check_certificate(identity, clock())
        if settings.aggregator.address:
            found["aggregator"] = lambda: enrolment.check_standing(settings, identity, clock)
            found["echo"] = lambda: echo.check_echo(settings, identity, clock)
        found["ledger"] = lambda: enrolment.check_ledger(settings.folders.agent)
        found["speed"] = lambda: enrolment.check_speed(settings.folders.agent, _update_bytes(settings))
    found["files"] = lambda: enrolment.check_modes(settings)
    return found


def _identity(settings: SiteSettings) -> SiteIdentity | str:
    """The identity, or one sentence why there is none."""
    folder = settings.folders.agent / "identity"
    try:
        if not (folder / "tls.pem").exists():
            return ""
        return SiteIdentity(folder)
    except PermissionError:
        return "the keys cannot be read by who asks; run doctor as root"
    except (SiteError, FederationError) as error:
        return str(error)


def _enrolment(settings: SiteSettings, identity: SiteIdentity | str) -> CheckResult:
    when = left_on(settings.folders.agent / "identity") if identity == "" else None
    if when is not None:
        return grey("enrolment", f"this host left on {when}", "To come back, ask for an invitation and join")
    if identity == "":
        return grey("enrolment", "this host has not joined", "Run hemofed-site join ADDRESS TOKEN")
    if isinstance(identity, str):
        return red("enrolment", identity, "Restore the state folder from the backup, or join again")
    if identity.site != settings.name:
        return red("enrolment", f"site.toml says {settings.name}, this host is {identity.site}", "Correct name")
    return green("enrolment", f"{identity.site}, roster of {len(identity.roster.entries)} sites")


def _update_bytes(settings: SiteSettings) -> int | None:
    """What a round of the newest plan uploads."""
    held: Iterator[int] = (
        Layout.of(one.plan, one.plan.manifest.size).bytes for one in Plans(settings.folders.agent / "plans").all()
    )
    return next(held, None)
