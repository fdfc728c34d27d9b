r"""The aggregator's end: from t answers to the mask keys that remain on the sum, and off with them.

    total  =  Σ_{i in U3} words_i  +  Σ_{i in U3} PRG(b_i)  +  Σ_{i in U3, d in U2 \\ U3} ± PRG(k_id)

Masks between two members of U3 have cancelled. Seeds b_i and the mask secrets of the vanished are put together from
shares and *checked* (against the commitment, against the advertised key), so a wrong share is noticed before it can
spoil the sum, and who altered it is found whenever enough right shares are left.

None of this protects anybody's privacy: the members' own checks do. It protects the sum.
"""

import hmac
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from federation.secagg import keys, masks, shamir
from federation.secagg.cohort import Cohort
from federation.secagg.errors import BelowThreshold, ShareRefused, Unrecoverable
from federation.secagg.masks import MaskStreams, Words
from federation.secagg.secret import MaskSecret, Seed, StreamKey
from federation.secagg.transcript import Context, RevealedShare, ShareKind, commitment, order

# Choices of t shares tried before giving up on one secret; about 3 ms each at n = 100.
CHOICES_MAX = 4000

Answer = Mapping[str, RevealedShare]  # by the member the share is about


@dataclass(frozen=True)
class RecoveredMasks:
    """The masks left on the sum, and who answered wrongly.

    Attributes:
        streams: The masks, with the sign that removes them.
        altered: By member about whom a wrong share was noticed: the revealers of wrong shares; empty when there are too
            many to tell. The sum is right in spite of them; the coordinator should hear of them.
    """

    streams: MaskStreams
    altered: Mapping[str, tuple[str, ...]]


def verify_answer(
    cohort: Cohort, shared: Collection[str], uploaded: Collection[str], revealer: str, answer: Answer
) -> None:
    """Refuses an answer that is not one well-formed share of the right kind about each of U2, from a member of U3.

    Only `recover_masks` shows whether the shares are *right*.

    Args:
        cohort: U1 of the graph.
        shared: U2.
        uploaded: U3.
        revealer: The member that answered.
        answer: Its shares, by the member each is about.

    Raises:
        ShareRefused: The answer is another.
    """
    if revealer not in uploaded:
        raise ShareRefused(revealer, "only members whose upload is in the sum are asked for shares")
    if set(answer) != set(shared):
        raise ShareRefused(revealer, "its answer is not about exactly the members that dealt shares")
    for about, revealed in answer.items():
        expected = ShareKind.SEED if about in uploaded else ShareKind.MASK_KEY
        if revealed.kind is not expected:
            raise ShareRefused(revealer, f"about {about!r} a {expected.name} share was due, got {revealed.kind.name}")
        keys.check_share(revealer, revealed.share)


def recover_masks(
    ctx: Context,
    cohort: Cohort,
    shared: Collection[str],
    uploaded: Collection[str],
    answers: Mapping[str, Answer],
) -> RecoveredMasks:
    """Recovers the seeds of U3 and the mask secrets of U2 without U3: the masks left on the sum.

    Args:
        ctx: Context of the attempt (also for a shard).
        cohort: U1 of the graph.
        shared: U2.
        uploaded: U3.
        answers: By revealer, at least t of them.

    Raises:
        ShareRefused: An answer is refused.
        BelowThreshold: Fewer than t uploads or answers.
        Unrecoverable: No choice of t shares gives a secret.
    """
    for revealer, answer in answers.items():
        verify_answer(cohort, shared, uploaded, revealer, answer)
    for what, have in (("uploads", len(uploaded)), ("answers", len(answers))):
        if have < cohort.threshold:
            raise BelowThreshold(what, have, cohort.threshold)
    recovery = _ShareRecovery(cohort, answers)
    add: list[StreamKey] = []
    subtract: list[StreamKey] = []
    for site in order(uploaded):
        seed = Seed(recovery.secret(site, _commitment_check(ctx, cohort, site)))
        subtract.append(keys.self_key(seed, cohort.uctx, site))
    peers = {peer: cohort.advertisements[peer].mask_key for peer in order(uploaded)}
    for site in order(set(shared) - set(uploaded)):
        secret = MaskSecret(recovery.secret(site, _mask_key_check(cohort, site)))
        for peer, key in keys.pair_keys(secret, peers, cohort.uctx, site).items():
            # peer had added this mask if it comes first of the two, subtracted it otherwise.
            (subtract if order((site, peer))[0] == peer else add).append(key)
    return RecoveredMasks(MaskStreams(tuple(add), tuple(subtract)), recovery.altered)


