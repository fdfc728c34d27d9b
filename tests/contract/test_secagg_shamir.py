"""Shamir sharing over the field of 2^256 + 297."""

import itertools
import random

import pytest
from federation.secagg import MalformedValue
from federation.secagg.shamir import COEFFICIENT_BYTES, ELEMENT_BYTES, PRIME, combine, decode, encode, split, weights_at
from hypothesis import given, settings
from hypothesis import strategies as st

SECRETS = st.binary(min_size=32, max_size=32)


def dealt(secret: bytes, t: int, n: int, seed: int = 0) -> dict[int, int]:
    shares = split(secret, t, n, random.Random(seed).randbytes((t - 1) * COEFFICIENT_BYTES))
    return {place: decode(share) for place, share in enumerate(shares, start=1)}


def test_the_modulus_is_prime_and_the_smallest_above_every_secret() -> None:
    def passes_miller_rabin(number: int) -> bool:
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in range(2, 60):
            x = pow(base, odd, number)
            if x not in (1, number - 1) and all((x := x * x % number) != number - 1 for _ in range(twos - 1)):
                return False
        return True

    assert passes_miller_rabin(PRIME)
    assert not any(passes_miller_rabin(number) for number in range((1 << 256) + 1, PRIME))


@settings(max_examples=50, deadline=None)
@given(secret=SECRETS, n=st.integers(1, 12), data=st.data())
def test_any_threshold_of_shares_opens_the_secret(secret: bytes, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    shares = dealt(secret, t, n)
    chosen = data.draw(st.permutations(sorted(shares)))[:t]
    assert combine({x: shares[x] for x in chosen}) == int.from_bytes(secret, "big")


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\x00" * 31 + b"\x01"])
def test_extreme_secrets_survive(secret: bytes) -> None:
    shares = dealt(secret, 3, 5)
    for chosen in itertools.combinations(shares, 3):
        assert combine({x: shares[x] for x in chosen}) == int.from_bytes(secret, "big")


def test_one_share_fewer_fits_every_secret_alike() -> None:
    """For any t - 1 shares and any candidate secret exactly one polynomial exists: nothing is excluded."""
    shares = dealt(b"\x05" * 32, 4, 6)
    known = {x: shares[x] for x in (1, 3, 6)}
    for candidate in (0, 1, int.from_bytes(b"\x05" * 32, "big"), PRIME - 1):
        fourth = {0: candidate, **known}
        weights = weights_at(2, tuple(fourth))
        completed = sum(w * y for w, y in zip(weights, fourth.values(), strict=True)) % PRIME
        assert combine({2: completed, **known}) == candidate


def test_shares_of_one_secret_are_spread_over_the_field() -> None:
    """Share bytes over many dealings: χ² of the second byte over 16 bins, 15 degrees of freedom."""
    bins = [0] * 16
    for seed in range(2000):
        bins[encode(dealt(bytes(32), 2, 2, seed)[1])[1] >> 4] += 1
    assert sum((count - 125) ** 2 / 125 for count in bins) < 15 + 6 * (2 * 15) ** 0.5


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big"), b"\xff" * 33])
def test_a_share_outside_the_field_or_of_another_length_is_refused(share: bytes) -> None:
    with pytest.raises(MalformedValue):
        decode(share)


def test_the_largest_element_is_accepted_in_its_one_encoding() -> None:
    assert decode(encode(PRIME - 1)) == PRIME - 1
    assert len(encode(0)) == ELEMENT_BYTES


@pytest.mark.parametrize(("t", "n"), [(0, 3), (4, 3)])
def test_an_impossible_threshold_is_refused(t: int, n: int) -> None:
    with pytest.raises(MalformedValue, match="threshold"):
        split(bytes(32), t, n, b"")


def test_missing_randomness_is_refused() -> None:
    with pytest.raises(MalformedValue, match="random bytes"):
        split(bytes(32), 3, 3, bytes(COEFFICIENT_BYTES))
