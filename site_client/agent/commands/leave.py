"""`hemofed-site leave`: this site goes for good, and the coordinator hears it from the site itself.

Said first, forgotten afterwards: as long as no answer has come, nothing here has changed and the same command says it
again. The aggregator answers a repeated farewell as it answered the first.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from site_client.agent.commands.session import errand
from site_client.agent.egress.calls import LEAVE
from site_client.agent.identity.identity import SiteIdentity, forget, left_on
from site_client.agent.rounds.journal import RoundJournal
from site_client.config import SiteSettings
from site_client.errors import ConfigRefused, IdentityRefused, Unreachable
from site_client.files import remove
from site_client.spool import AgentSide

_PATIENCE_S = 20.0  # somebody waits at a terminal


def leave(settings: SiteSettings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
    """Says farewell, and forgets what opens the aggregator's door; gives one sentence for who typed it.

    Keys and ledger stay, so that the ledger can still be verified. A site that has left already sends nothing.
    Errors: IdentityRefused, ConfigRefused, InUse while the agent runs, Unreachable, Refused.
    """
    folder = settings.folders.agent / "identity"
    if (when := left_on(folder)) is not None:
        return f"this site left on {when} already; nothing was sent"
    identity = SiteIdentity(folder)
    _check(settings, identity, clock())
    _say_farewell(settings, identity, clock)
    _close_round(settings)
    forget(folder, clock())
    remove(settings.folders.agent / "status.json")
    return f"{identity.site} has left: its certificate is no longer accepted. Only a new invitation brings it back"


def _check(settings: SiteSettings, identity: SiteIdentity, now: datetime) -> None:
    if not settings.aggregator.address:
        raise ConfigRefused("aggregator.address in site.toml is empty; ask the coordinator for host:port")
    if now >= identity.expires_at:
        raise IdentityRefused(
            "this site's certificate has ended, so nobody would listen; start the agent once, which asks for a new "
            "one, or ask the coordinator to revoke this site"
        )


def _say_farewell(settings: SiteSettings, identity: SiteIdentity, clock: Callable[[], datetime]) -> None:
    with errand(settings, identity, clock, _PATIENCE_S) as egress:
        try:
            egress.send(LEAVE, LEAVE.request())
        except Unreachable as error:
            raise Unreachable(
                f"no answer from {egress.dest}: this site has not left, and nothing here was changed; `hemofed-site "
                "doctor` says what is in the way, then leave again, or ask the coordinator to revoke this site"
            ) from error


def _close_round(settings: SiteSettings) -> None:
    """A round in progress is over for this site: no job for the trainer, no secret of the masking."""
    spool = AgentSide(settings.folders.spool)
    for job in spool.jobs():
        spool.withdraw_job(job.run_id, job.round)
    RoundJournal(settings.folders.agent / "rounds").close()
