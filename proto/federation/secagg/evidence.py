"""Evidence that a member dealt and signed shares of no secret: each party that knows the cohort can check it.

At least t members revealed the shares that this dealer had given them, and the dealer had signed a digest of each. An
honest dealer's shares lie on one polynomial, whose value at 0 is the secret that it committed to. So no t shares with
an honest dealer's digests can give anything else, and no party can make such evidence against an honest dealer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from federation.secagg import keys
from federation.secagg.cohort import Cohort, verify_dealt
from federation.secagg.errors import BelowThreshold, EvidenceRefused, SecaggError, Unrecoverable
from federation.secagg.recovery import check_secret
from federation.secagg.transcript import Context, DealtShares, RevealedShare, ShareKind, share_digest


@dataclass(frozen=True)
class BadDealing:
    """The evidence.

    Attributes:
        dealer: The member that it is against.
        kind: Of the secret that the shares do not give.
        dealt: Shares that the dealer dealt and signed, by member; at least t of them.
        shares: Shares that those members revealed, by member, 33 bytes each.
    """

    dealer: str
    kind: ShareKind
    dealt: Mapping[str, DealtShares]
    shares: Mapping[str, bytes]


def verify_bad_dealing(ctx: Context, cohort: Cohort, signing_key: bytes, evidence: BadDealing) -> None:
    """Checks the evidence.

    Args:
        ctx: Context of the attempt, 32 bytes.
        cohort: U1 of the dealer's complete graph.
        signing_key: The dealer's raw Ed25519 key in the roster, 32 bytes.
        evidence: The accusation, from a party that need not be honest.

    Raises:
        EvidenceRefused: It proves nothing.
    """
    dealer, kind = evidence.dealer, evidence.kind
    if dealer not in cohort.advertisements or evidence.dealt.keys() != evidence.shares.keys():
        raise EvidenceRefused(dealer, "it is about no member, or its shares are not those of its dealing")
    if not evidence.dealt.keys() <= cohort.advertisements.keys():
        raise EvidenceRefused(dealer, "it holds shares of sites that were no members")
    for member, dealt in evidence.dealt.items():
        share = evidence.shares[member]
        try:
            verify_dealt(cohort.uctx, dealer, member, dealt, signing_key)
            keys.check_share(member, share)
        except SecaggError as error:
            raise EvidenceRefused(dealer, f"what {member!r} is said to have received is none: {error}") from error
        if share_digest(cohort.uctx, kind, dealer, member, share) != dealt.share_digest(kind):
            raise EvidenceRefused(dealer, f"the share of {member!r} is not the one that was dealt")
    answers = {member: {dealer: RevealedShare(kind, share)} for member, share in evidence.shares.items()}
    try:
        check_secret(ctx, cohort, answers, dealer, kind)
    except Unrecoverable:
        return
    except BelowThreshold as error:
        raise EvidenceRefused(dealer, str(error)) from error
    raise EvidenceRefused(dealer, "the shares give the secret that it committed to")
