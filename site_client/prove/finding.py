"""What was shown, what was shown to be broken, and what could not be shown."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    SHOWN = "shown"
    BROKEN = "broken"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Finding:
    """One claim about this machine, and what was seen of it."""

    claim: str
    verdict: Verdict
    evidence: tuple[str, ...] = ()
