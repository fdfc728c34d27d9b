"""Draws the studies of an epoch, and the slices of them that a step reads.

Half of the studies drawn have hemorrhage, and the slices of a study without one come from the heights at which other
patients bleed. Otherwise a network first learns that bleeds lie in the middle of a head, which costs it hundreds of
steps (docs/decisions/0016).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from federation.labels import ANY, LABELS, MISSING
from numpy.typing import NDArray

from site_client.ingest.records import StudyRecord
from site_client.training.study_labels import complete, study_labels

Reals = NDArray[np.float64]

_EPIDURAL: Final = LABELS.index("epidural")
# Share of slabs without an anchor. Without them a network never sees the heights at which no patient bleeds. A backbone
# that is trained on them, too, learns the position first: after 400 steps its AUC at equal height was .64 against .72.
_UNANCHORED: Final = 1 / 4


def epoch_order(studies: Sequence[StudyRecord], rng: np.random.Generator) -> list[int]:
    """Draw the studies of an epoch: half with hemorrhage, epidural ones (the rarest) with double weight.

    Studies with and without hemorrhage alternate, so that every step has both. Each half is drawn without replacement
    until it is exhausted, then again. With studies of one kind only the result is a permutation.

    Returns:
        Indices into `studies`, as many as there are studies.
    """
    drawn = []
    for pool, count in _pools(studies):
        passes_over_pool = [rng.permutation(pool) for _ in range(-(-count // len(pool)))]
        drawn.append(np.concatenate(passes_over_pool)[:count])
    order = np.empty(len(studies), np.int64)
    # With two pools the first takes the even places: it is the larger half where the number of studies is odd.
    for offset, part in enumerate(drawn):
        order[offset :: len(drawn)] = part
    return order.tolist()


def sampling_weights(studies: Sequence[StudyRecord]) -> Reals:
    """Return f64[N]: how often `epoch_order` draws each study in an epoch, in the mean over epochs."""
    weights = np.zeros(len(studies))
    for pool, count in _pools(studies):
        np.add.at(weights, pool, count / len(pool))
    return weights


def _pools(studies: Sequence[StudyRecord]) -> list[tuple[NDArray[np.int64], int]]:
    """The pools of indices that an epoch is drawn from, each with the number of its draws."""
    labels = np.stack([study_labels(study) for study in studies])
    positive = np.flatnonzero(labels[:, ANY] == 1)
    negative = np.flatnonzero(labels[:, ANY] != 1)
    if len(positive) == 0 or len(negative) == 0:
        return [(np.arange(len(studies)), len(studies))]
    epidural = np.flatnonzero(labels[:, _EPIDURAL] == 1)
    half = (len(studies) + 1) // 2
    return [(np.concatenate([positive, epidural]), half), (negative, len(studies) - half)]


class SlabSampler:
    """Draws a slab: some neighbouring slices, N of the T of a study.

    Three slabs in four have an anchor, which lies anywhere in the slab. In a study with hemorrhage the anchor is one of
    its slices with hemorrhage. In another study it is the slice at a height that is drawn from the bleeds of all
    training studies. These slabs train the backbone. The fourth is any slab of its study. It trains what lies behind
    the backbone: how rare bleeds are, and at which heights. Without known bleeds every slab is anchored and any slab.
    """

    def __init__(self, slices: int, bleeds: Reals) -> None:
        """Prepare to draw.

        Args:
            slices: Of a slab, 1 or more.
            bleeds: f64[N], the relative heights 0..1 of slices with hemorrhage, of other studies too.
        """
        self._slices = slices
        self._bleeds = bleeds

    def starts(self, labels: NDArray[np.int8], heights: Reals) -> tuple[Reals, Reals]:
        """Return the probability of each start of a slab.

        Args:
            labels: int8[T,6] of the prepared slices.
            heights: f64[T], their relative heights, ascending.

        Returns:
            Of anchored slabs and of others, f64[T - slices + 1] each; their sum is 1. Of length 1, and anchored, if the
            study is read whole: it has no more slices than a slab, or a slice lacks a label, so that a slab of it would
            lack its study labels.
        """
        count = len(labels) - self._slices + 1
        if count <= 1 or (complete(labels) == MISSING).any():
            return np.ones(1), np.zeros(1)
        anchors = self._anchors(labels, heights)
        if anchors is None:
            return np.full(count, 1 / count), np.zeros(count)
        anchored = np.zeros(count)
        # An anchor lies at each place of its slab with the same probability.
        weights = anchors * (1 - _UNANCHORED) / self._slices
        for offset in range(self._slices):
            # The slab begins `offset` slices below its anchor, or as near to that as the ends of the study allow.
            np.add.at(anchored, (np.arange(len(labels)) - offset).clip(0, count - 1), weights)
        return anchored, np.full(count, _UNANCHORED / count)

    def draw(self, labels: NDArray[np.int8], heights: Reals, rng: np.random.Generator) -> tuple[slice, bool]:
        """Draw a slab with the probabilities of `starts`, and tell whether it is anchored.

        Args:
            labels: int8[T,6] of the prepared slices.
            heights: f64[T], their relative heights, ascending.
            rng: One number is drawn from it, or none for a study that is read whole.
        """
        anchored, others = self.starts(labels, heights)
        count = len(anchored)
        if count == 1:
            return slice(0, len(labels)), True
        drawn = int(rng.choice(2 * count, p=np.concatenate([anchored, others])))
        start = drawn % count
        return slice(start, start + self._slices), drawn < count

    def shown(self, labels: NDArray[np.int8], heights: Reals, *, anchored_only: bool) -> "Shown":
        """Return the slices and slabs that training reads of a study, in the mean over draws.

        Args:
            labels: int8[T,6] of the prepared slices.
            heights: f64[T], their relative heights, ascending.
            anchored_only: Whether the other slabs do not count.
        """
        anchored, others = self.starts(labels, heights)
        slabs = anchored if anchored_only else anchored + others
        if len(slabs) == 1:
            return Shown(np.ones(len(labels)), slabs, complete(labels).max(axis=0, keepdims=True))
        of_slabs = np.lib.stride_tricks.sliding_window_view(complete(labels), self._slices, axis=0).max(axis=-1)
        return Shown(np.convolve(slabs, np.ones(self._slices)), slabs, of_slabs)

    def _anchors(self, labels: NDArray[np.int8], heights: Reals) -> Reals | None:
        """The probability f64[T] of each slice to be the anchor; None without known bleeds."""
        own = complete(labels)[:, ANY] == 1
        if own.any():
            anchors: Reals = own / own.sum()
            return anchors
        if not len(self._bleeds):
            return None
        # The nearest slice of a height is found between the middles of neighbours.
        middles = (heights[1:] + heights[:-1]) / 2
        nearest = np.searchsorted(middles, self._bleeds)
        anchors = np.bincount(nearest, minlength=len(labels)) / len(self._bleeds)
        return anchors


@dataclass(frozen=True, eq=False)
class Shown:
    """The slices and slabs that training reads of a study, in the mean over draws.

    Attributes:
        slices: f64[T], how often each slice is read in a draw.
        slabs: f64[S], the probability of each slab.
        slab_labels: int8[S,6], the labels of each slab.
    """

    slices: Reals
    slabs: Reals
    slab_labels: NDArray[np.int8]
