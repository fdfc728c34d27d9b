"""The members that take part: checks on advertisements, the frozen cohort U1, and its split into shards.

What each check stops:

    signature against the roster   an aggregator that invents members or swaps their keys for its own, and so sits at
                                   both ends of every mask. The roster is the custodian's, stored at the site before.
    canonical, not weak            a corrupt member whose masks are known to all, or two strings that are one key
    no duplicates                  a member that echoes another's key, so that shares or masks cancel, or come off twice
    own entry intact               an aggregator that drops or replaces this member in what the others see
    minimum                        a "sum" of one or two members
    earlier attempt out of reach   a second sum of one round with a member that uploaded and was told, falsely, that the
                                   attempt had failed

Shards. The complete graph costs each member work in proportion to n, so a cohort above SPLIT_ABOVE is shuffled into
shards, each a complete graph of its own with its own t. Every member computes their membership from the keys and
commitments that all members signed; the aggregator cannot put a victim among colluders by choice. It can still try:
a corrupt member that speaks last may vary its keys until the shuffle pleases it. The size of a shard answers that. A
shard is lost when a third of it is corrupt; for 1000 sites, 100 of them corrupt, the chance per shuffle
(hypergeometric) is 2^-44 at a shard size of 112, the least we allow, and 2^-130 at 250, the size we aim for,
which leaves nothing to find with 2^60 tries. `tests/contract/test_secagg_shards.py` computes these figures.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from federation.secagg import keys
from federation.secagg.errors import (
    AdvertisementRefused,
    ComplaintRefused,
    ConfirmationRefused,
    MalformedValue,
    ShareRefused,
    UploadRefused,
)
from federation.secagg.transcript import (
    DIGEST_BYTES,
    Advertisement,
    CohortContext,
    Context,
    DealtShares,
    OpenedShares,
    ShareKind,
    cohort_context,
    complaint_statement,
    confirm_statement,
    dealt_statement,
    keys_statement,
    order,
    shard_context,
    shard_rank,
    shard_seed,
    share_digest,
    threshold,
    upload_statement,
)

SPLIT_ABOVE = 500
SHARD_SIZE = 250
SHARD_SIZE_MIN = 112


@dataclass(frozen=True)
class Cohort:
    """U1 of one complete graph: a whole cohort, or one shard of it.

    `split` makes it, and checks nothing that `verify_advertisement` checks.

    Attributes:
        uctx: Context of the graph, 32 bytes.
        advertisements: By site.
    """

    uctx: CohortContext
    advertisements: Mapping[str, Advertisement]

    @property
    def members(self) -> list[str]:
        """Names of the members in the one order; the place of a member, from 1, is its Shamir point."""
        return order(self.advertisements)

    @property
    def threshold(self) -> int:
        """Number of members that can recover the sum: t."""
        return threshold(len(self.advertisements))

    def places(self) -> dict[str, int]:
        """Shamir point of each member."""
        return {site: place for place, site in enumerate(self.members, start=1)}


def verify_advertisement(ctx: Context, roster: Mapping[str, bytes], advertisement: Advertisement) -> None:
    """Refuses keys that the roster's owner of the name did not sign for this attempt, or that are unfit for use.

    Args:
        ctx: Context of the attempt, 32 bytes.
        roster: Raw Ed25519 public keys by site, 32 bytes each.
        advertisement: The keys that a member advertised.

    Raises:
        AdvertisementRefused: The site is not in the roster, the signature does not hold, or a key is weak.
    """
    site = advertisement.site
    if site not in roster:
        raise AdvertisementRefused(site, "the site is not in the roster")
    if len(advertisement.seed_commitment) != DIGEST_BYTES:
        raise AdvertisementRefused(site, "its seed commitment is not a SHA-256 digest")
    for key in (advertisement.mask_key, advertisement.share_key):
        keys.check_public_key(site, key)
    keys.check_kem_key(site, advertisement.kem_key)
    if not keys.signature_holds(roster[site], advertisement.signature, keys_statement(ctx, advertisement)):
        raise AdvertisementRefused(site, "its signature does not hold for this round under the roster's key")


def check_distinct(advertisements: Iterable[Advertisement]) -> None:
    """Refuses a key or a commitment that two members share, and one key for both uses of a member.

    Raises:
        AdvertisementRefused: A value stands twice.
    """
    owners: dict[bytes, str] = {}
    for a in advertisements:
        for value in (a.mask_key, a.kem_key, a.share_key, a.seed_commitment):
            if value in owners:
                raise AdvertisementRefused(a.site, f"a key or commitment also stands in that of {owners[value]!r}")
            owners[value] = a.site


def verify_cohort(ctx: Context, roster: Mapping[str, bytes], advertisements: Mapping[str, Advertisement]) -> None:
    """Checks a whole cohort before it is split.

    Args:
        ctx: Context of the attempt, 32 bytes.
        roster: Raw Ed25519 public keys by site, 32 bytes each.
        advertisements: By site.

    Raises:
        AdvertisementRefused: An advertisement is refused, stands under another name, or shares a key.
    """
    for site, advertisement in advertisements.items():
        if advertisement.site != site:
            raise AdvertisementRefused(site, f"it is filed under another name than its own, {advertisement.site!r}")
        verify_advertisement(ctx, roster, advertisement)
    check_distinct(advertisements.values())


def out_of_reach(earlier: Collection[str], later: Collection[str]) -> bool:
    """Tells whether the sum of an attempt is beyond recovery: enough of its members signed keys for a later one.

    An honest member signs keys for its newest attempt only, and for none after it has revealed: it will not reveal in
    an earlier one. Fewer than a third of `earlier` may sign and reveal all the same; so with `certain` honest ones gone
    at most n - certain can reveal.

    Args:
        earlier: U1 of the attempt, of one complete graph.
        later: Sites that signed keys for a later attempt.
    """
    n = len(earlier)
    certain = len(set(earlier) & set(later)) - (n - 1) // 3
    return n - certain < threshold(n)


def split(ctx: Context, advertisements: Mapping[str, Advertisement], shard_size: int = SHARD_SIZE) -> list[Cohort]:
    """Returns the complete graphs of a cohort: one up to SPLIT_ABOVE members, else shards of at least `shard_size`.

    The result is deterministic, and the same at every member and at the aggregator.

    Args:
        ctx: Context of the attempt, 32 bytes.
        advertisements: By site.
        shard_size: SHARD_SIZE_MIN or more members, a constant of the consortium that all must hold alike.

    Raises:
        MalformedValue: `shard_size` is below SHARD_SIZE_MIN.
    """
    if shard_size < SHARD_SIZE_MIN:
        raise MalformedValue(f"a shard below {SHARD_SIZE_MIN} members is not safe, got {shard_size}")
    if len(advertisements) <= SPLIT_ABOVE:
        return [Cohort(cohort_context(ctx, advertisements), dict(advertisements))]
    seed = shard_seed(ctx, advertisements)
    shuffled = sorted(advertisements, key=lambda site: shard_rank(seed, site))
    shards = len(shuffled) // shard_size
    cohorts = []
    for index in range(shards):
        # Dealt out in turn: sizes differ by one at most, and none is below `shard_size`.
        members = {site: advertisements[site] for site in shuffled[index::shards]}
        cohorts.append(Cohort(cohort_context(shard_context(ctx, seed, index), members), members))
    return cohorts


def verify_dealt(uctx: CohortContext, dealer: str, member: str, dealt: DealtShares, signing_key: bytes) -> None:
    """Refuses shares that `dealer` did not sign for `member`: they say nothing about the dealer.

    Args:
        uctx: Context of the cohort, 32 bytes.
        dealer: The member that dealt.
        member: The member that it dealt to.
        dealt: The shares, with Ed25519 (RFC 8032), 64 bytes, over `dealt_statement`.
        signing_key: The dealer's raw Ed25519 key in the roster, 32 bytes.

    Raises:
        ShareRefused: The signature does not hold, or a field has another length.
    """
    keys.check_form(dealer, member, dealt)
    if not keys.signature_holds(signing_key, dealt.signature, dealt_statement(uctx, dealer, member, dealt)):
        raise ShareRefused(dealer, f"what is said to be dealt to {member!r} is not signed by the roster's key")


def verify_complaint(
    uctx: CohortContext, site: str, dealer: str, dealt: DealtShares, signature: bytes, signing_key: bytes
) -> None:
    """Refuses a complaint about a dealer's shares that `site` did not sign.

    Args:
        uctx: Context of the cohort, 32 bytes.
        site: The member that complains.
        dealer: The member that dealt.
        dealt: The shares that the dealer signed for `site`.
        signature: Ed25519, 64 bytes, by `site` over `complaint_statement`.
        signing_key: The raw Ed25519 key of `site` in the roster, 32 bytes.

    Raises:
        ComplaintRefused: The signature does not hold.
    """
    if not keys.signature_holds(signing_key, signature, complaint_statement(uctx, site, dealer, dealt)):
        raise ComplaintRefused(
            f"the complaint of {site!r} about {dealer!r} is not its signature over what it was dealt"
        )


def complaints_max(members: int) -> int:
    """The most complaints about one honest dealer, and the most of one honest member: floor((n - 1) / 3) of n.

    Fewer than a third of the members are corrupt, an honest member complains only about shares that the dealer signed
    and that are none, and one that finds more dealers to be bad holds too few shares to go on.
    """
    return (members - 1) // 3


def proven_dealers(members: int, complaints: Mapping[str, Collection[str]]) -> list[str]:
    """Returns the dealers whose guilt follows from complaints, in order.

    Among more than `complaints_max` complaints about one dealer at least one is an honest member's. Up to that many
    prove nothing: the dealer has to open the shares in question (`verify_opened`), or be taken for silent.

    Args:
        members: Size n of the complete graph.
        complaints: By dealer, the members that complained.
    """
    # As a set: a member counts once, however often it complained.
    return order(dealer for dealer, sites in complaints.items() if len(set(sites)) > complaints_max(members))


def verify_opened(uctx: CohortContext, dealer: str, member: str, dealt: DealtShares, opened: OpenedShares) -> None:
    """Refuses opened shares, 33 bytes each, that are not those whose digests `dealer` had signed for `member`.

    Raises:
        ShareRefused: They are others.
    """
    for kind in ShareKind:
        share = opened.share(kind)
        keys.check_share(dealer, share)
        if share_digest(uctx, kind, dealer, member, share) != dealt.share_digest(kind):
            raise ShareRefused(dealer, f"the shares that it opened are not those that it dealt to {member!r}")


def verify_claim(uctx: CohortContext, site: str, digest: bytes, signature: bytes, signing_key: bytes) -> None:
    """Refuses an upload that its member did not sign. So a member's masks hide only words that this member chose.

    Args:
        uctx: Context of the cohort, 32 bytes.
        site: The member.
        digest: SHA-256 of the uploaded blob, 32 bytes.
        signature: The claim: Ed25519, 64 bytes, over `upload_statement`.
        signing_key: The member's raw Ed25519 key in the roster, 32 bytes.

    Raises:
        UploadRefused: The signature does not hold.
    """
    if not keys.signature_holds(signing_key, signature, upload_statement(uctx, site, digest)):
        raise UploadRefused(f"the claim of {site!r} is not signed by the roster's key for these bytes in this cohort")


def verify_confirmation(
    uctx: CohortContext, site: str, uploaded: Iterable[str], signature: bytes, signing_key: bytes
) -> None:
    """Refuses a confirmation that `site` did not sign for exactly this set of uploads.

    Args:
        uctx: Context of the cohort, 32 bytes.
        site: The member.
        uploaded: U3.
        signature: Ed25519, 64 bytes, over `confirm_statement`.
        signing_key: The member's raw Ed25519 key in the roster, 32 bytes.

    Raises:
        ConfirmationRefused: The signature does not hold.
    """
    if not keys.signature_holds(signing_key, signature, confirm_statement(uctx, list(uploaded))):
        raise ConfirmationRefused(f"the confirmation of {site!r} is not its signature over this set of uploads")
