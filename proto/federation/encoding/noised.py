"""A private round's words: the sum of clipped gradients, rounded with a dither, and noise on it before any mask.

    gradient sum -> length at most batch_max clip norms -> rotate (f64) -> clip coordinates -> floor(x + u) -> + noise
    histograms   -> at most patients_expected a cell                                                       -> + noise

Everything before the noise changes by one patient's part at most, because each step moves two inputs no further apart:
lengths and cells are cut by projections, the rotation keeps lengths, and floor(a + u) - floor(b + u) is a stochastic
rounding of a - b (docs/PRIVACY.md). u, the noise, and nothing else come from `coins`.
"""

import numpy as np
from numpy.typing import NDArray

from federation.encoding import lanes
from federation.encoding.layout import HEADER_WORDS, HISTOGRAM_SHAPE, Layout
from federation.encoding.quantize import norm_of
from federation.encoding.rotation import rotate
from federation.encoding.skellam import SecretStream, SkellamTable, table_of
from federation.errors import EncodingRefused
from federation.privacy import GradientNoise, histogram_noise
from federation.vocabulary import Metric

COINS_BYTES = 32
CELLS = 16  # of 64 bins: each takes the counts of four, so that less noise comes on the same counts
_STRIDE = HISTOGRAM_SHAPE[2] // CELLS
_DITHER, _VECTOR_NOISE, _HISTOGRAM_NOISE = range(3)  # purposes of the streams
_CHUNK = 1 << 16


def encode_noised(
    layout: Layout,
    gradient: NDArray[np.float32] | None,
    histograms: NDArray[np.int64],
    members: int,
    coins: bytes,
) -> NDArray[np.uint64]:
    """Encodes a site's part of a private round: uint64[layout.words], before masking.

    Args:
        layout: Layout of the round, of a plan with privacy.
        gradient: f32[layout.parameters], the sum of the clipped gradients of the patients drawn; zeros if none were.
            None in an evaluation-only round.
        histograms: int64[6, 2, 64], each validation patient in one cell a label. Zeros in a round without evaluation.
        members: Size of the cohort. It decides the site's share of the noise.
        coins: 32 secret bytes, drawn from the operating system for this attempt.

    Raises:
        EncodingRefused: The gradient has another length or is not finite, or the cohort is none of the plan.
    """
    if layout.privacy is None or len(coins) != COINS_BYTES:
        raise EncodingRefused("expected a private plan and 32 secret bytes, got others")
    if not layout.members_min <= members <= layout.members_max:
        raise EncodingRefused(f"expected {layout.members_min} to {layout.members_max} members, got {members}")
    words = np.empty(layout.words, np.uint64)
    words[:HEADER_WORDS] = _header(layout, histograms, members, coins)
    if layout.gradient is None:
        if gradient is not None:
            raise EncodingRefused("expected no update in an evaluation-only round, got one")
        return words
    if gradient is None or gradient.dtype != np.float32 or gradient.shape != (layout.parameters,):
        raise EncodingRefused(f"expected a sum of gradients float32 [{layout.parameters}], got another")
    levels = _levels(layout, layout.gradient, gradient, table_of(layout.gradient.noise, members), coins)
    lanes.pack(levels, layout.lane_width, words[HEADER_WORDS:])
    return words


def merged(histograms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns histograms int64[6, 2, 64] with the counts of four bins in the first of them."""
    cells = np.zeros_like(histograms)
    cells[:, :, ::_STRIDE] = histograms.reshape(*HISTOGRAM_SHAPE[:2], CELLS, _STRIDE).sum(axis=3)
    return cells


def _header(layout: Layout, histograms: NDArray[np.int64], members: int, coins: bytes) -> NDArray[np.uint64]:
    assert layout.privacy is not None  # encode_noised refuses others
    words = np.zeros(HEADER_WORDS, np.int64)
    words[0] = 1  # a constant weight: it must not tell the number of patients
    if Metric.HISTOGRAMS in layout.metrics:
        cells = np.minimum(merged(histograms), layout.privacy.patients_expected)
        drawn = table_of(histogram_noise(layout.privacy), members).draw(
            SecretStream(coins, _HISTOGRAM_NOISE), cells.size // _STRIDE
        )
        cells[:, :, ::_STRIDE] += drawn.reshape(*HISTOGRAM_SHAPE[:2], CELLS)
        words[4:] = cells.reshape(-1)
    # Negative numbers are added in the ring of masks as any others.
    return words.view(np.uint64)


def _levels(
    layout: Layout, steps: GradientNoise, gradient: NDArray[np.float32], table: SkellamTable, coins: bytes
) -> NDArray[np.int64]:
    dither, noise = SecretStream(coins, _DITHER), SecretStream(coins, _VECTOR_NOISE)
    length = norm_of(gradient)
    factor = steps.scale * (1.0 if length <= steps.longest else steps.longest / length)
    levels = np.empty(layout.coordinates, np.int64)
    begin = 0
    # In float64: float32 would round x + u once more, and floor(x + u) would no longer be a shift of a lattice.
    for piece in rotate(layout, gradient.astype(np.float64), factor):
        for start in range(0, piece.size, _CHUNK):
            part = piece[start : start + _CHUNK]
            _cut(part, steps.bound)
            part += dither.uniform(part.size)
            np.floor(part, out=part)
            # bound + 0.99… may be rounded to bound + 1 by the addition.
            _cut(part, steps.bound)
            part += layout.level_max // 2
            words = levels[begin : begin + part.size]
            np.add(table.draw(noise, part.size), part, out=words, casting="unsafe")  # both are whole numbers
            begin += part.size
    return levels


def _cut(part: NDArray[np.float64], bound: int) -> None:
    """Clip in place, in a third of the time of np.clip."""
    np.maximum(part, -bound, out=part)
    np.minimum(part, bound, out=part)
