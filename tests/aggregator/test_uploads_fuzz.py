"""Masked uploads that are not what they should be: any bytes at all are a sum, or refused by a typed error."""

import hashlib

import numpy as np
import pytest
from federation import secagg
from federation.encoding import DecodedSum, Layout, SiteHeader, decode_sum, encode
from federation.errors import EncodingRefused
from federation.vocabulary import Metric
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.errors import NotFound
from aggregator.rounds.aggregation import sum_uploads
from aggregator.store.blobs import Blobs

LAYOUT = Layout(100, 6, 8, 1.0, 1000, bytes(32), frozenset(Metric))


def honest(seed: int) -> np.ndarray:
    header = SiteHeader(40, 12.5, 80, False, np.full((6, 2, 64), seed, np.int64))
    delta = np.random.default_rng(seed).standard_normal(100).astype(np.float32)
    return encode(LAYOUT, delta / np.linalg.norm(delta), header, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Blobs:
    return Blobs(tmp_path_factory.mktemp("uploads"), 1 << 20)


def opened(uploads: Blobs, blobs: list[bytes]) -> DecodedSum:
    digests = {f"site-{index}": uploads.add(blob).digest for index, blob in enumerate(blobs)}
    return decode_sum(LAYOUT, sum_uploads(uploads, digests, LAYOUT.words, lambda: None), len(blobs))


@settings(deadline=None, max_examples=50)
@given(data=st.binary(min_size=1, max_size=2 * LAYOUT.bytes))
def test_an_upload_of_another_length_is_refused(uploads: Blobs, data: bytes) -> None:
    data = data if len(data) != LAYOUT.bytes else data[:-1]
    with pytest.raises(secagg.MalformedValue, match=f"expected an upload of {LAYOUT.bytes} bytes"):
        opened(uploads, [honest(0).tobytes(), data])


@settings(deadline=None, max_examples=50)
@given(data=st.binary(min_size=1, max_size=300), at=st.integers(0, LAYOUT.bytes - 1))
def test_any_bytes_in_an_upload_are_in_range_or_refused(uploads: Blobs, data: bytes, at: int) -> None:
    altered = bytearray(honest(1).tobytes())
    altered[at : at + len(data)] = data[: LAYOUT.bytes - at]
    try:
        found = opened(uploads, [honest(0).tobytes(), bytes(altered)])
    except EncodingRefused:
        return
    assert 0 <= found.levels.min() <= found.levels.max() <= 2 * LAYOUT.level_max


@settings(deadline=None, max_examples=50)
@given(word=st.integers(0, LAYOUT.words - 1), bit=st.integers(0, 63))
def test_one_flipped_bit_is_in_range_or_refused(uploads: Blobs, word: int, bit: int) -> None:
    words = honest(1)
    words[word] ^= np.uint64(1 << bit)
    try:
        found = opened(uploads, [honest(0).tobytes(), words.tobytes()])
    except EncodingRefused:
        return
    assert found.members == 2


def test_noise_under_a_mask_nobody_took_off_is_refused(uploads: Blobs) -> None:
    noise = hashlib.shake_256(b"a mask").digest(LAYOUT.bytes)
    with pytest.raises(EncodingRefused):
        opened(uploads, [honest(0).tobytes(), noise])


def test_an_upload_that_is_gone_is_named(uploads: Blobs) -> None:
    with pytest.raises(NotFound, match="no complete blob"):
        sum_uploads(uploads, {"site-0": bytes(32)}, LAYOUT.words, lambda: None)
