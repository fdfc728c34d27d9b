"""A finding: a claim that was shown, shown to be broken, or could not be shown."""

from dataclasses import dataclass
from enum import StrEnum


class ProofOutcome(StrEnum):
    """The outcome of a claim."""

    SHOWN = "shown"
    BROKEN = "broken"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class ProofFinding:
    """One claim about this machine, its outcome, and the evidence."""

    claim: str
    outcome: ProofOutcome
    evidence: tuple[str, ...] = ()
