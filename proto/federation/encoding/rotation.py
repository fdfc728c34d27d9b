"""The randomized Walsh-Hadamard rotation that spreads a vector evenly over its coordinates before quantizing.

Forward: pad with zeros, flip signs by a public seed, shuffle (only when there are several pieces, so that each holds
its share of the energy), then H / sqrt(n) on every piece. The inverse runs on *whole numbers* and scales last: every
partial sum is whole and below 2^53 in float64, or below 2^24 where float32 holds it, so it is exact on any machine, in
any order of summation.

Randomness is SHAKE-256(domain || purpose || seed), because every party must draw the same in any library version.
Source: Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017, section 3.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from hashlib import shake_256
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from federation.encoding.layout import Layout
from federation.errors import EncodingRefused

Vector = NDArray[np.float32] | NDArray[np.float64]
Real = TypeVar("Real", np.float32, np.float64)

_DOMAIN = b"hemofed rotation v1\x00"
_CHUNK = 1 << 16  # coordinates, a power of two: a quarter of a MiB in float32, that stays in a core's own cache
_RUN = 1 << 13  # shorter ones cost more passes, longer ones leave no float32
_RADIX_BITS = 4
# Longer vectors are shuffled in blocks of one cache line of float32; single coordinates would take ten times as long.
_BLOCK = 16
_SINGLES_MAX = 1 << 18
_NUMBER = np.uint64(2**24 - 1)
_EXACT_MAX, _EXACT_MAX_32 = 2.0**53, 2.0**24


def rotate(layout: Layout, vector: NDArray[Real], factor: float) -> Iterator[NDArray[Real]]:
    """Yields factor * R(vector) piece by piece: [d] in, [coordinates] out in all, f32 or f64 as the vector is.

    The result has `factor` times the L2 norm of the vector, up to rounding.
    """
    order, size = _order(layout), block_of(layout)
    for begin, end in _bounds(layout):
        rotated = np.empty(end - begin, vector.dtype)
        scale = vector.dtype.type(factor / math.sqrt(rotated.size))
        for start in range(0, rotated.size, _CHUNK):
            part = rotated[start : start + _CHUNK]
            numbers = order[(begin + start) // size : (begin + start + part.size) // size]
            blocks = part.reshape(-1, size)
            blocks[...] = take(vector, numbers, size)
            _flip(blocks, _signs(layout, numbers))
            part *= scale
            hadamard(part)
        hadamard(rotated, begin=min(_CHUNK, rotated.size))
        yield rotated


def unrotated(
    layout: Layout, levels: NDArray[np.integer], center: int, factor: float, piece: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """Yields one piece of factor * the inverse of `rotate`, applied to the whole numbers 2 levels - center.

    Yields every block of the piece exactly once, unordered, padding blocks included. One block at a time stays in the
    cache, and the whole vector never exists in float64. Several threads may take different pieces.

    Args:
        layout: Layout of the round.
        levels: uint16 or int32[coordinates], sums of levels.
        center: The whole number that stands for zero.
        factor: Scale of the result. A coordinate is its exact whole-number transform times one float64,
            factor / sqrt(length of its piece).
        piece: Index into layout.pieces.

    Yields:
        Block indices intp[k] and their coordinates f64[k, block_of(layout)].

    Raises:
        EncodingRefused: Sums could reach 2^53 and stop being exact.
    """
    order, size = _order(layout), block_of(layout)
    begin, end = list(_bounds(layout))[piece]
    rows = _summed_in_runs(levels[begin:end], center)
    places = order[begin // size : end // size].reshape(len(rows), -1)
    scale = factor / math.sqrt(end - begin)
    width = min(rows.shape[1], max(size, _CHUNK // len(rows)))
    for column in range(0, rows.shape[1], width):
        part = _wide_enough(rows[:, column : column + width])
        hadamard(part.reshape(-1), begin=width)
        numbers = places[:, column // size : (column + width) // size].reshape(-1)
        blocks = part.reshape(-1, size)
        _flip(blocks, _signs(layout, numbers))
        yield numbers, np.multiply(blocks, scale, dtype=np.float64)


def take(vector: NDArray[Any], numbers: NDArray[np.intp], size: int) -> NDArray[Any]:
    """Returns the blocks of a vector with these indices intp[k], in the vector's dtype: [k, size]; 0 past its end."""
    whole, left = divmod(vector.size, size)
    # "clip" because "raise" would look at every number first; those out of range are mended below.
    blocks = np.take(vector[: whole * size].reshape(-1, size), numbers, axis=0, mode="clip")
    blocks[numbers >= whole] = 0
    if left:
        blocks[numbers == whole, :left] = vector[-left:]
    return blocks


def put(vector: NDArray[Any], numbers: NDArray[np.intp], blocks: NDArray[Any]) -> None:
    """Writes blocks [k, size] into a vector of their dtype at these indices intp[k], without those past its end."""
    size = blocks.shape[1]
    whole, left = divmod(vector.size, size)
    if left and (last := numbers == whole).any():
        vector[-left:] = blocks[last][0, :left]
    inside = numbers < whole
    block = np.dtype((np.void, size * blocks.itemsize))  # each block one thing: three times as fast
    np.put(vector[: whole * size].view(block), numbers[inside], blocks.view(block)[inside], mode="clip")


