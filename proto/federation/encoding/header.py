"""The header words of an upload: what a site tells about itself, one whole number a word, under the same masks.

Only sums over a cohort are ever decoded. Each value has a largest one for a single site, so that a sum no honest cohort
can have made is refused on decoding, and no sum of 500 sites comes near 2^64.

    word   content, summed over the members
    0      min(studies, cap)
    1      training loss, in units of 2^-20
    2      examples that loss is over
    3      1 when the update was clipped
    4..    histograms [6 labels][negative, positive][64 bins], row-major
    772    under a plan with a gate: clipped differences of a patient's two losses, each plus the clip, in 2^-20
    773    squares of these differences, in units of 2^-20
    774    patients in these sums, at most `patients_max` a member
    775    1 when the member has compared
    776..  the same four words of each of the 6 labels: AUC lost, its square, positive slices, members

Words of a metric that the plan does not list are 0. A private round (`noised`) has a weight of 1 a member, words 1 to 3
are 0, and histogram words count patients, with noise, as signed numbers modulo 2^64.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation.encoding.layout import COUNT_MAX, HEADER_WORDS, HISTOGRAM_SHAPE, Layout
from federation.errors import EncodingRefused
from federation.gate import (
    COMPARISON_UNIT,
    NO_COMPARISONS,
    SMALLEST_CLASS,
    ClipAndCases,
    Comparison,
    Comparisons,
    Gate,
    bounds_of,
)
from federation.labels import BINS, LOGIT_EDGE
from federation.privacy import Privacy, histogram_noise
from federation.vocabulary import Metric

LOSS_UNIT = 2.0**-20
LOSS_MAX = 2.0**31
LOSS_PER_EXAMPLE_MAX = 64.0  # under a plan with a cap; a cross-entropy of 64 means a chance of e^-64 for the truth

_BINS_PER_LOGIT = BINS / (2 * LOGIT_EDGE)


@dataclass(frozen=True, eq=False)
class SiteHeader:
    """The header of one site.

    Attributes:
        studies: Training studies, at least 1. Encoding applies the cap.
        loss_sum: Training loss, summed over `example_count` examples, 0 to 2^31.
        example_count: Examples in `loss_sum`, 0 to 2^32.
        clipped: Whether the update was longer than the clip norm.
        histograms: int64[6, 2, 64], validation slices by label, truth (negative, positive) and `bin_of` the logit
            of the base model.
        comparisons: The base model and its predecessor on this site's validation patients; empty without a gate.

    Raises:
        EncodingRefused: A value is out of range.
    """

    studies: int
    loss_sum: float
    example_count: int
    clipped: bool
    histograms: NDArray[np.int64]
    comparisons: Comparisons = NO_COMPARISONS

    def __post_init__(self) -> None:
        if self.studies < 1:
            raise EncodingRefused(f"expected at least 1 training study, got {self.studies}")
        if not 0 <= self.loss_sum <= LOSS_MAX:
            raise EncodingRefused(f"expected a finite loss sum from 0 to {LOSS_MAX:g}, got {self.loss_sum}")
        if not 0 <= self.example_count <= COUNT_MAX:
            raise EncodingRefused(f"expected 0 to {COUNT_MAX} examples, got {self.example_count}")
        if self.loss_sum > 0 and self.example_count == 0:
            raise EncodingRefused("expected no loss without examples, got some; count the examples it is over")
        _check_histograms(self.histograms)


@dataclass(frozen=True, eq=False)
class HeaderSum:
    """The sum of the headers of a cohort. Metrics that the plan does not list are 0.

    Attributes:
        weight: Sum of min(studies, cap).
        loss_sum: Sum of the members' `loss_sum`.
        example_count: Sum of the members' `example_count`.
        clipped: Members whose update was clipped.
        histograms: int64[6, 2, 64], summed. Of a private round: patients with noise, negative numbers too.
        comparisons: Summed; empty without a gate.
    """

    weight: int
    loss_sum: float
    example_count: int
    clipped: int
    histograms: NDArray[np.int64]
    comparisons: Comparisons = NO_COMPARISONS


def bin_of(logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """Returns the histogram bin, 0 to 63, of each logit: int64, of the same shape.

    The 64 bins divide [-8, 8) evenly; the outermost two also take all logits beyond.

    Raises:
        EncodingRefused: A logit is NaN.
    """
    if np.isnan(logits).any():
        raise EncodingRefused("expected logits, got NaN; the model does not score these inputs")
    inside: NDArray[np.float64] = np.clip(logits.astype(np.float64), -LOGIT_EDGE, LOGIT_EDGE)
    bins: NDArray[np.int64] = ((inside + LOGIT_EDGE) * _BINS_PER_LOGIT).astype(np.int64)
    return np.minimum(bins, BINS - 1)


def write_header(layout: Layout, header: SiteHeader) -> NDArray[np.uint64]:
    """Writes one site's header words, uint64[layout.header_words]. Metrics that the plan does not list stay 0.

    Raises:
        EncodingRefused: A count exceeds the plan's cap; the site has to scale it down. Or the comparison is out of its
            bounds.
    """
    if max(header.example_count, int(header.histograms.sum(axis=2).max())) > layout.count_cap:
        raise EncodingRefused(f"expected counts up to the plan's cap of {layout.count_cap}, got more")
    if header.loss_sum > _loss_max(layout, 1):
        raise EncodingRefused(f"expected a loss sum up to the cap of {_loss_max(layout, 1):g}, got more")
    words = np.zeros(layout.header_words, np.uint64)
    words[0] = min(header.studies, layout.weight_cap)
    words[3] = int(header.clipped)
    if Metric.LOSS in layout.metrics:
        words[1] = round(header.loss_sum / LOSS_UNIT)  # at most 2^51: a sum over 500 members stays below 2^60
        words[2] = header.example_count
    if Metric.HISTOGRAMS in layout.metrics:
        words[4:HEADER_WORDS] = header.histograms.reshape(-1).astype(np.uint64)
    if layout.gate is not None:
        words[HEADER_WORDS:] = _comparison_words(layout.gate, header.comparisons)
    return words


def read_header(layout: Layout, words: NDArray[np.uint64], members: int) -> HeaderSum:
    """Reads the sum of `members` headers, uint64[layout.header_words].

    Raises:
        EncodingRefused: No sum of so many honest headers has this value.
    """
    if layout.privacy is not None:
        return _read_noised(layout, layout.privacy, words, members)
    loss_max = round(_loss_max(layout, members) / LOSS_UNIT) if Metric.LOSS in layout.metrics else 0
    count_max = members * layout.count_cap if Metric.LOSS in layout.metrics else 0
    slices_max = members * layout.count_cap if Metric.HISTOGRAMS in layout.metrics else 0
    _check_range("a weight", int(words[0]), members, members * layout.weight_cap)
    _check_range("a loss sum", int(words[1]), 0, loss_max)
    _check_range("an example count", int(words[2]), 0, count_max)
    _check_range("clipped members", int(words[3]), 0, members)
    # Bin by bin first: a sum of huge words could wrap around.
    counts = words[4:HEADER_WORDS]
    _check_range("histogram counts", int(counts.max()), 0, slices_max)
    slices = counts.reshape(HISTOGRAM_SHAPE).sum(axis=2)
    _check_range("slices of a label", int(slices.max()), 0, slices_max)
    if words[1] > 0 and words[2] == 0:
        raise EncodingRefused("sum: expected no loss without examples, got some")
    return HeaderSum(
        weight=int(words[0]),
        loss_sum=int(words[1]) * LOSS_UNIT,
        example_count=int(words[2]),
        clipped=int(words[3]),
        histograms=counts.astype(np.int64).reshape(HISTOGRAM_SHAPE),
        comparisons=NO_COMPARISONS
        if layout.gate is None
        else _read_comparisons(layout.gate, words[HEADER_WORDS:].tolist(), members),
    )


def _comparison_words(gate: Gate, comparisons: Comparisons) -> list[int]:
    words = []
    for compared, bounds in zip((comparisons.loss, *comparisons.labels), bounds_of(gate), strict=True):
        cases = compared.cases
        if not (cases == 0 or SMALLEST_CLASS <= cases <= bounds.cases_max) or compared.sites != int(cases > 0):
            raise EncodingRefused(f"expected a comparison of up to {bounds.cases_max} cases of one site, got another")
        # Never negative, so that its range can be checked in the sum.
        shifted = round((compared.difference_sum + bounds.clip * cases) / COMPARISON_UNIT)
        squares = round(compared.square_sum / COMPARISON_UNIT)
        differences_max, squares_max = _comparison_max(bounds, cases, 1)
        if not (0 <= shifted <= differences_max and 0 <= squares <= squares_max):
            raise EncodingRefused("expected differences within the clip of the gate, got larger ones")
        words += [shifted, squares, cases, compared.sites]
    return words


def _read_comparisons(gate: Gate, words: list[int], members: int) -> Comparisons:
    read = []
    for place, bounds in enumerate(bounds_of(gate)):
        shifted, squares, cases, sites = words[4 * place : 4 * place + 4]
        _check_range("sites in a comparison", sites, 0, members)
        # A member without cases compares nothing, so that neither number stands alone.
        _check_range("cases in a comparison", cases, SMALLEST_CLASS * sites, sites * bounds.cases_max)
        differences_max, squares_max = _comparison_max(bounds, cases, sites)
        _check_range("differences in a comparison", shifted, 0, differences_max)
        _check_range("squares of differences", squares, 0, squares_max)
        difference_sum = shifted * COMPARISON_UNIT - bounds.clip * cases
        read.append(Comparison(difference_sum, squares * COMPARISON_UNIT, cases, sites))
    return Comparisons(read[0], tuple(read[1:]))


def _comparison_max(bounds: ClipAndCases, cases: int, sites: int) -> tuple[int, int]:
    """Returns the largest sums of so many cases, in units; each site rounds its own once."""
    differences = math.floor(2 * bounds.clip * cases / COMPARISON_UNIT) + sites
    return differences, math.floor(bounds.clip * bounds.clip * cases / COMPARISON_UNIT) + sites


def _read_noised(layout: Layout, privacy: Privacy, words: NDArray[np.uint64], members: int) -> HeaderSum:
    """A private round has a weight of 1 for each member, no loss, and counts that noise may have made negative."""
    signed = words.view(np.int64)
    _check_range("a weight", int(signed[0]), members, members)
    # The words themselves: of -2^63, the absolute value in int64 is negative, and would pass beside a 0.
    _check_range("words beside the histograms", int(words[1:4].max()), 0, 0)
    largest = 0
    if Metric.HISTOGRAMS in layout.metrics:
        tail = histogram_noise(privacy).tail_max(layout.members_min, layout.members_max)
        largest = members * (privacy.patients_expected + tail)
    for extreme in (int(signed[4:].min()), int(signed[4:].max())):
        _check_range("histogram counts", extreme, -largest, largest)
    histograms = signed[4:].reshape(HISTOGRAM_SHAPE).copy()
    return HeaderSum(weight=members, loss_sum=0.0, example_count=0, clipped=0, histograms=histograms)


def _loss_max(layout: Layout, members: int) -> float:
    """Largest loss sum of so many members."""
    return members * (LOSS_MAX if layout.count_cap == COUNT_MAX else LOSS_PER_EXAMPLE_MAX * layout.count_cap)


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise EncodingRefused(
            f"sum: expected {what} from {low} to {high}, got {value}; a member sent words out of range"
        )


def _check_histograms(histograms: NDArray[np.int64]) -> None:
    if histograms.dtype != np.int64 or histograms.shape != HISTOGRAM_SHAPE:
        raise EncodingRefused(
            f"expected histograms int64 {list(HISTOGRAM_SHAPE)}, got {histograms.dtype} {list(histograms.shape)}"
        )
    if histograms.min() < 0 or histograms.max() > COUNT_MAX:
        raise EncodingRefused(f"expected histogram counts from 0 to {COUNT_MAX}, got others")
