"""Names for everything the members agree on: canonical encodings, domain-separated digests, what a signature covers.

Every digest and every signed or authenticated string starts with its own label and holds length-prefixed fields, so
two different statements never have the same bytes (no signature can be moved from one phase, round, cohort or
protocol to another), and the same statement has only one encoding.

    ctx   what the round is about: plan, base model, run, round, attempt, roster epoch, shard. The base model's digest
          is in it, so members who were handed different models share no key and their sum is noise, not a difference
          of two models that would show one member alone (Pasquini et al., CCS 2022).
    uctx  ctx and who takes part with which keys, in one digest. Every later key, ciphertext and signature hangs on it:
          a server that shows two members different cohorts gets ciphertexts that do not decrypt and masks that do not
          cancel.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from federation.secagg.errors import MalformedValue

Context = NewType("Context", bytes)  # ctx, 32 bytes
CohortContext = NewType("CohortContext", bytes)  # uctx, 32 bytes

PROTOCOL = b"hemofed secagg 2"
DIGEST_BYTES = 32
KEY_BYTES = 32
KEM_KEY_BYTES = 1184  # FIPS 203, ML-KEM-768
KEM_CIPHERTEXT_BYTES = 1088
SIGNATURE_BYTES = 64
SITE_BYTES_MAX = 255
RUN_ID_BYTES_MAX = 64


class ShareKind(Enum):
    """The secret of a member that a share is of. Values are those of the wire's RevealedShare.Kind."""

    SEED = 1
    MASK_KEY = 2


@dataclass(frozen=True)
class Advertisement:
    """The keys that a member shows in the keys phase.

    Attributes:
        site: Name of the member.
        mask_key: Raw X25519 public key, 32 bytes, of the pairwise masks.
        kem_key: Raw ML-KEM-768 encapsulation key, 1184 bytes, of the same masks and of the shares for this member.
        share_key: Raw X25519 public key, 32 bytes, of the shares for this member.
        seed_commitment: `commitment(ctx, site, b)`, 32 bytes.
        signature: Ed25519, 64 bytes, by the roster's key of `site` over `keys_statement`.
    """

    site: str
    mask_key: bytes
    kem_key: bytes
    share_key: bytes
    seed_commitment: bytes
    signature: bytes


@dataclass(frozen=True)
class DealtShares:
    """A dealer's message to one member in the shares phase, itself included.

    Attributes:
        kem_ciphertext: ML-KEM-768, 1088 bytes, to the member's `kem_key`; empty in the dealer's own.
        pair_secret: 32 bytes, the dealer's part of their mask key under a one-time pad; empty unless the dealer comes
            first of the two.
        ciphertext: AES-256-GCM of both shares, 82 bytes; empty in the dealer's own.
        seed_digest: `share_digest` of the seed share, 32 bytes.
        key_digest: `share_digest` of the mask-key share, 32 bytes.
        signature: Ed25519, 64 bytes, by the dealer over `dealt_statement`.
    """

    kem_ciphertext: bytes
    pair_secret: bytes
    ciphertext: bytes
    seed_digest: bytes
    key_digest: bytes
    signature: bytes = b""

    def share_digest(self, kind: "ShareKind") -> bytes:
        """Returns the digest, 32 bytes, that a revealed share of this kind has to have."""
        return self.seed_digest if kind is ShareKind.SEED else self.key_digest


@dataclass(frozen=True)
class RevealedShare:
    """One share in clear, as the reveal phase sends it: 33 bytes, an element of the field, big-endian.

    No longer a secret once sent, but until then it is: the repr hides it.
    """

    kind: ShareKind
    share: bytes

    def __repr__(self) -> str:
        return f"RevealedShare({self.kind.name}, hidden)"


@dataclass(frozen=True)
class OpenedShares:
    """Both shares in clear that a dealer had dealt to a member that complained: 33 bytes each.

    An honest dealer is accused by corrupt members only, which know these shares; the repr hides them all the same.
    """

    seed_share: bytes
    key_share: bytes

    def share(self, kind: ShareKind) -> bytes:
        """Returns the share of this kind, 33 bytes."""
        return self.seed_share if kind is ShareKind.SEED else self.key_share

    def __repr__(self) -> str:
        return "OpenedShares(hidden)"