def unmask(total: Words, recovered: RecoveredMasks, threads: int = 1) -> None:
    """Subtracts the recovered masks from the sum of masked uploads, in place: uint64 [m], modulo 2^64."""
    masks.apply(total, recovered.streams, threads)


class _ShareRecovery:
    """Puts secrets together, remembering whose shares did not fit so that they are tried last."""

    def __init__(self, cohort: Cohort, answers: Mapping[str, Answer]) -> None:
        self._places = cohort.places()
        self._threshold = cohort.threshold
        self._answers = answers
        self._doubted: set[str] = set()
        self._weights: dict[tuple[int, ...], list[int]] = {}
        self.altered: dict[str, tuple[str, ...]] = {}

    def secret(self, about: str, holds: Callable[[bytes], bool]) -> bytes:
        """The 32-byte secret that `holds`, from any t shares that give it."""
        revealers = sorted(order(self._answers), key=lambda site: site in self._doubted)
        shares = {self._places[site]: shamir.decode(self._answers[site][about].share) for site in revealers}
        for chosen in _choices(list(shares), self._threshold):
            secret = shamir.inner(self._weights_of(chosen), (shares[x] for x in chosen))
            if secret < 1 << 256 and holds(secret.to_bytes(32, "big")):
                self._blame(about, revealers, shares, chosen)
                return secret.to_bytes(32, "big")
        raise Unrecoverable(about, tuple(order({about, *revealers})))

    def _weights_of(self, chosen: tuple[int, ...]) -> list[int]:
        if chosen not in self._weights:
            self._weights = {chosen: shamir.weights_at(0, chosen)}
        return self._weights[chosen]

    def _blame(self, about: str, revealers: list[str], shares: Mapping[int, int], chosen: tuple[int, ...]) -> None:
        """Name those whose shares are off the dealer's polynomial, if that is the smallest explanation.

        Liars that know each other can let their errors cancel in one choice: it gives the right secret along a wrong
        polynomial, and honest members seem off it. Two polynomials of degree t - 1 with one value at 0 meet at no more
        than t - 2 of the m places. So if the one found misses e shares, any other misses at least m - t + 2 - e: with
        2e <= m - t + 1 that is more than e, and the e are named. A name is evidence for a person to follow, and wrong
        only if m - t + 2 - e revealers lied together. Done only after a first choice that failed: else the rest was
        not needed.
        """
        if chosen == tuple(shares)[: self._threshold]:
            return
        known = [shares[x] for x in chosen]
        wrong = []
        for site in revealers:
            x = self._places[site]
            if x not in chosen and shamir.inner(shamir.weights_at(x, chosen), known) != shares[x]:
                wrong.append(site)
        smallest = 2 * len(wrong) <= len(shares) - self._threshold + 1
        self.altered[about] = tuple(wrong) if smallest else ()
        self._doubted.update(wrong)


def _commitment_check(ctx: Context, cohort: Cohort, site: str) -> Callable[[bytes], bool]:
    advertised = cohort.advertisements[site].seed_commitment
    return lambda seed: hmac.compare_digest(commitment(ctx, site, seed), advertised)


def _mask_key_check(cohort: Cohort, site: str) -> Callable[[bytes], bool]:
    advertised = cohort.advertisements[site].mask_key
    return lambda secret: hmac.compare_digest(keys.public_key(MaskSecret(secret)), advertised)


def _choices(places: list[int], t: int) -> Iterator[tuple[int, ...]]:
    """Subsets of t places, likely ones first, at most CHOICES_MAX.

    The first t; then windows that slide over the ring of places (one liar, or neighbouring ones, fall into the gap);
    then every way of leaving out the spare shares, or a seeded sample when there are too many.
    """
    yield tuple(places[:t])
    spare = len(places) - t
    if spare == 0:
        return
    for start in range(1, len(places)):
        yield tuple((places + places)[start : start + t])
    if _ways(len(places), spare) <= CHOICES_MAX:
        for left_out in itertools.combinations(places, spare):
            yield tuple(x for x in places if x not in left_out)
        return
    # The order of trying is no secret; a fixed seed makes a find repeatable.
    draw = random.Random(len(places))  # noqa: S311
    for _ in range(CHOICES_MAX):
        yield tuple(draw.sample(places, t))


def _ways(n: int, k: int) -> int:
    ways = 1
    for i in range(k):
        ways = ways * (n - i) // (i + 1)
    return ways
