"""The agent's checks, in an order in which a failure explains the next one."""

from collections.abc import Callable
from datetime import datetime

from cryptography import x509
from federation.encoding import Layout
from federation.errors import FederationError

from site_client.agent import connection
from site_client.agent.identity.identity import SiteIdentity, left_on
from site_client.agent.rounds.plans import Plans
from site_client.check_result import Check, CheckResult, green, grey, red
from site_client.config import SiteSettings
from site_client.doctor.network import echo, enrolment
from site_client.errors import SiteError


def checks(settings: SiteSettings, clock: Callable[[], datetime]) -> dict[str, Check]:
    """Return the checks, by name. A check reads its files when it runs."""
    identity = _identity(settings)
    named: dict[str, Check] = {"enrolment": lambda: [_enrolment(settings, identity)], "ntp": enrolment.check_clock}
    if settings.aggregator.address:
        ca = None if isinstance(identity, str) else x509.load_pem_x509_certificate(identity.ca_pem)
        named["dns"] = lambda: connection.check_name(settings.aggregator)
        named["connection"] = lambda: connection.check_connection(settings.aggregator, ca, clock())
    else:
        missing = red("address", "aggregator.address is empty", "Set aggregator.address; the coordinator knows it")
        named["address"] = lambda: [missing]
    if not isinstance(identity, str):
        named["certificate"] = lambda: enrolment.check_certificate(identity, clock())
        named["roster"] = lambda: enrolment.check_roster(identity, settings.policy, clock())
        if settings.aggregator.address:
            named["clock"] = lambda: enrolment.check_time(settings.folders.agent)
            named["aggregator"] = lambda: enrolment.check_enrolment(settings, identity, clock)
            named["echo"] = lambda: echo.check_echo(settings, identity, clock)
        named["ledger"] = lambda: enrolment.check_ledger(settings.folders.agent)
        named["privacy"] = lambda: enrolment.check_privacy(settings)
        named["state"] = lambda: enrolment.check_rollback(settings.folders.agent)
        named["speed"] = lambda: enrolment.check_speed(settings.folders.agent, _update_bytes(settings))
    named["files"] = lambda: enrolment.check_modes(settings)
    return named


def _identity(settings: SiteSettings) -> SiteIdentity | str:
    """Return the identity, or one sentence why there is none; empty when this host has not joined."""
    folder = settings.folders.agent / "identity"
    try:
        if not (folder / "tls.pem").exists():
            return ""
        return SiteIdentity(folder)
    except PermissionError:
        return "this user may not read the keys; run doctor as root"
    except (SiteError, FederationError) as error:
        return str(error)


def _enrolment(settings: SiteSettings, identity: SiteIdentity | str) -> CheckResult:
    day = left_on(settings.folders.agent / "identity") if identity == "" else None
    if day is not None:
        return grey("enrolment", f"this host left on {day}", "To come back, ask for an invitation and join")
    if identity == "":
        return grey("enrolment", "this host has not joined", "Run hemofed-site join ADDRESS TOKEN")
    if isinstance(identity, str):
        return red("enrolment", identity, "Restore the state folder from the backup, or join again")
    if identity.site != settings.name:
        return red("enrolment", f"site.toml says {settings.name}, this host is {identity.site}", "Correct name")
    return green("enrolment", f"{identity.site}, roster of {len(identity.roster.entries)} sites")


def _update_bytes(settings: SiteSettings) -> int | None:
    """Return the size of an upload under the newest plan; None without a plan."""
    plans = Plans(settings.folders.agent / "plans").all()
    return Layout.of(plans[0].plan, plans[0].plan.moving.size).bytes if plans else None