def _wide_enough(rows: Vector) -> Vector:
    """Copies rows [runs, width] as floats in which each column sums exactly, in any order and with any signs."""
    part = rows.copy()
    if part.dtype == np.float32 and np.abs(part).sum(axis=0).max() >= _EXACT_MAX_32:
        part = part.astype(np.float64)
    return part


def _run_of(levels: NDArray[np.integer], center: int) -> tuple[int, type[np.floating]]:
    """Returns the length of the first sums over the whole numbers 2 levels - center, a power of two, and their dtype.

    As long as sums stay below 2^24 float32 is exact, and half the memory.
    """
    largest = max(2 * float(levels.max(initial=0)) - center, center - 2 * float(levels.min(initial=0)), 1.0)
    if largest * levels.size >= _EXACT_MAX:
        raise EncodingRefused(f"expected coordinates small enough for exact sums, got one of {largest:g}")
    run = min(_RUN, _CHUNK)
    while run * largest >= _EXACT_MAX_32 and run > _BLOCK:
        run //= 2
    return run, np.float32 if run * largest < _EXACT_MAX_32 else np.float64


def _summed_in_runs(levels: NDArray[np.integer], center: int) -> Vector:
    """The whole numbers 2 levels - center of one piece, multiplied by H in runs; one run a row.

    A piece that is shorter is one run.
    """
    run, dtype = _run_of(levels, center)
    sums: Vector = np.empty(levels.size, dtype)
    for start in range(0, levels.size, _CHUNK):
        part = sums[start : start + _CHUNK]
        part[...] = levels[start : start + part.size]
        part *= 2
        part -= center
        hadamard(part, end=run)
    return sums.reshape(-1, min(run, levels.size))


def hadamard(vector: Vector, begin: int = 1, end: int | None = None) -> None:
    """Multiplies `vector` by the Walsh-Hadamard matrix in place, without normalization.

    H of order 2^k is a Kronecker product of smaller ones. Up to 2^4 of them are one matrix product on blocks that stay
    in the cache: a quarter of the passes over memory that butterflies take.

    Args:
        vector: f32 or f64; its length is a power of two.
        begin: Apply only the factors that join coordinates from this distance on, a power of two.
        end: Apply only the factors that join coordinates up to end / 2 apart, a power of two.
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


def _flip(blocks: Vector, signs: NDArray[np.uint8]) -> None:
    """Change the sign where `signs` [k, size] is 1, in place."""
    # The sign is the highest bit of a float; flipping it as a bit is exact, for 0 too, and four times as fast.
    patterns = blocks.view(np.uint32 if blocks.dtype == np.float32 else np.uint64)
    bits = signs.astype(patterns.dtype)
    bits <<= patterns.dtype.type(8 * patterns.itemsize - 1)
    np.bitwise_xor(patterns, bits, out=patterns)


def _multiply_rows(rows: Vector, matrix: Vector) -> None:
    step = max(1, _CHUNK // matrix.shape[0])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        part[...] = part @ matrix


def _multiply_columns(blocks: Vector, matrix: Vector) -> None:
    """Transforms the middle axis of blocks [outer, radix, stride]."""
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
    """Yields the beginning and the end of each piece."""
    begin = 0
    for length in layout.pieces:
        yield begin, begin + length
        begin += length


def block_of(layout: Layout) -> int:
    """Returns the number of coordinates that the shuffle moves together: 1, or 16, which are 64 bytes of float32."""
    return 1 if layout.coordinates <= _SINGLES_MAX else _BLOCK


def _order(layout: Layout) -> NDArray[np.intp]:
    """Returns the block of the vector for each place, intp[blocks]."""
    many = layout.coordinates // block_of(layout)
    return _shuffled(layout.rotation_seed, many) if len(layout.pieces) > 1 else np.arange(many)


@lru_cache(maxsize=1)  # the same in every round of a plan; an eighth of what a float32 vector of its length takes
def _shuffled(seed: bytes, blocks: int) -> NDArray[np.intp]:
    """Block numbers in the order of 40 random bits each, then of the numbers themselves."""
    draws = np.frombuffer(_stream(b"shuffle", seed, 8 * blocks), "<u8")
    # One sort of plain words, with the number in the low 24 bits, is ten times as fast as argsort; blocks < 2^24 as
    # a manifest has at most 2^28 parameters.
    numbered = np.sort((draws & ~_NUMBER) | np.arange(blocks, dtype=np.uint64))
    order = (numbered & _NUMBER).astype(np.intp)
    order.flags.writeable = False
    return order


def _signs(layout: Layout, numbers: NDArray[np.intp]) -> NDArray[np.uint8]:
    """uint8[k, size] for the blocks with these numbers: 1 where the sign of a coordinate of the vector changes."""
    size, bits = block_of(layout), _sign_bits(layout.rotation_seed, layout.coordinates)
    if size == 1:
        return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[numbers].reshape(-1, 1)
    taken = np.take(np.frombuffer(bits, "<u2"), numbers, mode="clip")  # a block's bits are one such word
    return np.unpackbits(taken.view(np.uint8), bitorder="little").reshape(-1, size)


@lru_cache(maxsize=1)  # as above, and a thirty-second of such a vector
def _sign_bits(seed: bytes, coordinates: int) -> bytes:
    return _stream(b"signs", seed, -(-coordinates // 8))


def _stream(purpose: bytes, seed: bytes, length: int) -> bytes:
    return shake_256(_DOMAIN + purpose + b"\x00" + seed).digest(length)
