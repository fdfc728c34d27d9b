"""Skellam noise: the distribution it claims, from a stream that nobody can predict."""

from collections import Counter

import mpmath  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from federation.encoding.skellam import SecretStream, SkellamTable
from scipy import stats

KEY = bytes(range(32))


@pytest.mark.parametrize(("variance", "tail"), [(1, 60), (6, 78), (100, 168), (5000, 897)])
def test_probabilities_are_those_of_the_skellam_distribution_to_120_bits(variance: int, tail: int) -> None:
    table = SkellamTable(variance, tail)
    thresholds = [(int(high) << 64) + int(low) for high, low in zip(table._high, table._low, strict=True)]
    with mpmath.workdps(60):
        scale = mpmath.exp(-variance)
        for k in {-tail + 1, -variance, -3, 0, 1, 2 * variance, tail - 1} & set(range(-tail + 1, tail)):
            mass = mpmath.mpf(thresholds[k + tail] - thresholds[k + tail - 1]) / 2**128
            # I_-k is I_k (DLMF 10.27.1), and mpmath takes half a minute for some negative orders.
            assert abs(mass - scale * mpmath.besseli(abs(k), variance)) < mpmath.mpf(2) ** -120


@pytest.mark.parametrize("variance", [3, 2000])
def test_draws_have_the_distribution(variance: int) -> None:
    drawn = SkellamTable(variance, 600).draw(SecretStream(KEY, 1), 400_000)
    edges = np.unique(np.rint(stats.norm.ppf(np.linspace(0.01, 0.99, 40)) * np.sqrt(variance))).astype(int)
    counts = np.histogram(drawn, [-10_000, *(edges + 0.5), 10_000])[0]
    cumulative = np.array([0, *stats.skellam.cdf(edges, variance / 2, variance / 2), 1])
    assert stats.chisquare(counts, np.diff(cumulative) * drawn.size).pvalue > 1e-4


def test_sums_of_shares_have_the_variance_of_all_of_them() -> None:
    table = SkellamTable(1000, 428)
    total = sum(table.draw(SecretStream(bytes([number]) * 32, 1), 200_000) for number in range(4))
    assert np.var(total) == pytest.approx(4000, rel=0.02)
    assert abs(np.mean(total)) < 1


def test_one_key_gives_the_same_draws_and_another_key_or_purpose_others() -> None:
    table = SkellamTable(100, 168)
    drawn = [
        table.draw(SecretStream(key, purpose), 1000).tolist()
        for key, purpose in ((KEY, 1), (KEY, 1), (KEY, 2), (bytes(32), 1))
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(numbers) for numbers in drawn}) == 3


def test_the_stream_is_aes_in_counter_mode_and_its_length_of_requests_does_not_matter() -> None:
    whole = SecretStream(KEY, 3).words(100).tobytes()
    encryptor = Cipher(algorithms.AES(KEY), modes.CTR(bytes([3]) + bytes(15))).encryptor()
    assert whole == encryptor.update(bytes(800))
    stream = SecretStream(KEY, 3)
    assert stream.words(37).tobytes() + stream.words(63).tobytes() == whole


def test_uniform_numbers_fill_the_interval() -> None:
    numbers = SecretStream(KEY, 0).uniform(100_000)
    assert 0 <= numbers.min() < 1e-3
    assert 0.999 < numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4


def test_a_word_on_a_threshold_is_decided_by_the_next_bits() -> None:
    """A stream whose first words lie exactly on a threshold: both outcomes come, by the low half."""

    class Fixed(SecretStream):
        def __init__(self, words: list[int]) -> None:
            self._words = words

        def words(self, count: int) -> np.ndarray:
            taken, self._words = self._words[:count], self._words[count:]
            return np.array(taken, np.uint64)

    table = SkellamTable(6, 78)
    high, low = int(table._high[78]), int(table._low[78])  # 2^128 P(X <= 0)
    assert 0 < low < 2**64 - 1
    drawn = {low_word: table.draw(Fixed([high, low_word]), 1)[0] for low_word in (low - 1, low, low + 1)}
    assert drawn == {low - 1: 0, low: 1, low + 1: 1}


def test_extreme_words_give_the_ends_of_the_table() -> None:
    class Constant(SecretStream):
        def __init__(self, word: int) -> None:
            self._word = word

        def words(self, count: int) -> np.ndarray:
            return np.full(count, self._word, np.uint64)

    table = SkellamTable(6, 78)
    seen = Counter(int(table.draw(Constant(word), 1)[0]) for word in (0, 2**64 - 1))
    assert min(seen) >= -78
    assert max(seen) <= 78
    assert min(seen) < -20
    assert max(seen) > 20
