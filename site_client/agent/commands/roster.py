"""`hemofed-site roster`: the hospitals of the consortium, and which of them a person here accepts."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.fingerprint import custodian_words
from federation.roster import Roster, RosterEntry

from site_client.agent.identity.identity import SiteIdentity
from site_client.config import SiteSettings
from site_client.errors import StateRefused, StateUnreadable

_SHOWN_DIGITS: Final = 16  # of a fingerprint; `hemofed-custodian review` writes as many


def show(settings: SiteSettings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
    """Describe the roster that this site holds, and which hospitals do not count yet.

    Raises:
        IdentityRefused: This host has not joined.
        StateRefused: A file of the state folder is damaged.
    """
    identity = SiteIdentity(settings.folders.agent / "identity")
    waiting = identity.known_sites.waiting(identity.roster, settings.policy, clock())
    notes = {
        entry.site: "waits for you: roster approve" if counts_from is None else f"counts from {counts_from:%Y-%m-%d}"
        for entry, counts_from in waiting
    }
    return describe(identity.roster, identity.custodian, identity.site, notes)


def approve(
    settings: SiteSettings,
    confirm: Callable[[str], bool],
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> str:
    """Let the hospitals that wait count from now on, if the person who is shown them agrees.

    Args:
        settings: Of this site.
        confirm: Shows a text and returns the answer.
        clock: Aware time.

    Returns:
        One sentence for the person who typed the command.

    Raises:
        IdentityRefused: This host has not joined.
        StateRefused: A file of the state folder is damaged.
    """
    identity = SiteIdentity(settings.folders.agent / "identity")
    try:
        waiting = [entry for entry, _ in identity.known_sites.waiting(identity.roster, settings.policy, clock())]
    except StateUnreadable:
        raise
    except StateRefused:  # no record of those approved before: all are asked about, and the record is written anew
        waiting = list(identity.roster.entries)
    if not waiting:
        return "no hospital waits; all that the roster holds are known here"
    if not confirm("\n".join(["Hospitals that this one does not know yet:", *map(_line, waiting)])):
        return "nothing was changed: they still wait"
    # Exactly what was shown: the agent may have taken a newer roster meanwhile.
    identity.known_sites.approve(identity.roster.entries)
    return f"known from now on: {', '.join(entry.site for entry in waiting)}"


def describe(roster: Roster, custodian: Ed25519PublicKey, site: str, notes: dict[str, str]) -> str:
    """Describe a roster in words.

    Args:
        roster: The roster.
        custodian: The key that signed it.
        site: This hospital's own name.
        notes: By name, for hospitals of which there is something to say.
    """
    end = "without an end" if roster.expires_at is None else f"until {roster.expires_at:%Y-%m-%d}"
    lines = [f"Roster of epoch {roster.epoch}, {end}; signed by the custodian with the key"]
    lines.append(f"  {custodian_words(custodian.public_bytes_raw())}")
    for entry in roster.entries:
        note = "this hospital" if entry.site == site else notes.get(entry.site, "")
        lines.append(f"{_line(entry)}  {note}".rstrip())
    return "\n".join(lines)


def _line(entry: RosterEntry) -> str:
    return f"  {entry.site:<33}keys {entry.fingerprint.hex()[:_SHOWN_DIGITS]}"
