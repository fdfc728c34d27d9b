"""The hospitals that this one knows: names with their keys, as a person here accepted them or as time made them known.

    <state>/agent/identity/
      approved.json  {name: SHA-256 over both keys}; written by `join` and `roster approve`
      seen.json      {name: {"keys": SHA-256, "at": time}}; written by the agent when a roster brings something new

A custodian could sign invented hospitals, and the coordinator could know their parts of a sum. So a name that is added
to the roster, or whose keys change, waits. Until it is known, it does not count: neither toward the least cohort of
this hospital nor toward the two thirds of a cohort that must be honest.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from federation.roster import Roster, RosterEntry
from federation.secagg import CohortRefused, ConfirmationRefused, threshold

from site_client.config import PolicySettings
from site_client.errors import StateRefused, StateUnreadable
from site_client.files import replace_file, set_aside
from site_client.records import AwareTime
from site_client.typed_json import Digest, decode_state, encode_state
from site_client.untrusted_files import read_regular

_T = TypeVar("_T")
_SIZE_MAX: Final = 4 << 20  # bytes; 10 000 hospitals have 2 MiB
_ADVICE: Final = "run `hemofed-site roster approve`, which asks about every hospital of the roster again"


@dataclass(frozen=True)
class Seen:
    """The time at which a roster first brought these keys under a name."""

    keys: Digest
    at: AwareTime


class KnownSites:
    """The two files. Without approved.json the roster in force is known: the site joined with version 0.1.0."""

    def __init__(self, folder: Path) -> None:
        self._approved, self._seen = folder / "approved.json", folder / "seen.json"

    def approve(self, entries: Collection[RosterEntry]) -> None:
        """Record that a person here accepts exactly these names with these keys. Others are forgotten."""
        replace_file(self._approved, encode_state({entry.site: Digest(entry.fingerprint) for entry in entries}))

    def keep(self, roster: Roster) -> None:
        """Record the roster of a site that joined with version 0.1.0, before another one replaces it."""
        if not self._approved.exists():
            self.approve(roster.entries)

    def observe(self, roster: Roster, now: datetime) -> None:
        """Record when a name or its keys were first seen; from then on the days of `roster_wait_days` count."""
        seen = self._read_seen()
        current = {
            entry.site: found
            if (found := seen.get(entry.site)) is not None and found.keys == entry.fingerprint
            else Seen(Digest(entry.fingerprint), now)
            for entry in roster.entries
        }
        if current != seen:
            replace_file(self._seen, encode_state(current))

    def known(self, roster: Roster, policy: PolicySettings, now: datetime) -> frozenset[str]:
        """Return the names of the roster that count."""
        waiting = self.waiting(roster, policy, now)
        return frozenset(roster.signing_keys) - {entry.site for entry, _ in waiting}

    def waiting(
        self, roster: Roster, policy: PolicySettings, now: datetime
    ) -> list[tuple[RosterEntry, datetime | None]]:
        """Return the entries of the roster that do not count yet, and when each will; None: when a person says so.

        Raises:
            StateRefused: approved.json is damaged.
        """
        if not self._approved.exists():
            return []
        approved, seen = self._read(dict[str, Digest], self._approved), self._read_seen()
        waiting: list[tuple[RosterEntry, datetime | None]] = []
        for entry in roster.entries:
            if approved.get(entry.site) == entry.fingerprint:
                continue
            found, counts_from = seen.get(entry.site), None
            if policy.roster_approval == "wait":
                # Not observed yet: it was seen at this moment.
                seen_at = found.at if found is not None and found.keys == entry.fingerprint else now
                counts_from = seen_at + timedelta(days=policy.roster_wait_days)
            if counts_from is None or counts_from > now:
                waiting.append((entry, counts_from))
        return waiting

    def _read_seen(self) -> dict[str, Seen]:
        if not self._seen.exists():
            return {}
        try:
            return self._read(dict[str, Seen], self._seen)
        except StateUnreadable:
            raise
        except StateRefused as error:
            # The safe side: a hospital that waits for its days waits for all of them again.
            set_aside(self._seen, str(error), "the days of policy.roster_wait_days count from now on")
            return {}

    def _read(self, kind: type[_T], path: Path) -> _T:
        try:
            return decode_state(kind, read_regular(path, _SIZE_MAX), size_max=_SIZE_MAX)
        except OSError as error:
            raise StateUnreadable.of(path.name, error) from error
        except ValueError as error:
            raise StateRefused(f"{path.name} in the state folder is damaged ({error}); {_ADVICE}") from None


def check_cohort(cohort: Collection[str], known: Collection[str], minimum: int) -> None:
    """Refuse a cohort in which the hospitals unknown here could be too many.

    They may all be one party that works with the aggregator. With a third of the members or more it could have single
    updates opened; and what it does not know of a sum are the parts of the others alone.

    Args:
        cohort: U1, the names of all members.
        known: Names that count.
        minimum: The least cohort of this hospital.

    Raises:
        CohortRefused: Fewer than `minimum` or than t = ⌊2n/3⌋ + 1 of the n members are known.
    """
    counted, needed = len(set(cohort) & set(known)), max(minimum, threshold(len(cohort)))
    if counted < needed:
        raise CohortRefused(
            f"{counted} of the {len(cohort)} hospitals in the cohort are known here, at least {needed} are needed; "
            "`hemofed-site roster show` names those that wait"
        )


def check_uploaded(uploaded: Collection[str], cohort: Collection[str], known: Collection[str]) -> None:
    """Refuse a set of uploads with fewer known hospitals than a cohort of them alone would have to upload.

    Raises:
        ConfirmationRefused: There are fewer.
    """
    counted, needed = len(set(uploaded) & set(known)), threshold(len(set(cohort) & set(known)))
    if counted < needed:
        raise ConfirmationRefused(
            f"{counted} of the {len(uploaded)} hospitals in the sum are known here, at least {needed} are needed"
        )
