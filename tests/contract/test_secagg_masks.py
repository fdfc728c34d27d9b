"""Keystreams on words, and what a masked upload looks like to whoever holds it."""

import zlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from federation.secagg import MalformedValue
from federation.secagg.masks import CHUNK_BYTES, MaskStreams, apply
from federation.secagg.secret import StreamKey

from tests.contract.secagg_session import Session

KEY = bytes(range(32))
CHUNK_WORDS = CHUNK_BYTES // 8


def keystream(key: bytes, length: int) -> np.ndarray:
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * length))
    return np.frombuffer(stream, "<u8")


@pytest.mark.parametrize("length", [0, 1, 2, 3, CHUNK_WORDS - 1, CHUNK_WORDS, CHUNK_WORDS + 1, 5 * CHUNK_WORDS + 7])
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_streams_are_added_and_subtracted_alike_at_every_length_and_with_any_threads(length: int, threads: int) -> None:
    words = np.arange(length, dtype=np.uint64)
    apply(words, MaskStreams(add=(StreamKey(KEY),), subtract=(StreamKey(KEY[::-1]),)), threads)
    assert np.array_equal(
        words, np.arange(length, dtype=np.uint64) + keystream(KEY, length) - keystream(KEY[::-1], length)
    )


def test_the_inverse_takes_the_streams_off_again() -> None:
    streams = MaskStreams(add=(StreamKey(KEY),), subtract=(StreamKey(KEY[::-1]),))
    words = np.full(1000, 7, dtype=np.uint64)
    apply(words, streams)
    apply(words, streams.inverse())
    assert (words == 7).all()


def test_more_streams_than_are_open_at_once_are_all_applied() -> None:
    keys = [number.to_bytes(32, "big") for number in range(1100)]
    words = np.zeros(3, dtype=np.uint64)
    apply(words, MaskStreams(add=tuple(map(StreamKey, keys)), subtract=()))
    assert np.array_equal(words, np.sum([keystream(key, 3) for key in keys], axis=0, dtype=np.uint64))


def test_no_threads_are_refused() -> None:
    with pytest.raises(MalformedValue, match="at least one thread"):
        apply(np.zeros(1, np.uint64), MaskStreams((), ()), threads=0)


@pytest.fixture(scope="module")
def upload() -> tuple[np.ndarray, np.ndarray]:
    """(words, masked words) of one member, 200 000 of each; the words as structured as can be: small counters."""
    session = Session(3, length=200_000)
    session.words = {site: np.arange(200_000, dtype=np.uint64) % np.uint64(17) for site in session.sites}
    return session.words["site-0001"], session.play().uploads["site-0001"]


def test_a_masked_upload_has_uniform_bytes(upload: tuple[np.ndarray, np.ndarray]) -> None:
    """χ² over 256 values: 255 degrees of freedom, standard deviation 22.6; six of them either way."""
    counts = np.bincount(upload[1].view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 6 * np.sqrt(2 * 255)


def test_every_bit_of_a_masked_upload_is_a_fair_coin(upload: tuple[np.ndarray, np.ndarray]) -> None:
    bits = np.unpackbits(upload[1].view(np.uint8).reshape(-1, 8), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(len(bits))


def test_a_masked_upload_is_incompressible_and_its_words_were_not(upload: tuple[np.ndarray, np.ndarray]) -> None:
    words, masked = (one.tobytes() for one in upload)
    assert len(zlib.compress(words, 9)) < len(words) / 50
    assert len(zlib.compress(masked, 9)) >= len(masked)


def test_a_masked_upload_does_not_correlate_with_its_words(upload: tuple[np.ndarray, np.ndarray]) -> None:
    words, masked = upload
    bound = 5 / np.sqrt(words.size)
    assert abs(np.corrcoef(words.astype(float), masked.astype(float))[0, 1]) < bound
    lowest_bits = (masked & np.uint64(1)).astype(float)
    assert abs(np.corrcoef((words & np.uint64(1)).astype(float), lowest_bits)[0, 1]) < bound


def test_two_uploads_of_the_same_words_have_nothing_in_common() -> None:
    session = Session(3, length=50_000)
    session.words = {site: np.zeros(50_000, dtype=np.uint64) for site in session.sites}
    uploads = session.play().uploads
    one, other = uploads["site-0000"], uploads["site-0001"]
    assert not np.any(one == other)
    assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < 5 / np.sqrt(one.size)


def test_without_one_confirmed_seed_the_sum_stays_noise() -> None:
    """The partial sum of all members but one, with every mask between them gone, still carries the missing pairs."""
    session = Session(4, length=100_000)
    session.words = {site: np.zeros(100_000, dtype=np.uint64) for site in session.sites}
    uploads = session.play().uploads
    partial = uploads["site-0000"] + uploads["site-0001"] + uploads["site-0002"]
    counts = np.bincount(partial.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 6 * np.sqrt(2 * 255)
