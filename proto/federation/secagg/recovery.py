r"""The aggregator's end: from t answers to the masks left on the sum, and their subtraction.

    total  =  Σ_{i in U3} words_i  +  Σ_{i in U3} PRG(b_i)  +  Σ_{i in U3, d in U2 \ U3} ± PRG(k_id)

Masks between two members of U3 have cancelled. Seeds b_i and the mask secrets of the vanished are put together from
shares. Each dealer signed a digest of every share it dealt, so a wrong share is refused on arrival and names its
revealer. A secret that follows from right shares is checked against the dealer's commitment or advertised keys; one
that does not fit names its dealer.

None of this protects a member's privacy: the members' own checks do. It protects the sum.
"""

import hmac
from collections.abc import Callable, Collection, Mapping

from federation.secagg import keys, masks, shamir
from federation.secagg.cohort import Cohort
from federation.secagg.errors import BelowThreshold, ShareRefused, Unrecoverable
from federation.secagg.masks import MaskStreams, Words
from federation.secagg.secret import MaskSecret, Seed, StreamKey
from federation.secagg.transcript import (
    Advertisement,
    Context,
    DealtShares,
    OpenedShares,
    RevealedShare,
    ShareKind,
    commitment,
    order,
    reveal_statement,
    share_digest,
)

Answer = Mapping[str, RevealedShare]  # by the member the share is about
Dealt = Mapping[str, Mapping[str, DealtShares]]  # by dealer, then by member
Opened = Mapping[str, Mapping[str, OpenedShares]]  # by dealer, then by the member that complained


def verify_answer(
    cohort: Cohort,
    dealt: Dealt,
    uploaded: Collection[str],
    complained: Collection[str],
    revealer: str,
    answer: Answer,
    signature: bytes,
    signing_key: bytes,
) -> None:
    """Refuses an answer that does not hold exactly the right shares.

    Right are: one share of the due kind about each of U2 but those that the revealer complained about, each with the
    digest that its dealer signed. So a refused share proves that the revealer lied.

    Args:
        cohort: U1 of the graph.
        dealt: Shares that each of U2 dealt.
        uploaded: U3.
        complained: Dealers that the revealer complained about.
        revealer: The member that answered.
        answer: Its shares, 33 bytes each, by the member each is about.
        signature: Ed25519, 64 bytes, by the revealer over `reveal_statement`.
        signing_key: The revealer's raw Ed25519 key in the roster, 32 bytes.

    Raises:
        ShareRefused: The answer is another.
    """
    if revealer not in uploaded:
        raise ShareRefused(revealer, "only members whose upload is in the sum are asked for shares")
    # Order: the signature first. A bad share found below is then the revealer's own, and no invention of a third.
    if not keys.signature_holds(signing_key, signature, reveal_statement(cohort.uctx, revealer, answer)):
        raise ShareRefused(revealer, "its answer is not signed by the roster's key")
    if set(answer) != set(dealt) - set(complained):
        raise ShareRefused(revealer, "its answer is not about exactly the members whose shares it accepted")
    for about, revealed in answer.items():
        expected = ShareKind.SEED if about in uploaded else ShareKind.MASK_KEY
        if revealed.kind is not expected:
            raise ShareRefused(revealer, f"about {about!r} a {expected.name} share was due, got {revealed.kind.name}")
        keys.check_share(revealer, revealed.share)
        digest = share_digest(cohort.uctx, revealed.kind, about, revealer, revealed.share)
        if digest != dealt[about][revealer].share_digest(revealed.kind):
            raise ShareRefused(revealer, f"its share about {about!r} is not the one that {about!r} dealt and signed")


def with_opened(answers: Mapping[str, Answer], opened: Opened, uploaded: Collection[str]) -> dict[str, Answer]:
    """Adds to the answers the shares that dealers have opened, as if the members that complained had revealed them.

    Args:
        answers: By revealer.
        opened: Each accepted by `verify_opened`.
        uploaded: U3.
    """
    added: dict[str, dict[str, RevealedShare]] = {site: dict(answer) for site, answer in answers.items()}
    for dealer, by_member in opened.items():
        kind = ShareKind.SEED if dealer in uploaded else ShareKind.MASK_KEY
        for member, shares in by_member.items():
            added.setdefault(member, {})[dealer] = RevealedShare(kind, shares.share(kind))
    return dict(added)