def threshold(members: int) -> int:
    """Computes t = ⌊2n/3⌋ + 1. Each site computes it for itself and never takes it from a message.

    With fewer than n/3 corrupt members no two different sets can both collect t signatures, because an honest member
    signs one set only. So the aggregator cannot have seeds recovered for one set and mask keys for another.
    """
    return 2 * members // 3 + 1


def context(
    plan_digest: bytes,
    base_digest: bytes,
    run_id: bytes,
    round_number: int,
    attempt: int,
    roster_epoch: int,
    shard: int = 0,
) -> Context:
    """Computes ctx, 32 bytes, of one attempt at one round of one run.

    Args:
        plan_digest: 32 bytes.
        base_digest: Digest of the base model, 32 bytes.
        run_id: 1 to 64 bytes.
        round_number: Below 2^63, as all integers here.
        attempt: Number of the attempt.
        roster_epoch: Epoch of the frozen roster.
        shard: 0 for a cohort that advertises as one, however it is split afterwards (`cohort.split`).
    """
    _require_digest("plan digest", plan_digest)
    _require_digest("base model digest", base_digest)
    if not 0 < len(run_id) <= RUN_ID_BYTES_MAX:
        raise MalformedValue(f"a run id has 1 to {RUN_ID_BYTES_MAX} bytes, got {len(run_id)}")
    integers = (_u64(value) for value in (round_number, attempt, roster_epoch, shard))
    return Context(digest("context", plan_digest, base_digest, run_id, *integers))


def cohort_context(ctx: Context, advertisements: Mapping[str, Advertisement]) -> CohortContext:
    """Returns uctx, 32 bytes: the digest of ctx, t and all advertisements in the order of their sites.

    Signatures are left out: they are checked, and Ed25519 allows a signer several on one statement.
    """
    return CohortContext(digest("cohort", ctx, _u64(threshold(len(advertisements))), *_entries(advertisements)))


def shard_seed(ctx: Context, advertisements: Mapping[str, Advertisement]) -> bytes:
    """Returns the 32 bytes that decide the shards: a digest of the round and of all keys and commitments."""
    return digest("shard seed", ctx, *_entries(advertisements))


def shard_rank(seed: bytes, site: str) -> bytes:
    """Returns the 32 bytes by which a cohort is sorted into its shuffle."""
    return digest("shard rank", seed, _site(site))


def shard_context(ctx: Context, seed: bytes, index: int) -> Context:
    """Computes ctx of one shard, 32 bytes. Sites that saw different cohorts share no key, even in shards that agree."""
    return Context(digest("shard", ctx, seed, _u64(index)))


def order(sites: Iterable[str]) -> list[str]:
    """Returns members in the one order: by the bytes of the UTF-8 name. A place in U1, from 1, is a Shamir point."""
    return sorted(sites, key=_site)


def commitment(ctx: Context, site: str, seed: bytes) -> bytes:
    """Returns H(b), 32 bytes: it binds a member to its self-mask seed before any party sees a share.

    So a wrong recovery shows. b has 256 bits of entropy, so the digest hides it.
    """
    return digest("seed", ctx, _site(site), seed)


def keys_statement(ctx: Context, advertisement: Advertisement) -> bytes:
    """Returns the bytes that a member signs in the keys phase."""
    a = advertisement
    return statement("keys", ctx, _site(a.site), a.mask_key, a.kem_key, a.share_key, a.seed_commitment)


def dealt_statement(uctx: CohortContext, dealer: str, member: str, dealt: DealtShares) -> bytes:
    """Returns the bytes that a dealer signs about its shares for one member. So no other can spoil them in its name."""
    return statement("dealt", uctx, _site(dealer), _site(member), dealt_digest(dealt))


def dealt_digest(dealt: DealtShares) -> bytes:
    """Returns SHA-256, 32 bytes, over all fields but the signature."""
    d = dealt
    return digest("dealt shares", d.kem_ciphertext, d.pair_secret, d.ciphertext, d.seed_digest, d.key_digest)


def share_digest(uctx: CohortContext, kind: "ShareKind", dealer: str, member: str, share: bytes) -> bytes:
    """Returns the 32 bytes that bind a dealer to one share. A share has 256 bits of entropy, so the digest hides it."""
    return digest("dealt share", uctx, kind.name.encode(), _site(dealer), _site(member), share)


