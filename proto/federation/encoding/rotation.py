"""The randomized Walsh-Hadamard rotation that spreads a vector evenly over its coordinates before quantizing.

Forward: pad with zeros, flip signs by a public seed, shuffle (only when there are several pieces, so that each holds
its share of the energy), then H / sqrt(n) on every piece. The inverse runs on *whole numbers* in float64 and scales
last: every partial sum is whole and below 2^53, so it is exact on any machine, in any order of summation.

Randomness is SHAKE-256(domain || purpose || seed), because every party must draw the same in any library version.
Source: Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017, section 3.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from hashlib import shake_256

import numpy as np
from numpy.typing import NDArray

from federation.encoding.layout import Layout
from federation.errors import EncodingRefused

Vector = NDArray[np.float32] | NDArray[np.float64]

_DOMAIN = b"hemofed rotation v1\x00"
_CHUNK = 1 << 16  # coordinates, a power of two: a quarter of a MiB in float32, that stays in a core's own cache
_PART = 1 << 14
_RADIX_BITS = 4
# Longer vectors are shuffled in blocks of one cache line of float32; single coordinates would take ten times as long.
_BLOCK = 16
_SINGLES_MAX = 1 << 18
_NUMBER = np.uint64(2**24 - 1)
_EXACT_MAX, _EXACT_MAX_32 = 2.0**53, 2.0**24


def rotate(layout: Layout, vector: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """factor * R(vector): f32[d] -> f32[coordinates], of the same L2 norm times `factor` up to rounding."""
    padded = np.zeros(layout.coordinates, np.float32)
    padded[: layout.parameters] = vector
    flip_signs(layout.rotation_seed, padded)
    rotated = np.empty_like(padded) if len(layout.pieces) > 1 else padded
    for begin, end in _bounds(layout):
        scale = np.float32(factor / math.sqrt(end - begin))
        for start in range(begin, end, _CHUNK):
            part = rotated[start : min(end, start + _CHUNK)]
            if len(layout.pieces) > 1:
                _shuffle(layout, padded, start, part)
            part *= scale
            hadamard(part)
        hadamard(rotated[begin:end], begin=min(_CHUNK, end - begin))
    return rotated


def unrotate(layout: Layout, levels: NDArray[np.signedinteger], center: int, factor: float) -> NDArray[np.float64]:
    """factor * the inverse of `rotate`, of the whole numbers 2 levels - center: int[coordinates] -> f64[d].

    Each coordinate is its exact whole-number transform times one float64, factor / sqrt(length of its piece).
    Errors: EncodingRefused when sums could reach 2^53 and stop being exact.
    """
    result = np.empty(layout.parameters)
    for start, part in unrotated(layout, levels, center, factor):
        result[start : start + part.size] = part
    return result


def unrotated(
    layout: Layout, levels: NDArray[np.signedinteger], center: int, factor: float
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """What `unrotate` gives, in parts: where each begins, and its f64, which is overwritten by the next one."""
    blocks = _transformed(layout, levels, center).reshape(-1, _block(layout))
    many, size = blocks.shape
    back = _orders(layout.rotation_seed, many)[1] if len(layout.pieces) > 1 else np.arange(many)
    scales = np.concatenate(
        [np.full((end - begin) // size, factor / math.sqrt(end - begin)) for begin, end in _bounds(layout)]
    )
    signs = _signs(layout.rotation_seed, blocks.size)
    buffer = np.empty((min(many, _PART // size), size))
    for first in range(0, -(-layout.parameters // size), len(buffer)):
        chosen = back[first : first + len(buffer)]
        # "clip" only because "raise" would go through a buffer: every number is in range.
        part = np.take(blocks, chosen, axis=0, out=buffer[: len(chosen)], mode="clip")
        part *= np.take(scales, chosen)[:, np.newaxis]
        numbers = part.reshape(-1)[: layout.parameters - first * size]
        _flip(signs, first * size, numbers)
        yield first * size, numbers


def _transformed(layout: Layout, levels: NDArray[np.signedinteger], center: int) -> NDArray[np.float64]:
    """H times the whole numbers 2 levels - center, piece by piece; exact."""
    largest = max(2 * float(levels.max(initial=0)) - center, center - 2 * float(levels.min(initial=0)), 1.0)
    if largest * max(layout.pieces, default=1) >= _EXACT_MAX:
        raise EncodingRefused(f"expected coordinates small enough for exact sums, got one of {largest:g}")
    # As long as sums stay below 2^24, float32 is exact as well, and half the work.
    narrow = 1
    while 2 * narrow * largest < _EXACT_MAX_32 and narrow < _CHUNK:
        narrow *= 2
    numbers = np.empty(layout.coordinates)
    for begin, end in _bounds(layout):
        for start in range(begin, end, _CHUNK):
            part = slice(start, min(end, start + _CHUNK))
            whole: Vector = levels[part].astype(np.float32) if narrow > 1 else levels[part].astype(np.float64)
            whole *= 2
            whole -= center
            hadamard(whole, end=narrow)
            numbers[part] = whole
        hadamard(numbers[begin:end], begin=narrow)
    return numbers


def hadamard(vector: Vector, begin: int = 1, end: int | None = None) -> None:
    """Multiply by the Walsh-Hadamard matrix in place, no normalization. The length must be a power of two.

    begin, end: only the factors that join coordinates `begin` to `end` / 2 apart, powers of two.

    H of order 2^k is a Kronecker product of smaller ones. Up to 2^4 at a time are one matrix product, on blocks that
    stay in the cache: a quarter of the passes over memory that butterflies take.
    """
    length, stride = min(vector.size, end or vector.size), begin
    while stride < length:
        radix = min(1 << _RADIX_BITS, length // stride)
        matrix = _matrix(radix, vector.dtype)
        if stride == 1:
            _multiply_rows(vector.reshape(-1, radix), matrix)
        else:
            _multiply_columns(vector.reshape(-1, radix, stride), matrix)
        stride *= radix


def flip_signs(seed: bytes, vector: Vector) -> None:
    """Change the sign of every coordinate whose bit in the seed's stream is 1, in place; its own inverse."""
    signs = _signs(seed, vector.size)
    for start in range(0, vector.size, _CHUNK):
        _flip(signs, start, vector[start : start + _CHUNK])