def recover_masks(
    ctx: Context, cohort: Cohort, dealt: Dealt, uploaded: Collection[str], answers: Mapping[str, Answer]
) -> MaskStreams:
    r"""Recovers the seeds of U3 and the mask secrets of U2 \ U3, and from them the masks left on the sum.

    Args:
        ctx: Context of the attempt, 32 bytes (also for a shard).
        cohort: U1 of the graph.
        dealt: Shares that each of U2 dealt.
        uploaded: U3.
        answers: By revealer, at least t of them, each accepted by `verify_answer`; `with_opened` where dealers opened
            shares.

    Returns:
        The keys of the masks, 32 bytes each, with the sign that removes them.

    Raises:
        BelowThreshold: Fewer than t uploads, answers, or shares about one member.
        Unrecoverable: A dealer signed shares that give no secret of its.
    """
    for what, have in (("uploads", len(uploaded)), ("answers", len(answers))):
        if have < cohort.threshold:
            raise BelowThreshold(what, have, cohort.threshold)
    interpolation = _Interpolation(cohort, answers)
    add: list[StreamKey] = []
    subtract: list[StreamKey] = []
    for site in order(uploaded):
        commitments = cohort.advertisements[site].seed_commitment
        seed = Seed(interpolation.secret(site, _is_committed(ctx, site, commitments)))
        subtract.append(keys.self_key(seed, cohort.uctx, site))
    for site in order(set(dealt) - set(uploaded)):
        secret = MaskSecret(interpolation.secret(site, _is_advertised(cohort.advertisements[site])))
        mask_keys = keys.MaskKeys(secret)
        for peer in order(uploaded):
            peer_key = cohort.advertisements[peer].mask_key
            key = mask_keys.pair_key(cohort.uctx, site, peer, peer_key, dealt[peer].get(site))
            # peer had added this mask if it comes first of the two, subtracted it otherwise.
            (subtract if order((site, peer))[0] == peer else add).append(key)
    return MaskStreams(tuple(add), tuple(subtract))


def check_secret(ctx: Context, cohort: Cohort, answers: Mapping[str, Answer], about: str, kind: ShareKind) -> None:
    """Checks that shares about one member give the secret that it committed to, and forgets it.

    Args:
        ctx: Context of the attempt.
        cohort: U1 of the graph.
        answers: By revealer; only the shares about this member are read.
        about: The member.
        kind: Of the secret.

    Raises:
        BelowThreshold: Fewer than t shares.
        Unrecoverable: They give another secret, or none.
    """
    advertised = cohort.advertisements[about]
    is_seed = kind is ShareKind.SEED
    _Interpolation(cohort, answers).secret(
        about, _is_committed(ctx, about, advertised.seed_commitment) if is_seed else _is_advertised(advertised)
    )


def unmask(total: Words, recovered: MaskStreams, threads: int = 1) -> None:
    """Subtracts the recovered masks from the sum of masked uploads, in place: uint64[m], modulo 2^64."""
    masks.apply(total, recovered, threads)


class _Interpolation:
    """Puts secrets together from t shares each."""

    def __init__(self, cohort: Cohort, answers: Mapping[str, Answer]) -> None:
        self._places = cohort.places()
        self._threshold = cohort.threshold
        self._answers = answers
        # Nearly always the same revealers answer about all members: one set of Lagrange weights serves all secrets.
        self._weights: dict[tuple[int, ...], list[int]] = {}

    def secret(self, about: str, is_right: Callable[[bytes], bool]) -> bytes:
        """Returns the secret of `about`, 32 bytes.

        Raises:
            BelowThreshold: Fewer than t shares about this member.
            Unrecoverable: The shares give no such secret. Their digests are signed, so `about` dealt them so.
        """
        revealers = [site for site in order(self._answers) if about in self._answers[site]][: self._threshold]
        if len(revealers) < self._threshold:
            raise BelowThreshold(f"shares about {about!r}", len(revealers), self._threshold)
        places = tuple(self._places[site] for site in revealers)
        if places not in self._weights:
            self._weights = {places: shamir.weights_at(0, places)}
        shares = (shamir.decode(self._answers[site][about].share) for site in revealers)
        secret = shamir.inner(self._weights[places], shares)
        # The field is larger than 2^256, so shares can also give a number that 32 bytes do not hold.
        if secret >= 1 << 256 or not is_right(secret.to_bytes(32, "big")):
            raise Unrecoverable(about, revealers)
        return secret.to_bytes(32, "big")


def _is_committed(ctx: Context, site: str, advertised: bytes) -> Callable[[bytes], bool]:
    return lambda seed: hmac.compare_digest(commitment(ctx, site, seed), advertised)


def _is_advertised(advertised: Advertisement) -> Callable[[bytes], bool]:
    def is_right(secret: bytes) -> bool:
        mask_keys = keys.MaskKeys(MaskSecret(secret))
        return (mask_keys.mask_key, mask_keys.kem_key) == (advertised.mask_key, advertised.kem_key)

    return is_right
