"""The randomized Walsh-Hadamard rotation that spreads a vector evenly over its coordinates before quantizing.

Forward: pad with zeros, flip signs by a public seed, shuffle (only when there are several pieces, so that each holds
its share of the energy), then H / sqrt(n) on every piece. The inverse runs on *whole numbers* in float64 and scales
last: every partial sum is whole and below 2^53, so it is exact on any machine, in any order of summation.

Randomness is SHAKE-256(domain || purpose || seed), because every party must draw the same in any library version.
Source: Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017, section 3.
"""

import math
from collections.abc import Iterator
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
_EXACT_MAX = 2.0**53


def rotate(layout: Layout, vector: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """factor * R(vector): f32[d] -> f32[coordinates], of the same L2 norm times `factor` up to rounding."""
    rotated = np.zeros(layout.coordinates, np.float32)
    rotated[: layout.parameters] = vector
    flip_signs(layout.rotation_seed, rotated)
    if len(layout.pieces) > 1:
        blocks = rotated.reshape(-1, _block(layout))
        rotated = np.take(blocks, _order(layout), axis=0).reshape(-1)
    for piece in _split(layout, rotated):
        piece *= np.float32(factor / math.sqrt(piece.size))
        hadamard(piece)
    return rotated


def unrotate(layout: Layout, numbers: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """factor * the inverse of `rotate`: f64[coordinates] whole numbers -> f64[d].

    Each coordinate is its exact whole-number transform times one float64, factor / sqrt(length of its piece).
    Overwrites `numbers`. Errors: EncodingRefused when sums could reach 2^53 and stop being exact.
    """
    largest = max(float(numbers.max(initial=0.0)), -float(numbers.min(initial=0.0)))
    if largest * max(layout.pieces, default=1) >= _EXACT_MAX:
        raise EncodingRefused(f"expected coordinates small enough for exact sums, got one of {largest:g}")
    for piece in _split(layout, numbers):
        hadamard(piece)
        piece *= factor / math.sqrt(piece.size)
    if len(layout.pieces) > 1:
        shuffled = numbers.reshape(-1, _block(layout))
        numbers = np.empty_like(numbers)
        numbers.reshape(shuffled.shape)[_order(layout)] = shuffled
    flip_signs(layout.rotation_seed, numbers)
    return numbers[: layout.parameters]


def hadamard(vector: Vector) -> None:
    """Multiply by the Walsh-Hadamard matrix in place, no normalization. The length must be a power of two.

    H of order 2^k is a Kronecker product of smaller ones. Up to 2^4 at a time are one matrix product, on blocks that
    stay in the cache: a quarter of the passes over memory that butterflies take.
    """
    length, stride = vector.size, 1
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


def _order(layout: Layout) -> NDArray[np.intp]:
    """Which block comes where: block numbers in the order of 40 random bits each, then of the numbers themselves."""
    blocks = layout.coordinates // _block(layout)
    draws = np.frombuffer(_stream(b"shuffle", layout.rotation_seed, 8 * blocks), "<u8")
    # One sort of plain words, with the number in the low 24 bits, is ten times as fast as argsort; blocks < 2^24 as
    # a manifest has at most 2^28 parameters.
    numbered = np.sort((draws & ~_NUMBER) | np.arange(blocks, dtype=np.uint64))
    return (numbered & _NUMBER).astype(np.intp)


def _stream(purpose: bytes, seed: bytes, length: int) -> bytes:
    return shake_256(_DOMAIN + purpose + b"\x00" + seed).digest(length)
