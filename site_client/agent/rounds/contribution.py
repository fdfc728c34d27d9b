"""From a trained update to masked words: clip, check, encode, mask. After this nobody can tell what was in it.

The rounding noise of the encoder is drawn from a generator seeded by the cohort and the update, so that sealing again,
after a crash too, gives the very same bytes and no mask ever lies on two different vectors.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from federation.encoding import Layout, SiteHeader, clip, encode
from federation.plan import TrainingPlan
from federation.secagg import Member
from numpy.typing import NDArray

from site_client.agent.egress.guard import Guard
from site_client.errors import EgressRefused
from site_client.records import Update


@dataclass(frozen=True, eq=False)
class Contribution:
    """What this site puts into the sum. `delta` f32[d] within the clip norm; None in an evaluation-only round.

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
    """Clips and checks an update. Errors: EgressRefused; EncodingRefused when it is not finite."""
    clipped, was_clipped = (None, False) if delta is None else _clip(plan, delta)
    guard.check_update(plan, update, clipped)
    header = SiteHeader(
        studies=update.studies,
        loss_sum=update.loss_sum,
        example_count=update.example_count,
        clipped=was_clipped or update.clipped,
        histograms=np.array(update.histograms, np.int64),
    )
    layout = Layout.of(plan, 0 if clipped is None else plan.manifest.size)
    return Contribution(layout, clipped, header, update.delta_sha256 or b"")


def mask_contribution(member: Member, contribution: Contribution, shares: Mapping[str, bytes]) -> memoryview:
    """The upload: masked words, uint64 little-endian, layout.bytes long.

    shares: ciphertext by peer, from every other member of U2. Errors: whatever `Member.mask` refuses.
    """
    words = encode(contribution.layout, contribution.delta, contribution.header, _rounding(member, contribution))
    return member.mask(words, shares, in_place=True).astype("<u8", copy=False).data.cast("B")


def _clip(plan: TrainingPlan, delta: NDArray[np.float32]) -> tuple[NDArray[np.float32], bool]:
    if delta.dtype != np.float32 or delta.shape != (plan.manifest.size,):
        raise EgressRefused(f"the plan's manifest has {plan.manifest.size} numbers; the update has another shape")
    return clip(delta, plan.encoding.clip_norm)


def _rounding(member: Member, contribution: Contribution) -> np.random.Generator:
    # The cohort's name holds the plan, and with it how the update was clipped.
    named = member.uctx + member.site.encode() + b"\x00" + contribution.delta_sha256
    return np.random.default_rng(int.from_bytes(hashlib.sha256(b"hemofed rounding v2\x00" + named).digest(), "big"))
