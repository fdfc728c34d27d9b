"""Skellam noise from a secret stream: whole numbers, drawn exactly to 128 bits by inversion of the distribution.

The Skellam variable of variance v is the difference of two Poisson variables of mean v / 2: P(k) = exp(-v) I_k(v), I
the modified Bessel function of the first kind. Sums of such variables are such variables, which no rounded Gaussian is.

A table has the distribution function, in steps of 2^-128. Each draw takes 64 bits of the stream. If they alone do not
decide between two numbers, 64 more are taken. Float64 would not do: its cumulative sums lose the upper tail.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from federation.privacy import Noise

_BITS: Final = 128
_MILLER_BITS: Final = 256  # of the first number of the recurrence: its rounding stays far below 2^-128
_GUIDE_BITS: Final = 20
_UNDECIDED: Final = np.int32(-1)
_CHUNK: Final = 1 << 16
_HALF: Final = np.uint64(64 - _GUIDE_BITS)


class SecretStream:
    """Uniform 64-bit words from a secret key: AES-256 in counter mode. A key and a purpose make one stream."""

    def __init__(self, key: bytes, purpose: int) -> None:
        """Begin a stream.

        Args:
            key: 32 secret bytes of the operating system. They are used for no other stream of this purpose.
            purpose: 0 to 255, tells the streams of one key apart.
        """
        # The purpose is the counter's highest byte: 2^120 blocks stay between two streams.
        nonce = bytes([purpose]) + bytes(15)
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next `count` words: uint64[count]."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), "<u8").astype(np.uint64, copy=False)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return the next `count` numbers of [0, 1), multiples of 2^-53: f64[count]."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class SkellamTable:
    """The distribution of one member's share of noise, cut at `tail`.

    Attributes:
        variance: Variance of the share, in squared steps.
        tail: The largest share that is drawn, in whole steps, and minus the smallest.
    """

    def __init__(self, variance: int, tail: int) -> None:
        """Compute the table.

        Args:
            variance: Of the noise in squared steps, 1 or more.
            tail: The largest number that is drawn, and minus the smallest.
        """
        self.variance, self.tail = variance, tail
        # thresholds[i] is 2^128 P(X <= i - tail): a word w of 128 bits draws the number of thresholds at or below it.
        thresholds = _distribution(variance, tail)
        self._high = np.array([value >> 64 for value in thresholds], np.uint64)
        self._low = np.array([value & (2**64 - 1) for value in thresholds], np.uint64)
        starts = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << _HALF
        # By bucket of high words: the thresholds below all of them. In most buckets no threshold lies.
        first = np.searchsorted(self._high, starts, side="left").astype(np.int32)
        last = np.append(first[1:], np.int32(len(thresholds)))
        self._guide = np.where(first == last, first, _UNDECIDED)

    def draw(self, stream: SecretStream, count: int) -> NDArray[np.int64]:
        """Return the next `count` numbers, int64[count]."""
        drawn = np.empty(count, np.int64)
        for start in range(0, count, _CHUNK):
            part = drawn[start : start + _CHUNK]
            self._draw(stream, part)
        return drawn

    def _draw(self, stream: SecretStream, part: NDArray[np.int64]) -> None:
        words = stream.words(part.size)
        bucket = (words >> _HALF).view(np.int64)
        guided = self._guide.take(bucket)
        part[...] = guided
        undecided = np.flatnonzero(guided == _UNDECIDED)
        high = words[undecided]
        index = np.searchsorted(self._high, high, side="left")
        # Equal high words are decided by 64 more bits; that happens once in 2^64 over the number of thresholds.
        for place in np.flatnonzero(self._high[np.minimum(index, self._high.size - 1)] == high):
            low = stream.words(1)[0]
            while index[place] < self._high.size and self._high[index[place]] == high[place]:
                if self._low[index[place]] > low:
                    break
                index[place] += 1
        part[undecided] = index
        part -= self.tail


def table_of(noise: Noise, members: int) -> SkellamTable:
    """Return the table of one member's share, in whole steps, in a cohort of so many."""
    return _table(noise.share_variance(members), noise.tail(members))


@lru_cache(maxsize=2)  # one of gradients and one of histograms, in every attempt of a run
def _table(variance: int, tail: int) -> SkellamTable:
    return SkellamTable(variance, tail)


def _distribution(variance: int, tail: int) -> list[int]:
    """2^128 P(X <= k) for k from -tail to tail - 1, rounded; X is cut at -tail and tail."""
    weights = _bessel(variance, tail)
    total = weights[0] + 2 * sum(weights[1:])
    cumulative, sums = 0, []
    for k in range(-tail, tail):
        cumulative += weights[abs(k)]
        sums.append((cumulative << _BITS) // total)
    return sums


def _bessel(variance: int, tail: int) -> list[int]:
    """Numbers in proportion to I_0(v) .. I_tail(v), by Miller's backward recurrence I_{k-1} = I_{k+1} + (2k / v) I_k.

    Backward it is stable: an error of the start dies out. It begins well beyond the tail, from 0 and 1.
    """
    above, here = 0, 1 << _MILLER_BITS
    numbers = []
    for k in range(tail + tail // 2 + 64, 0, -1):
        above, here = here, above + 2 * k * here // variance
        if k <= tail + 1:
            numbers.append(here)  # of k - 1
    return numbers[::-1]
