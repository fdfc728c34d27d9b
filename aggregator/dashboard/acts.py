"""The acts that the dashboard offers, each with its consequence in words, and in which state it is offered. Pure.

Acts that need the custodian's key are not among them: that key is on another machine, and a page names the command.
"""

from dataclasses import dataclass
from typing import Final

from aggregator.states import RunState, SiteStanding


@dataclass(frozen=True)
class Act:
    """An act on one site or run.

    Attributes:
        verb: Its name in addresses.
        label: On its button.
        consequence: One or two sentences before it is confirmed.
        outcome: The sentence afterwards; `{name}` is the site or the run.
        typed: Whether the name and the person's password have to be typed, because nothing takes it back.
        asks_why: Whether a reason for the audit is asked for.
    """

    verb: str
    label: str
    consequence: str
    outcome: str
    typed: bool = False
    asks_why: bool = True


SIGN_ROSTER: Final = "Then the custodian has to sign: roster export, hemofed-custodian sign, roster import."

APPROVE = Act(
    "approve",
    "Approve",
    f"It gets a certificate at once, and is let in with the next roster. {SIGN_ROSTER}",
    f"{{name}} is approved. {SIGN_ROSTER}",
    asks_why=False,
)
SUSPEND = Act(
    "suspend",
    "Suspend",
    "No new round takes it and none waits for it, until it is resumed. It stays in the roster, and reads in its own "
    "status that it is suspended.",
    "{name} is suspended: no new round takes it.",
)
RESUME_SITE = Act("resume", "Resume", "Rounds take it again, at the latest the next one.", "{name} takes part again.")
REVOKE = Act(
    "revoke",
    "Revoke",
    f"It is refused from its next call on. Only a new invitation brings it back, with new keys. {SIGN_ROSTER}",
    f"{{name}} is revoked from its next call on. {SIGN_ROSTER}",
    typed=True,
    asks_why=False,
)
WITHDRAW = Act(
    "revoke",
    "Withdraw the invitation",
    "Its token works no more.",
    "The invitation of {name} is withdrawn.",
    asks_why=False,
)
PAUSE = Act(
    "pause",
    "Pause",
    "The round in progress ends as usual; no new one begins until the run is resumed.",
    "{name} is paused; the round in progress ends as usual.",
)
RESUME_RUN = Act("resume", "Resume", "The next round begins as soon as none is in progress.", "{name} goes on.")
CLOSE_NOW = Act(
    "close-now",
    "Close training now",
    "Masking begins with the sites that are ready, without waiting for the others. It needs the plan's minimum.",
    "Training is closed; masking begins with the sites that are ready.",
)
ABORT = Act(
    "abort",
    "Abort",
    "The run ends for good, and every site is told to stop and erase. Updates in progress are thrown away; the models "
    "so far stay.",
    "{name} is aborted; its models stay.",
    typed=True,
)


def site_acts(standing: SiteStanding | None, *, awaits_approval: bool, invited: bool) -> tuple[Act, ...]:
    """Return the acts that fit a site.

    Args:
        standing: Of the site; None for a name that is only invited.
        awaits_approval: Whether keys of it are still to be approved.
        invited: Whether a token of it is unused.
    """
    acts = [APPROVE] if awaits_approval else []
    match standing:
        case SiteStanding.APPROVED:
            acts += [SUSPEND, REVOKE]
        case SiteStanding.SUSPENDED:
            acts += [RESUME_SITE, REVOKE]
        case SiteStanding.PENDING:
            acts += [REVOKE]
        case _:
            acts += [WITHDRAW] if invited else []
    return tuple(acts)


def run_acts(state: RunState, *, in_training: bool) -> tuple[Act, ...]:
    """Return the acts that fit a run.

    Args:
        state: Of the run.
        in_training: Whether its round is in training.
    """
    close = [CLOSE_NOW] if in_training else []
    match state:
        case RunState.RUNNING:
            return (*close, PAUSE, ABORT)
        case RunState.PAUSED:
            return (RESUME_RUN, *close, ABORT)
        case RunState.QUEUED:
            return (ABORT,)
        case _:
            return ()
