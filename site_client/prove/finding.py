"""What was shown, what was shown to be broken, and what could not be shown."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    SHOWN = "shown"
    BROKEN = "broken"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class ProofFinding:
    """One claim about this machine, and what was seen of it."""

    claim: str
    outcome: Outcome
    evidence: tuple[str, ...] = ()
