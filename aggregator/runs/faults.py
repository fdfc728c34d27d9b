"""Members that hold up rounds: their faults, which `store.fault_rows` keeps, and the rounds that they sit out.

A site that is ready and then silent costs all members an attempt. Once is an accident. A site that was silent in rounds
in a row sits out 1, 2, 4 … rounds; an upload that enters a published sum ends the series. A fault that is proven costs
8 rounds, then 16, and no good deed takes it back. So does being the one dealer of every refused sum. Where one member
spoils sums no other can be that; where several do together it may be an honest one (`rounds.regrouping`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from sqlalchemy.orm import Session

from aggregator.sites.roster import eligible
from aggregator.states import FaultKind
from aggregator.store import fault_rows
from aggregator.store.fault_rows import FaultInRound

SILENT_ROUNDS_MAX: Final = 32
PROVEN_ROUNDS: Final = 8
PROVEN_ROUNDS_MAX: Final = 64


def sits_out_until(faults: Sequence[FaultInRound], completed: Collection[int]) -> int:
    """Return the last round that a site sits out; 0 when it sits out none.

    Args:
        faults: Of the site, in one run.
        completed: Numbers of the rounds whose published sum holds its upload.
    """
    last_good = max(completed, default=0)
    silent = sorted({fault.round_number for fault in faults if fault.kind is FaultKind.SILENT})
    silent = [number for number in silent if number > last_good]
    proven = sorted({fault.round_number for fault in faults if fault.kind is not FaultKind.SILENT})
    until = 0
    if len(silent) > 1:  # once is an accident
        until = silent[-1] + min(2 ** (len(silent) - 2), SILENT_ROUNDS_MAX)
    if proven:
        until = max(until, proven[-1] + min(PROVEN_ROUNDS * 2 ** (len(proven) - 1), PROVEN_ROUNDS_MAX))
    return until


def offered_to(session: Session, run_id: bytes, number: int, minimum: int, needed: Collection[str] = ()) -> list[str]:
    """Return the sites that are offered a round: eligible, and not sitting out. See `participants`."""
    sites = eligible(session)
    faults = fault_rows.of_run(session, run_id)
    if not faults:
        return sites
    return participants(sites, number, minimum, faults, fault_rows.completed(session, run_id), needed)


def participants(
    sites: Sequence[str],
    number: int,
    minimum: int,
    faults: Mapping[str, Sequence[FaultInRound]],
    completed: Mapping[str, Collection[int]],
    needed: Collection[str] = (),
) -> list[str]:
    """Return the sites that are not sitting out, in their order.

    Args:
        sites: Of the roster in force.
        number: Of the round.
        minimum: Of the plan. When fewer would be left, silence is forgiven: a round of slow sites beats none.
        faults: By site.
        completed: By site, see `sits_out_until`.
        needed: Without these no cohort can form; their silence is forgiven, too.
    """

    def is_out(site: str, held: Sequence[FaultInRound]) -> bool:
        return number <= sits_out_until(held, completed.get(site, ()))

    proven = {site: [fault for fault in held if fault.kind is not FaultKind.SILENT] for site, held in faults.items()}
    held = {**faults, **{site: proven[site] for site in needed if site in proven}}
    taking_part = [site for site in sites if not is_out(site, held.get(site, ()))]
    if len(taking_part) >= minimum:
        return taking_part
    return [site for site in sites if not is_out(site, proven.get(site, ()))]
