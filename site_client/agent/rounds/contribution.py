"""Turns a trained update into masked words: clip, check, encode, mask. Masked words tell nothing about it.

All chance comes from the attempt's coins, 32 secret bytes of the operating system: the dither that rounds coordinates,
and the noise of a private round. So masking again in an attempt, after a crash too, gives the very same bytes, and no
mask ever lies on two different vectors. Another attempt has other coins.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from federation.encoding import Layout, SiteHeader, clip, coarse_header, encode
from federation.encoding.noised import encode_noised
from federation.errors import EncodingRefused
from federation.gate import AUC_CLIP, NO_COMPARISON, NO_COMPARISONS, Comparison, Comparisons, Gate
from federation.plan import TrainingPlan
from federation.privacy import Privacy
from federation.secagg import DealtShares, Member
from numpy.typing import NDArray

from site_client.agent.egress.guard import Guard
from site_client.errors import EgressRefused
from site_client.records import AucLoss, Update


@dataclass(frozen=True, eq=False)
class Contribution:
    """This site's part of the sum.

    Attributes:
        layout: Of the upload.
        delta: f32[d], within the clip norm; of a private round minus the sum of the patients' gradients. None in an
            evaluation-only round.
        header: Weight and metrics, in size classes; of a private round constants, but for the counts of patients.
    """

    layout: Layout
    delta: NDArray[np.float32] | None
    header: SiteHeader

    def __repr__(self) -> str:
        return "Contribution(hidden)"


def prepare_contribution(
    guard: Guard,
    plan: TrainingPlan,
    number: int,
    update: Update,
    delta: NDArray[np.float32] | None,
    predecessor: bytes | None = None,
) -> Contribution:
    """Clip and check an update, and make its header: in size classes, or, in a private round, without any count.

    Args:
        guard: Of the way out.
        plan: Of the round.
        number: Of the round.
        update: As the trainer delivered it.
        delta: f32[d], the moving numbers, or None in an evaluation-only round.
        predecessor: Digest of the model that the round's base model is a candidate against; None if it is none.

    Raises:
        EgressRefused: The delta has another shape than the plan's moving numbers, or the guard withholds the update.
        EncodingRefused: The delta is not finite, in a round without noise.
    """
    if delta is not None and (delta.dtype != np.float32 or delta.shape != (plan.moving.size,)):
        raise EgressRefused(f"{plan.moving.size} numbers move under the plan; the update has another shape")
    layout = Layout.of_round(plan, number)
    if plan.privacy is not None:
        summed = None if delta is None else _within(plan.privacy, delta)
        guard.check_update(plan, update, summed)
        return Contribution(layout, summed, _patients_only(plan.privacy, update))
    clipped, was_clipped = None, False
    if delta is not None:
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
        comparisons=NO_COMPARISONS if plan.gate is None else _comparisons(plan.gate, update, predecessor),
    )
    # Counts that hardly change would follow from the sums of many rounds; only their size classes leave.
    return Contribution(layout, clipped, coarse_header(layout, header))


def mask_contribution(
    member: Member, contribution: Contribution, dealt: Mapping[str, DealtShares], coins: bytes
) -> memoryview:
    """Encode and mask.

    Args:
        member: After it received its shares.
        contribution: Of this site.
        dealt: As the member received it, from every other member of U2.
        coins: 32 secret bytes of this attempt.

    Returns:
        The upload: masked words, uint64 little-endian, layout.bytes long.

    Raises:
        SecaggError: As `Member.mask`.
        EncodingRefused: The cohort is larger than the plan's, in a private round.
    """
    layout, delta, header = contribution.layout, contribution.delta, contribution.header
    # Encoded into words of the ring: masks hide only integers modulo 2^64.
    if layout.privacy is None:
        words = encode(layout, delta, header, np.random.default_rng(int.from_bytes(coins, "big")))
    else:
        words = encode_noised(layout, delta, header.histograms, len(member.cohort), coins)
    # In place: a copy of a large upload would double the peak of memory.
    return member.mask(words, dealt, in_place=True).astype("<u8", copy=False).data.cast("B")


def _comparisons(gate: Gate, update: Update, predecessor: bytes | None) -> Comparisons:
    """Return the trainer's comparisons, within the gate's bounds, if they are with the predecessor."""
    compared = update.comparison
    if compared is None or compared.patients == 0 or compared.earlier_digest != predecessor:
        return NO_COMPARISONS
    most = gate.clip * compared.patients
    # The bound of the sum must not depend on the other process.
    difference_sum = min(most, max(-most, compared.difference_sum))
    loss = Comparison(difference_sum, min(gate.clip * most, compared.square_sum), compared.patients, sites=1)
    return Comparisons(loss, tuple(map(_auc_comparison, compared.labels)))


def _auc_comparison(lost: AucLoss) -> Comparison:
    if lost.positives == 0:
        return NO_COMPARISON
    clipped = min(AUC_CLIP, max(-AUC_CLIP, lost.auc))
    return Comparison(clipped * lost.positives, clipped * clipped * lost.positives, lost.positives, sites=1)


def _within(privacy: Privacy, summed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clip a sum of gradients to the length of the largest batch; one that is not finite counts as of no patient."""
    try:
        return clip(summed, privacy.batch_max * privacy.clip_norm)[0]
    except EncodingRefused:
        # A decline would tell that some patient made the gradient overflow.
        return np.zeros_like(summed)


def _patients_only(privacy: Privacy, update: Update) -> SiteHeader:
    """Return a header that says nothing of the update but the patients in its histograms."""
    histograms = np.minimum(np.array(update.histograms, np.int64), privacy.patients_expected)
    return SiteHeader(studies=1, loss_sum=0.0, example_count=0, clipped=False, histograms=histograms)