def complaint_statement(uctx: CohortContext, site: str, dealer: str, dealt: DealtShares) -> bytes:
    """Returns the bytes that a member signs when the shares that `dealer` signed for it are none."""
    return statement("complaint", uctx, _site(site), _site(dealer), dealt_digest(dealt))


def reveal_statement(uctx: CohortContext, site: str, answer: Mapping[str, "RevealedShare"]) -> bytes:
    """Returns the bytes that a member signs in the reveal phase: its one answer."""
    entries = (frame(_site(about), answer[about].kind.name.encode(), answer[about].share) for about in order(answer))
    return statement("reveal", uctx, _site(site), digest("answer", *entries))


def upload_statement(uctx: CohortContext, site: str, upload_digest: bytes) -> bytes:
    """Returns the bytes that a member signs with its upload. The upload's SHA-256 has 32 bytes."""
    _require_digest("upload digest", upload_digest)
    return statement("upload", uctx, _site(site), upload_digest)


def confirm_statement(uctx: CohortContext, uploaded: Collection[str]) -> bytes:
    """Returns the bytes that every member of U3 signs in the confirm phase, the same for all: H(U3)."""
    return statement("confirm", uctx, digest("uploaded", *(_site(site) for site in order(uploaded))))


def share_label(uctx: CohortContext, sender: str, receiver: str, kem_ciphertext: bytes) -> bytes:
    """Returns HKDF info and AAD of the ciphertext from sender to receiver: one key a direction, one message a key."""
    return statement("share", uctx, _site(sender), _site(receiver), hashlib.sha256(kem_ciphertext).digest())


def pair_secret_label(uctx: CohortContext, first: str, second: str) -> bytes:
    """Returns the HKDF info of the secret that the first of two members adds to their mask key."""
    return statement("pair secret", uctx, _site(first), _site(second))


def pair_pad_label(uctx: CohortContext, first: str, second: str) -> bytes:
    """Returns the HKDF info of the one-time pad under which that secret travels."""
    return statement("pair pad", uctx, _site(first), _site(second))


def pair_label(uctx: CohortContext, site: str, peer: str) -> bytes:
    """Returns the HKDF info of the pairwise mask of two members, the same from both ends."""
    first, second = order((site, peer))
    return statement("mask", uctx, _site(first), _site(second))


def self_label(uctx: CohortContext, site: str) -> bytes:
    """Returns the HKDF info of a member's self mask."""
    return statement("self", uctx, _site(site))


def polynomial_label(uctx: CohortContext, kind: ShareKind) -> bytes:
    """Returns the HKDF info of the coefficients that share one of a member's two secrets in this cohort."""
    return statement("polynomial", uctx, kind.name.encode())


def digest(label: str, *fields: bytes) -> bytes:
    """Returns SHA-256 (FIPS 180-4) of a statement, 32 bytes."""
    return hashlib.sha256(statement(label, *fields)).digest()


def statement(label: str, *fields: bytes) -> bytes:
    """Returns protocol name, label and fields, framed."""
    return frame(PROTOCOL, label.encode(), *fields)


def frame(*fields: bytes) -> bytes:
    """Returns the number of fields, then each as length and bytes (integers: 8 bytes, big-endian). It is injective."""
    return _u64(len(fields)) + b"".join(_u64(len(field)) + field for field in fields)


def _entries(advertisements: Mapping[str, Advertisement]) -> list[bytes]:
    named = [(site, advertisements[site]) for site in order(advertisements)]
    return [frame(_site(site), a.mask_key, a.kem_key, a.share_key, a.seed_commitment) for site, a in named]


def _u64(value: int) -> bytes:
    if not 0 <= value < 1 << 63:
        raise MalformedValue(f"expected an integer from 0 to 2^63 - 1, got {value}")
    return value.to_bytes(8, "big")


def _site(site: str) -> bytes:
    name = site.encode()
    if not 0 < len(name) <= SITE_BYTES_MAX:
        raise MalformedValue(f"a site name has 1 to {SITE_BYTES_MAX} bytes, got {len(name)}")
    return name


def _require_digest(what: str, value: bytes) -> None:
    if len(value) != DIGEST_BYTES:
        raise MalformedValue(f"a {what} has {DIGEST_BYTES} bytes, got {len(value)}")
