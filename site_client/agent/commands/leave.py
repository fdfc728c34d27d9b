"""`hemofed-site leave`: this site leaves for good, and tells the coordinator itself.

The message goes first, the certificate afterwards. Until an answer has come, nothing here has changed, and the same
command sends the message again. The aggregator answers a repeated message as it answered the first.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from site_client.agent.commands.session import session
from site_client.agent.egress.calls import LEAVE
from site_client.agent.identity.identity import SiteIdentity, forget, left_on
from site_client.agent.rounds.journal import RoundJournal
from site_client.config import SiteSettings
from site_client.errors import ConfigRefused, IdentityRefused, Unreachable
from site_client.files import remove
from site_client.spool import AgentSide

_PATIENCE_S: Final = 20.0  # for an answer: a person waits at a terminal


def leave(settings: SiteSettings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
    """Tell the aggregator, close the round in progress, and remove the TLS certificate.

    Keys and ledger stay, so that the ledger can still be verified. A site that has left already sends nothing.

    Returns:
        One sentence for the person who typed the command.

    Raises:
        IdentityRefused: This host has not joined, or its certificate has expired.
        ConfigRefused: The settings have no aggregator.
        InUse: The agent is running.
        Unreachable, Refused: The aggregator did not hear it, or does not accept it; nothing here was changed.
    """
    folder = settings.folders.agent / "identity"
    if (day := left_on(folder)) is not None:
        return f"this site left on {day} already; nothing was sent"
    identity = SiteIdentity(folder)
    if not settings.aggregator.address:
        raise ConfigRefused("aggregator.address in site.toml is empty; ask the coordinator for host:port")
    if clock() >= identity.expires_at:
        raise IdentityRefused(
            "this site's certificate has expired, so the aggregator would not accept the message; start the agent "
            "once, which requests a new one, or ask the coordinator to revoke this site"
        )
    # First: without an answer everything below stays undone, and the command can be repeated.
    _tell_aggregator(settings, identity, clock)
    _close_round(settings)
    forget(folder, clock())
    # A status of a site that has left would look like that of a stopped agent.
    remove(settings.folders.agent / "status.json")
    return f"{identity.site} has left: its certificate is no longer accepted. Only a new invitation brings it back"


def _tell_aggregator(settings: SiteSettings, identity: SiteIdentity, clock: Callable[[], datetime]) -> None:
    with session(settings, identity, clock, _PATIENCE_S) as egress:
        try:
            egress.send(LEAVE, LEAVE.request())
        except Unreachable as error:
            raise Unreachable(
                f"no answer from {egress.dest}: this site has not left, and nothing here was changed; `hemofed-site "
                "doctor` says what is in the way, then leave again, or ask the coordinator to revoke this site"
            ) from error


def _close_round(settings: SiteSettings) -> None:
    """End the round in progress for this site: no job for the trainer, no secret of the masking."""
    spool = AgentSide(settings.folders.spool)
    for job in spool.jobs():
        spool.withdraw_job(job.run_id, job.round)
    RoundJournal(settings.folders.agent / "rounds").close()
