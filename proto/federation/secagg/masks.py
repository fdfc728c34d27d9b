"""Mask keystreams: AES-256-CTR, added to or subtracted from uint64 words modulo 2^64.

    words[k] ± little-endian uint64 at bytes 8k..8k+7 of AES-256-CTR(key, first counter block 0)

A key makes one stream and is used for one vector (zero nonce, NIST SP 800-38A section 6.5). Chunks of 64 KiB, with the
zeros and the keystream beside them, stay in the core's own cache: the vector passes through memory once, however many
streams are put on it, and AES is the limit. (Smaller ones pay for the calls, larger ones for the shared cache.)
CTR can start anywhere, so threads take ranges of the vector, never streams, and need no locks.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from federation.secagg.errors import MalformedValue
from federation.secagg.secret import StreamKey

Words = npt.NDArray[np.uint64]

CHUNK_BYTES = 64 * 1024
_WORD_BYTES = 8
_BLOCK_WORDS = 2  # an AES block
_CHUNK_WORDS = CHUNK_BYTES // _WORD_BYTES
# Bounds the memory of running ciphers. A pass over the vector is cheap against so many streams.
_STREAMS_AT_ONCE = 1024
_ZEROS = bytes(CHUNK_BYTES)


@dataclass(frozen=True)
class MaskStreams:
    """Keystreams to add and keystreams to subtract, modulo 2^64; each key has 32 bytes."""

    add: tuple[StreamKey, ...]
    subtract: tuple[StreamKey, ...]

    def inverse(self) -> "MaskStreams":
        """Returns the same streams with opposite signs."""
        return MaskStreams(add=self.subtract, subtract=self.add)

    def wipe(self) -> None:
        """Overwrites every key."""
        for key in self.add + self.subtract:
            key.wipe()


def apply(words: Words, streams: MaskStreams, threads: int = 1) -> None:
    """Put all streams on `words` in place.

    Args:
        words: uint64[m], contiguous, writable.
        streams: Of keys that were used for no other vector.
        threads: At most this many ranges at once, with the same result.

    Raises:
        MalformedValue: The words are of another dtype or form, or there is no thread.
    """
    check_words(words)
    if threads < 1:
        raise MalformedValue(f"expected at least one thread, got {threads}")
    chunks = -(-words.size // _CHUNK_WORDS)
    ranges = min(threads, max(1, chunks))
    # Ranges begin at whole chunks, so at whole AES blocks: `_keystream` can start nowhere else.
    bounds = [min(words.size, chunks * part // ranges * _CHUNK_WORDS) for part in range(ranges + 1)]
    if ranges == 1:
        _apply_range(words, 0, streams)
        return
    with ThreadPoolExecutor(ranges) as pool:
        pieces = itertools.pairwise(bounds)
        running = [pool.submit(_apply_range, words[start:end], start, streams) for start, end in pieces]
        for task in running:
            task.result()


def check_words(words: Words) -> None:
    """Refuse an array that is not a contiguous uint64[m].

    Raises:
        MalformedValue: The array is none.
    """
    if words.dtype != np.dtype(np.uint64) or words.ndim != 1 or not words.flags.c_contiguous:
        raise MalformedValue(f"expected a contiguous uint64 vector, got {words.dtype} of shape {words.shape}")


def _apply_range(words: Words, offset: int, streams: MaskStreams) -> None:
    """Put the part of every stream that begins at word `offset` (a whole number of blocks) on `words`."""
    signed = [(np.add, key) for key in streams.add] + [(np.subtract, key) for key in streams.subtract]
    buffer = bytearray(CHUNK_BYTES)
    stream = np.frombuffer(buffer, "<u8")
    zeros = memoryview(_ZEROS)
    for first in range(0, len(signed), _STREAMS_AT_ONCE):
        group = [(put, _keystream(key, offset)) for put, key in signed[first : first + _STREAMS_AT_ONCE]]
        for start in range(0, words.size, _CHUNK_WORDS):
            part = words[start : start + _CHUNK_WORDS]
            data, keystream = zeros[: part.size * _WORD_BYTES], stream[: part.size]
            for put, cipher in group:
                cipher.update_into(data, buffer)
                put(part, keystream, out=part)


def _keystream(key: StreamKey, offset: int) -> CipherContext:
    counter = (offset // _BLOCK_WORDS).to_bytes(16, "big")
    return Cipher(algorithms.AES(key.expose()), modes.CTR(counter)).encryptor()
