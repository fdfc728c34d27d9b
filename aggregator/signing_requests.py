"""The files that travel between the aggregator and the custodian's machine: six kinds of file, each of them JSON.

    roster request     `hemofed-aggregator roster export`   the sites to list, and the roster in force
    plan request       `hemofed-aggregator plan export`     the plan
    rollback request   `hemofed-aggregator run rollback`    the rollback, and the plan of its run
    signed roster      `hemofed-custodian sign`             for `hemofed-aggregator roster import`
    signed plan        `hemofed-custodian sign`             for `hemofed-aggregator run start`
    signed rollback    `hemofed-custodian sign`             for `hemofed-aggregator run import-rollback`

A request proves nothing: the custodian's person reads it in words and decides. A signed file is verified wherever it
is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from federation.roster import RosterEntry

from aggregator.errors import RequestRefused
from aggregator.secret_file import write_secret

SIZE_MAX = 64 << 20  # bytes; a roster of 10,000 sites has 17 MB in base64


class RosterRequest(msgspec.Struct, frozen=True, tag="hemofed roster request 1", forbid_unknown_fields=True):
    """The sites that the next roster is to list. The custodian gives it its epoch and its dates."""

    proposed: bytes  # canonical Roster
    in_force: bytes  # serialized SignedRoster; empty before the first


class PlanRequest(msgspec.Struct, frozen=True, tag="hemofed plan request 1", forbid_unknown_fields=True):
    """A plan to sign."""

    plan: bytes  # canonical TrainingPlan


class RollbackRequest(msgspec.Struct, frozen=True, tag="hemofed rollback request 1", forbid_unknown_fields=True):
    """A rollback to sign, and what the custodian is told of it."""

    rollback: bytes  # canonical Rollback
    plan: bytes  # canonical TrainingPlan, of the digest in the rollback
    passed: list[str]  # of each model that the run leaves: its round, digest and standing, in words


class SignedRosterFile(msgspec.Struct, frozen=True, tag="hemofed signed roster 1", forbid_unknown_fields=True):
    """A roster that the custodian has signed."""

    signed: bytes  # serialized SignedRoster


class SignedPlanFile(msgspec.Struct, frozen=True, tag="hemofed signed plan 1", forbid_unknown_fields=True):
    """A plan that the custodian has signed."""

    signed: bytes  # serialized SignedPlan


class SignedRollbackFile(msgspec.Struct, frozen=True, tag="hemofed signed rollback 1", forbid_unknown_fields=True):
    """A rollback that the custodian has signed."""

    signed: bytes  # serialized SignedRollback


Request = RosterRequest | PlanRequest | RollbackRequest
SigningFile = Request | SignedRosterFile | SignedPlanFile | SignedRollbackFile


def write_file(path: Path, content: SigningFile) -> None:
    """Write a file for the other machine; it replaces an older one of that name.

    Raises:
        OSError: When it cannot be written.
    """
    write_secret(path, msgspec.json.format(msgspec.json.encode(content)) + b"\n")


def read_file(path: Path) -> SigningFile:
    """Read a file from the other machine.

    Raises:
        RequestRefused: When it is none of the six kinds.
        OSError: When it cannot be read.
    """
    expected = "expected a file of `roster export`, `plan export`, `run rollback` or `hemofed-custodian sign`"
    with path.open("rb") as file:
        data = file.read(SIZE_MAX + 1)
    if len(data) > SIZE_MAX:
        raise RequestRefused(f"{path}: {expected}, got more than {SIZE_MAX >> 20} MiB")
    try:
        return msgspec.json.decode(data, type=SigningFile)
    except (msgspec.DecodeError, RecursionError):  # msgspec.ValidationError is a DecodeError
        raise RequestRefused(f"{path}: {expected}, got something else") from None


@dataclass(frozen=True)
class RosterChange:
    """The differences of one list of sites from another, by name."""

    added: tuple[RosterEntry, ...]
    removed: tuple[RosterEntry, ...]
    renewed: tuple[tuple[RosterEntry, RosterEntry], ...]  # before and after: the same name with other keys
    unchanged: tuple[RosterEntry, ...]

    @classmethod
    def between(cls, before: Sequence[RosterEntry], after: Sequence[RosterEntry]) -> "RosterChange":
        """Compare two lists."""
        old, new = {entry.site: entry for entry in before}, {entry.site: entry for entry in after}
        return cls(
            added=tuple(entry for entry in after if entry.site not in old),
            removed=tuple(entry for entry in before if entry.site not in new),
            renewed=tuple((old[site], new[site]) for site in new if site in old and old[site] != new[site]),
            unchanged=tuple(entry for entry in after if old.get(entry.site) == entry),
        )

    def __bool__(self) -> bool:
        """Whether there is any difference."""
        return bool(self.added or self.removed or self.renewed)

    def __str__(self) -> str:
        """Write the differences in one clause."""
        parts = (
            ("adds", [entry.site for entry in self.added]),
            ("removes", [entry.site for entry in self.removed]),
            ("renews the keys of", [after.site for _, after in self.renewed]),
        )
        return "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names) or "lists the same sites"
