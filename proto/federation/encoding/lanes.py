"""Planar lanes: several small unsigned numbers in one uint64 word, so that adding words adds all of them at once.

For m numbers in lanes of w bits, a word has 64 // w lanes and there are W = ceil(m / lanes) words. Number i lies in
word i mod W, in bits w * (i // W) to w * (i // W) + w - 1: a lane is a contiguous run of the vector, so packing and
unpacking run at the speed of memory. Bits above the last lane are 0, and so are the lanes past the end of the vector.
"""

import numpy as np
from numpy.typing import NDArray

from federation.errors import EncodingRefused

_CHUNK = 1 << 15


def pack(numbers: NDArray[np.integer], width: int, words: NDArray[np.uint64]) -> None:
    """Writes `numbers` [m] of at most `width` bits each over `words` uint64[W]. The caller checks the range."""
    words[...] = 0
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK]
        # Cost: lane by lane within a chunk of words, so that the words stay in the cache while all lanes are written.
        for lane in range(64 // width):
            run = numbers[lane * words.size + start : min((lane + 1) * words.size, lane * words.size + start + _CHUNK)]
            part[: run.size] |= run.astype(np.uint64) << np.uint64(lane * width)


def unpack(words: NDArray[np.uint64], width: int, count: int, largest: int) -> NDArray[np.integer]:
    """Reads the `count` numbers in `words` uint64[W].

    Returns:
        uint16[count] where a lane has at most 16 bits, int32[count] otherwise.

    Raises:
        EncodingRefused: A number exceeds `largest`, or a bit is set that belongs to no number.
    """
    # As narrow as they come: a vector of them is held beside those of the next model.
    dtype: type[np.uint16 | np.int32] = np.uint16 if width <= 16 else np.int32
    numbers: NDArray[np.integer] = np.zeros(words.size * (64 // width), dtype)
    mask = np.uint64((1 << width) - 1)
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK].copy()
        for lane in range(64 // width):
            first = lane * words.size + start
            numbers[first : first + part.size] = part & mask
            part >>= np.uint64(width)
        # Shifted past its last lane, a word holds only the bits above it.
        if part.any():
            raise EncodingRefused("sum: expected 0 above the highest lane, got more; lanes overflowed")
    if numbers[count:].any():
        raise EncodingRefused("sum: expected 0 past the end of the vector, got more")
    if numbers.max(initial=0) > largest:
        raise EncodingRefused(
            f"sum: expected levels up to {largest}, got {numbers.max()}; a member sent words out of range"
        )
    return numbers[:count]
