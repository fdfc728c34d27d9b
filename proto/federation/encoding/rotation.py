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
_CHUNK = 1 << 16
_RADIX_BITS = 4
# Longer vectors are shuffled in blocks of one cache line of float32; single coordinates would take ten times as long.
_BLOCK = 16
_SINGLES_MAX = 1 << 18
_NUMBER = np.uint64(2**24 - 1)
_EXACT_MAX, _EXACT_MAX_32 = 2.0**53, 2.0**24


def rotate(layout: Layout, vector: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """factor * R(vector): f32[d] -> f32[coordinates], of the same L2 norm times `factor` up to rounding."""
    rotated = np.zeros(layout.coordinates, np.float32)
    rotated[: layout.parameters] = vector
    flip_signs(layout.rotation_seed, rotated)
    if len(layout.pieces) > 1:
        blocks = rotated.reshape(-1, _block(layout))
        rotated = np.take(blocks, _orders(layout.rotation_seed, len(blocks))[0], axis=0).reshape(-1)
    for piece in _split(layout, rotated):
        piece *= np.float32(factor / math.sqrt(piece.size))
        hadamard(piece)
    return rotated


def unrotate(layout: Layout, whole: Vector, factor: float) -> NDArray[np.float64]:
    """factor * the inverse of `rotate`: whole numbers [coordinates], f32 or f64 -> f64[d].

    Each coordinate is its exact whole-number transform times one float64, factor / sqrt(length of its piece).
    Overwrites `whole`. Errors: EncodingRefused when sums could reach 2^53 and stop being exact.
    """
    largest = max(float(whole.max(initial=0.0)), -float(whole.min(initial=0.0)))
    if largest * max(layout.pieces, default=1) >= _EXACT_MAX:
        raise EncodingRefused(f"expected coordinates small enough for exact sums, got one of {largest:g}")
    # As long as sums stay below 2^24, float32 is exact as well, and half the work.
    narrow = 1
    while whole.dtype == np.float32 and (narrow << _RADIX_BITS) * max(largest, 1.0) < _EXACT_MAX_32:
        narrow <<= _RADIX_BITS
    for piece in _split(layout, whole):
        hadamard(piece, end=narrow)
    numbers = whole.astype(np.float64, copy=False)
    for piece in _split(layout, numbers):
        hadamard(piece, begin=narrow)
        piece *= factor / math.sqrt(piece.size)
    if len(layout.pieces) > 1:
        shuffled = numbers.reshape(-1, _block(layout))
        numbers = np.take(shuffled, _orders(layout.rotation_seed, len(shuffled))[1], axis=0).reshape(-1)
    flip_signs(layout.rotation_seed, numbers)
    return numbers[: layout.parameters]


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
    stream = np.frombuffer(_stream(b"signs", seed, -(-vector.size // 8)), np.uint8)
    # The sign is the highest bit of a float; flipping it as a bit is exact, for 0 too, and four times as fast.
    patterns = vector.view(np.uint32 if vector.dtype == np.float32 else np.uint64)
    highest = patterns.dtype.type(8 * patterns.itemsize - 1)
    for start in range(0, vector.size, _CHUNK):
        part = patterns[start : start + _CHUNK]
        bits = np.unpackbits(stream[start // 8 : (start + _CHUNK) // 8], count=part.size, bitorder="little")
        np.bitwise_xor(part, bits.astype(part.dtype) << highest, out=part)


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


def _matrix(order: int, dtype: np.dtype[np.floating]) -> Vector:
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix.astype(dtype)


def _split(layout: Layout, vector: Vector) -> Iterator[Vector]:
    start = 0
    for length in layout.pieces:
        yield vector[start : start + length]
        start += length


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


def _stream(purpose: bytes, seed: bytes, length: int) -> bytes:
    return shake_256(_DOMAIN + purpose + b"\x00" + seed).digest(length)
