"""What the aggregator could and could not see of one round, in words for an administrator. Pure.

The words follow the phases the round went through, in all attempts: what had not arrived cannot have been seen.
docs/SECURITY.md states the assumptions behind them.
"""

from collections.abc import Set
from dataclasses import dataclass

from aggregator.states import RoundState


@dataclass(frozen=True)
class Visibility:
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def visibility(reached: Set[RoundState], members: int | None, *, evaluation_only: bool) -> Visibility:
    """`reached`: every state the round has been in. `members`: uploads in its opened sum, None while none is open."""
    seen = ["which sites were asked, which took part or why not, when, and how many bytes each sent"]
    if RoundState.KEYS in reached:
        seen.append("the members' public keys and signatures")
    if RoundState.SHARES in reached:
        seen.append("shares of the members' masking secrets, encrypted from site to site: unreadable here")
    if RoundState.UPLOAD in reached:
        seen.append("the members' words under their masks: each alone looks like random numbers")
    if members is not None:
        what = "score histograms" if evaluation_only else "updates, weights, losses, counts and score histograms"
        seen.append(f"the sum of {what} over {members} sites together")
    elif RoundState.AGGREGATING in reached:
        seen.append("enough shares to open the sum of the cohort; no model was published from it")
    else:
        seen.append("no sum: none was opened" if RoundState.ABANDONED in reached else "no sum: none is open yet")
    return Visibility(tuple(seen), _UNSEEN)


_UNSEEN = (
    "any one site's update, weight, loss, number of studies or scores",
    "images, reports, labels, names, dates or identifiers: these never leave a hospital",
    "which site contributed what to the sum",
)
