"""Shamir's t-of-n secret sharing over a prime field that holds every 256-bit string (Shamir, CACM 22(11), 1979).

    secret = f(0),   f of degree t - 1,   share of the member at place x (1..n) = f(x)

The prime 2^256 + 297 is the smallest above 2^256: a 32-byte secret is a field element as it stands, with nothing
rejected or reduced; an element takes 33 bytes, big-endian. t - 1 shares say nothing about the secret, whatever the
computing power. Arithmetic is on plain Python integers and is not constant-time: it runs at the member that holds the
secret, and at the aggregator on secrets it is entitled to.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import mul

from federation.secagg.errors import MalformedValue
from federation.secagg.secret import SECRET_BYTES

PRIME = (1 << 256) + 297
ELEMENT_BYTES = 33
# Coefficients are drawn as 48 bytes and reduced: at most 2^-127 away from uniform, without a rejection loop.
COEFFICIENT_BYTES = 48


def split(secret: bytes, threshold: int, members: int, randomness: bytes) -> list[bytes]:
    """Returns shares of a secret for places 1..members, in that order; any `threshold` of them give it.

    Args:
        secret: 32 bytes.
        threshold: T, 1 to `members`.
        members: N, the number of members.
        randomness: (threshold - 1) * 48 uniform bytes, used for nothing else.

    Returns:
        n shares of 33 bytes.

    Raises:
        MalformedValue: The threshold is outside 1..members, or a length is another.
    """
    if not 1 <= threshold <= members:
        raise MalformedValue(f"a threshold lies in 1..{members}, got {threshold}")
    if len(secret) != SECRET_BYTES or len(randomness) != (threshold - 1) * COEFFICIENT_BYTES:
        raise MalformedValue(
            f"expected a {SECRET_BYTES}-byte secret and {(threshold - 1) * COEFFICIENT_BYTES} random bytes"
        )
    coefficients = [int.from_bytes(secret, "big")]
    for start in range(0, len(randomness), COEFFICIENT_BYTES):
        coefficients.append(int.from_bytes(randomness[start : start + COEFFICIENT_BYTES], "big") % PRIME)
    return [encode(inner(coefficients, row)) for row in _powers(threshold, members)]


def combine(shares: Mapping[int, int]) -> int:
    """Returns f(0) from exactly t points {x: f(x)}. Wrong points give a wrong value, not an error."""
    return inner(weights_at(0, tuple(shares)), shares.values())


def weights_at(target: int, places: tuple[int, ...]) -> list[int]:
    """Returns Lagrange weights w with f(target) = Σ w_i f(places_i), for distinct places other than target."""
    numerators, denominators = [], []
    for x in places:
        above, below = 1, 1
        for other in places:
            if other != x:
                above = above * (target - other) % PRIME
                below = below * (x - other) % PRIME
        numerators.append(above)
        denominators.append(below)
    return [above * inverse % PRIME for above, inverse in zip(numerators, _inverses(denominators), strict=True)]


def inner(left: Iterable[int], right: Iterable[int]) -> int:
    """Returns Σ left_i right_i in the field."""
    # Cost: reduced once, at the end. Python's integers hold the whole sum, and a division costs more than an addition.
    total: int = sum(map(mul, left, right))
    return total % PRIME


def encode(element: int) -> bytes:
    """Returns a share as 33 bytes, big-endian."""
    return element.to_bytes(ELEMENT_BYTES, "big")


def decode(share: bytes) -> int:
    """Returns the field element that 33 bytes, big-endian, encode. Each element has one encoding.

    Raises:
        MalformedValue: The length is another, or the number is not below the prime.
    """
    if len(share) != ELEMENT_BYTES:
        raise MalformedValue(f"a share has {ELEMENT_BYTES} bytes, got {len(share)}")
    element = int.from_bytes(share, "big")
    if element >= PRIME:
        raise MalformedValue("a share is below the field's prime")
    return element


@lru_cache(maxsize=2)
def _powers(threshold: int, members: int) -> list[list[int]]:
    """Row x - 1: x^0 .. x^(threshold-1). Public, and the same for every member of a cohort of one size."""
    rows = []
    for x in range(1, members + 1):
        row = [1]
        for _ in range(threshold - 1):
            row.append(row[-1] * x % PRIME)
        rows.append(row)
    return rows


def _inverses(values: Sequence[int]) -> list[int]:
    """All inverses for the price of one (Montgomery's trick)."""
    prefixes = [1]
    for value in values:
        prefixes.append(prefixes[-1] * value % PRIME)
    inverse = pow(prefixes[-1], -1, PRIME)
    inverses = []
    for value, prefix in zip(reversed(values), reversed(prefixes[:-1]), strict=True):
        inverses.append(inverse * prefix % PRIME)
        inverse = inverse * value % PRIME
    return inverses[::-1]