def _flip(signs: NDArray[np.uint8], start: int, part: Vector) -> None:
    """`part` begins at coordinate `start`, a multiple of 8."""
    # The sign is the highest bit of a float; flipping it as a bit is exact, for 0 too, and four times as fast.
    patterns = part.view(np.uint32 if part.dtype == np.float32 else np.uint64)
    bits = np.unpackbits(signs[start // 8 :], count=part.size, bitorder="little").astype(patterns.dtype)
    bits <<= patterns.dtype.type(8 * patterns.itemsize - 1)
    np.bitwise_xor(patterns, bits, out=patterns)


def _shuffle(layout: Layout, vector: NDArray[np.float32], start: int, part: NDArray[np.float32]) -> None:
    """Fill `part` with what the shuffle brings to coordinates `start` and on."""
    blocks = vector.reshape(-1, _block(layout))
    order = _orders(layout.rotation_seed, len(blocks))[0][start // _block(layout) :][: part.size // _block(layout)]
    np.take(blocks, order, axis=0, out=part.reshape(len(order), -1), mode="clip")


def _multiply_rows(rows: Vector, matrix: Vector) -> None:
    step = max(1, _CHUNK // matrix.shape[0])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        part[...] = part @ matrix


def _multiply_columns(blocks: Vector, matrix: Vector) -> None:
    """blocks [outer, radix, stride]: the middle axis is transformed."""
    _, radix, stride = blocks.shape
    width = min(stride, _CHUNK // radix)
    outers = max(1, _CHUNK // (radix * width))
    for first in range(0, len(blocks), outers):
        for column in range(0, stride, width):
            part = blocks[first : first + outers, :, column : column + width]
            part[...] = matrix @ part


@lru_cache
def _matrix(order: int, dtype: np.dtype[np.floating]) -> Vector:
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix = matrix.astype(dtype)
    matrix.flags.writeable = False
    return matrix


def _bounds(layout: Layout) -> Iterator[tuple[int, int]]:
    """Where each piece begins and ends."""
    begin = 0
    for length in layout.pieces:
        yield begin, begin + length
        begin += length


def _block(layout: Layout) -> int:
    return 1 if layout.coordinates <= _SINGLES_MAX else _BLOCK


@lru_cache(maxsize=1)  # the same in every round of a plan; a quarter of what a float32 vector of its length takes
def _orders(seed: bytes, blocks: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which block comes where: block numbers in the order of 40 random bits each, then of the numbers themselves.
    And the way back: where each block went."""
    draws = np.frombuffer(_stream(b"shuffle", seed, 8 * blocks), "<u8")
    # One sort of plain words, with the number in the low 24 bits, is ten times as fast as argsort; blocks < 2^24 as
    # a manifest has at most 2^28 parameters.
    numbered = np.sort((draws & ~_NUMBER) | np.arange(blocks, dtype=np.uint64))
    order = (numbered & _NUMBER).astype(np.intp)
    back = np.empty_like(order)
    back[order] = np.arange(blocks)
    order.flags.writeable = back.flags.writeable = False
    return order, back


@lru_cache(maxsize=1)  # as above, and a thirty-second of such a vector
def _signs(seed: bytes, coordinates: int) -> NDArray[np.uint8]:
    return np.frombuffer(_stream(b"signs", seed, -(-coordinates // 8)), np.uint8)


def _stream(purpose: bytes, seed: bytes, length: int) -> bytes:
    return shake_256(_DOMAIN + purpose + b"\x00" + seed).digest(length)
