"""From a trained update to masked words: clip, check, round counts, encode, mask. Masked words tell nothing about it.

The rounding noise of the encoder comes from a generator seeded by the cohort and the update. So masking again, after a
crash too, gives the very same bytes, and no mask ever lies on two different vectors.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from federation.encoding import Layout, SiteHeader, clip, coarse_header, encode
from federation.plan import TrainingPlan
from federation.secagg import DealtShares, Member
from numpy.typing import NDArray

from site_client.agent.egress.guard import Guard
from site_client.errors import EgressRefused
from site_client.records import Update


@dataclass(frozen=True, eq=False)
class Contribution:
    """This site's part of the sum.

    Attributes:
        layout: of the upload.
        delta: f32[d] within the clip norm; None in an evaluation-only round.
        header: weight and metrics, in size classes.
        delta_sha256: of the delta as the trainer gave it; empty in an evaluation-only round.
    """

    layout: Layout
    delta: NDArray[np.float32] | None
    header: SiteHeader
    delta_sha256: bytes

    def __repr__(self) -> str:
        return "Contribution(hidden)"


def prepare_contribution(
    guard: Guard, plan: TrainingPlan, update: Update, delta: NDArray[np.float32] | None
) -> Contribution:
    """Clip and check an update, and round its counts down to size classes.

    Args:
        guard: of the way out.
        plan: of the round.
        update: as the trainer delivered it.
        delta: f32[d], or None in an evaluation-only round.

    Raises:
        EgressRefused: the delta has another shape than the plan's manifest, or the guard withholds the update.
        EncodingRefused: the delta is not finite.
    """
    clipped, was_clipped = None, False
    if delta is not None:
        if delta.dtype != np.float32 or delta.shape != (plan.manifest.size,):
            raise EgressRefused(f"the plan's manifest has {plan.manifest.size} numbers; the update has another shape")
        # Clipped again although training has clipped: the bound of the sum must not depend on the other process.
        clipped, was_clipped = clip(delta, plan.encoding.clip_norm)
    # After clipping, on the very vector that is encoded.
    guard.check_update(plan, update, clipped)
    header = SiteHeader(
        studies=update.studies,
        loss_sum=update.loss_sum,
        example_count=update.example_count,
        clipped=was_clipped or update.clipped,
        histograms=np.array(update.histograms, np.int64),
    )
    layout = Layout.of(plan, 0 if clipped is None else plan.manifest.size)
    # Counts that hardly change would follow from the sums of many rounds; only their size classes leave.
    return Contribution(layout, clipped, coarse_header(layout, header), update.delta_sha256 or b"")


def mask_contribution(member: Member, contribution: Contribution, dealt: Mapping[str, DealtShares]) -> memoryview:
    """Encode and mask.

    Args:
        member: after it received its shares.
        contribution: of this site.
        dealt: as the member received it, from every other member of U2.

    Returns:
        The upload: masked words, uint64 little-endian, layout.bytes long.

    Raises:
        SecaggError: as `Member.mask`.
    """
    # The cohort's name holds the plan, and with it the clip norm: the same update always gets the same noise.
    seed = member.uctx + member.site.encode() + b"\x00" + contribution.delta_sha256
    rounding = np.random.default_rng(int.from_bytes(hashlib.sha256(b"hemofed rounding v2\x00" + seed).digest(), "big"))
    # Encoded into words of the ring: masks hide only integers modulo 2^64.
    words = encode(contribution.layout, contribution.delta, contribution.header, rounding)
    # In place: a copy of a large upload would double the peak of memory.
    return member.mask(words, dealt, in_place=True).astype("<u8", copy=False).data.cast("B")
