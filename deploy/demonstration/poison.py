"""The agent of a hospital that poisons one round: `./deploy/demo --poison` starts it in place of `hemofed-site agent`.

In that round the hospital sends its update sign-flipped, and longer than its clip norm allows: masks hide its length,
and the bound on the norm of the whole sum is the only one left. In all else it is an honest site.
"""

from collections.abc import Mapping

import numpy as np
from federation.chain import norm_bound
from federation.encoding import lanes
from federation.encoding.header import write_header
from federation.encoding.rotation import rotate
from federation.plan import TrainingPlan
from federation.secagg import DealtShares, Member
from federation.v1.rounds_pb2 import UploadStep
from numpy.typing import NDArray

from deploy.demonstration.plan_files import POISONED_ROUND
from site_client.agent.rounds import masking, participant
from site_client.agent.rounds.contribution import Contribution, mask_contribution
from site_client.cli import main

# Of the bound: the other updates are in the sum as well, and together they must not pass it.
STRENGTH = 0.7


def poisoned_words(contribution: Contribution, members: int, strength: float) -> NDArray[np.uint64]:
    """Encodes a site's update, sign-flipped, and `strength` times as long as the norm gate lets a whole sum be.

    Args:
        contribution: Of a training round.
        members: Of the cohort, each of this one's weight.
        strength: 1 for the whole bound.

    Returns:
        uint64[layout.words], before masking.
    """
    layout, delta = contribution.layout, contribution.delta
    assert delta is not None  # a training round has one
    weight = min(contribution.header.studies, layout.weight_cap)
    half_step = layout.range / layout.level_max
    # In units of half a step; the other members' updates point the other way and shorten the sum.
    length = strength * norm_bound(layout, members, members * weight) * half_step
    factor = -length / float(np.linalg.norm(delta))
    half_steps = np.concatenate([piece / half_step for piece in rotate(layout, delta.astype(np.float64), factor)])
    levels = np.rint((half_steps + layout.level_max) / 2).astype(np.int64)
    words = np.empty(layout.words, np.uint64)
    words[: layout.header_words] = write_header(layout, contribution.header)
    # A level below 0 borrows from the next lane; in the sum over the cohort it is paid back.
    above, below = np.zeros(layout.words, np.uint64), np.zeros(layout.words, np.uint64)
    lanes.pack(np.maximum(levels, 0), layout.lane_width, above[layout.header_words :])
    lanes.pack(np.maximum(-levels, 0), layout.lane_width, below[layout.header_words :])
    words[layout.header_words :] = (above - below)[layout.header_words :]
    return words


class PoisoningPhases(masking.MaskingPhases):
    """The masking phases, with poisoned words in one round."""

    def upload(self, plan: TrainingPlan, step: UploadStep, contribution: Contribution) -> None:
        """Upload, poisoned in POISONED_ROUND. Raises what `MaskingPhases.upload` does."""

        def mask(
            member: Member, contribution: Contribution, dealt: Mapping[str, DealtShares], coins: bytes
        ) -> memoryview:
            if step.round.round != POISONED_ROUND or contribution.delta is None:
                return mask_contribution(member, contribution, dealt, coins)
            words = poisoned_words(contribution, len(member.cohort), STRENGTH)
            return member.mask(words, dealt, in_place=True).astype("<u8", copy=False).data.cast("B")

        # No honest program has a seam here.
        masking.mask_contribution = mask  # type: ignore[attr-defined]
        super().upload(plan, step, contribution)


if __name__ == "__main__":
    # The participant makes its phases from this name.
    participant.MaskingPhases = PoisoningPhases  # type: ignore[attr-defined]
    main()
