"""The facts of one round that the aggregator could see and those that it could not, in words. Pure.

The words follow the phases that the round went through, in all attempts: a message that had not arrived was not seen.
docs/SECURITY.md states the assumptions behind them.
"""

from collections.abc import Set
from dataclasses import dataclass

from aggregator.states import RoundState


@dataclass(frozen=True)
class Visibility:
    """Two lists of facts about a round."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def visibility(
    reached: Set[RoundState], members: int | None, *, trains: bool = True, evaluates: bool = True, private: bool = False
) -> Visibility:
    """Say what was visible of a round.

    Args:
        reached: Every state that the round has been in.
        members: Uploads in its decoded sum; None while there is none.
        trains: Whether updates are in the sum.
        evaluates: Whether score histograms are.
        private: Whether everything in it has noise.
    """
    seen = ["which sites were asked, which took part or why not, when, and how many bytes each sent"]
    if RoundState.KEYS in reached:
        seen.append("the members' public keys and signatures")
    if RoundState.SHARES in reached:
        seen.append("shares of the members' masking secrets, encrypted from site to site: unreadable here")
    if RoundState.UPLOAD in reached:
        seen.append("the members' words under their masks: each alone looks like random numbers")
    if members is not None:
        seen.append(f"the sum of {_content(trains, evaluates, private)} over {members} sites together")
    elif RoundState.AGGREGATING in reached:
        # The shares are there even if the arithmetic failed: the page must not promise that the sum stayed hidden.
        seen.append("enough shares to unmask the sum of the cohort; no model was published from it")
    else:
        seen.append("no sum: none was decoded" if RoundState.ABANDONED in reached else "no sum: none is decoded yet")
    return Visibility(tuple(seen), UNSEEN)


def _content(trains: bool, evaluates: bool, private: bool) -> str:
    training = "clipped gradients" if private else "updates, weights, losses, counts"
    parts = [training] * trains + ["score histograms"] * evaluates
    return " and ".join(parts) + (" with noise" if private else "")


UNSEEN = (
    "any one site's update, weight, loss, number of studies or scores",
    "images, reports, labels, names, dates or identifiers: these never leave a hospital",
    "which site contributed what to the sum",
)
