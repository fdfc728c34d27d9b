"""The memory of a member between two steps, and its canonical bytes.

    ADVERTISED -> SHARED -> RECEIVED -> MASKED -> CONFIRMED -> REVEALED

    | phase      | secrets | U1, keys | dealt | U2, complained | held         | words | claim | U3, opened | answer |
    |------------|---------|----------|-------|----------------|--------------|-------|-------|------------|--------|
    | ADVERTISED | all     | –        | –     | –              | –            | –     | –     | –          | –      |
    | SHARED     | all     | yes      | yes   | –              | own          | –     | –     | –          | –      |
    | RECEIVED   | all     | yes      | yes   | yes            | of all of U2 | –     | –     | –          | –      |
    | MASKED     | all     | yes      | yes   | yes            | of all of U2 | yes   | maybe | –          | –      |
    | CONFIRMED  | wiped   | yes      | –     | yes            | of all of U2 | yes   | yes   | yes        | –      |
    | REVEALED   | wiped   | yes      | –     | yes            | wiped        | yes   | yes   | yes        | yes    |

A dealer that this member complained about is in U2, and no shares of it are held.

Secrets go as early as they can: a member's own when it knows that its upload arrived, the other kind of each held
share when the answer is made. A thief of the state file then finds only shares that were already revealed.

The bytes hold secrets until then: the agent keeps them in a file of its own (0600), writes it before anything leaves,
and overwrites it. The signing key is never in them. They end in a SHA-256, against torn writes (not against an
attacker who can write the state folder: that one owns the site anyway).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from federation.secagg.errors import MalformedValue, SnapshotRefused
from federation.secagg.secret import MaskSecret, PolynomialSecret, Seed, SharePair, ShareSecret
from federation.secagg.transcript import (
    Advertisement,
    CohortContext,
    Context,
    DealtShares,
    OpenedShares,
    RevealedShare,
    ShareKind,
    frame,
    order,
)

_FORMAT = b"hemofed secagg member 3"


_NO_COHORT = CohortContext(b"")


class Phase(Enum):
    """The last step a member took."""

    ADVERTISED = "advertised"
    SHARED = "shared"
    RECEIVED = "received"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    REVEALED = "revealed"


@dataclass(frozen=True)
class OwnSecrets:
    """All secrets that a member ever draws at random, 32 bytes each."""

    mask: MaskSecret
    share: ShareSecret
    seed: Seed
    polynomial: PolynomialSecret

    def wipe(self) -> None:
        """Overwrites every secret."""
        for secret in (self.mask, self.share, self.seed, self.polynomial):
            secret.wipe()


@dataclass(frozen=True, kw_only=True)
class MemberState:
    """See the table above.

    Attributes:
        phase: The last step taken.
        ctx: Context of the attempt.
        own: This member's advertisement.
        secrets: Everything it drew.
        uctx: Context of its own shard; empty before SHARED.
        cohort: U1 of that shard.
        signing_keys: The roster's, of U1.
        dealt: What it dealt, by member; drawn once, because a KEM ciphertext is random.
        received: `dealt_digest` of what each other member of U2 dealt to it.
        complained: Dealers whose shares are none.
        held: Shares by dealer, its own included.
        masked_digest: SHA-256 of the masked words.
        upload_digest: What the claim signs.
        uploaded: U3, in order.
        opened: What it dealt to members that complained about it, in clear.
        answer: Its answer, by the member each share is about.
    """

    phase: Phase
    ctx: Context
    own: Advertisement
    secrets: OwnSecrets | None = None
    uctx: CohortContext = _NO_COHORT
    cohort: Mapping[str, Advertisement] = field(default_factory=dict)
    signing_keys: Mapping[str, bytes] = field(default_factory=dict)
    dealt: Mapping[str, DealtShares] = field(default_factory=dict)
    received: Mapping[str, bytes] = field(default_factory=dict)
    complained: tuple[str, ...] = ()
    held: Mapping[str, SharePair] = field(default_factory=dict)
    masked_digest: bytes = b""
    upload_digest: bytes = b""
    uploaded: tuple[str, ...] = ()
    opened: Mapping[str, OpenedShares] = field(default_factory=dict)
    answer: Mapping[str, RevealedShare] = field(default_factory=dict)

    def wipe(self) -> None:
        """Overwrite every secret this state holds."""
        if self.secrets is not None:
            self.secrets.wipe()
        for pair in self.held.values():
            pair.wipe()


def to_bytes(state: MemberState) -> bytes:
    """Returns the canonical bytes of a state: one string for one state. They hold its secrets in clear."""
    body = frame(
        _FORMAT,
        state.phase.value.encode(),
        state.ctx,
        _advertisement_bytes(state.own),
        _secrets_bytes(state.secrets),
        state.uctx,
        frame(*(_advertisement_bytes(state.cohort[site]) for site in order(state.cohort))),
        frame(*(state.signing_keys[site] for site in order(state.cohort))),
        frame(*(_dealt_bytes(site, state.dealt[site]) for site in order(state.dealt))),
        frame(*(frame(site.encode(), state.received[site]) for site in order(state.received))),
        frame(*(site.encode() for site in state.complained)),
        frame(*(frame(site.encode(), state.held[site].expose()) for site in order(state.held))),
        state.masked_digest,
        state.upload_digest,
        frame(*(site.encode() for site in state.uploaded)),
        frame(*(_opened_bytes(site, state.opened[site]) for site in order(state.opened))),
        frame(*(_answer_bytes(site, state.answer[site]) for site in order(state.answer))),
    )
    return body + hashlib.sha256(body).digest()


def from_bytes(data: bytes) -> MemberState:
    """Returns the state whose `to_bytes` is `data`.

    Raises:
        SnapshotRefused: The data is torn, altered, of another version, or not canonical.
    """
    body, checksum = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != checksum:
        raise SnapshotRefused("the saved member state is torn or altered (its checksum is wrong); abandon the attempt")
    try:
        state = _parse(body)
    except (MalformedValue, ValueError) as error:
        raise SnapshotRefused(f"the saved member state is not of this version ({error}); abandon the attempt") from None
    if to_bytes(state) != data:
        raise SnapshotRefused("the saved member state is not in canonical form; abandon the attempt")
    return state


def _parse(body: bytes) -> MemberState:
    fields = unframe(body)
    if len(fields) != 17 or fields[0] != _FORMAT:
        raise MalformedValue("unknown format")
    cohort = [_advertisement(entry) for entry in unframe(fields[6])]
    signing_keys = zip((a.site for a in cohort), unframe(fields[7]), strict=True)
    return MemberState(
        phase=Phase(fields[1].decode()),
        ctx=Context(fields[2]),
        own=_advertisement(fields[3]),
        secrets=_secrets(fields[4]),
        uctx=CohortContext(fields[5]),
        cohort={a.site: a for a in cohort},
        signing_keys=dict(signing_keys),
        dealt=dict(_dealt(entry) for entry in unframe(fields[8])),
        received={site.decode(): digest for site, digest in map(_pair, unframe(fields[9]))},
        complained=tuple(site.decode() for site in unframe(fields[10])),
        held={site.decode(): SharePair(pair) for site, pair in map(_pair, unframe(fields[11]))},
        masked_digest=fields[12],
        upload_digest=fields[13],
        uploaded=tuple(site.decode() for site in unframe(fields[14])),
        opened=dict(_opened(entry) for entry in unframe(fields[15])),
        answer=dict(_answer(entry) for entry in unframe(fields[16])),
    )


def unframe(data: bytes) -> list[bytes]:
    """Returns the fields that `transcript.frame` joined.

    Raises:
        MalformedValue: `frame` does not make such bytes.
    """
    position = 8
    fields = []
    for _ in range(int.from_bytes(data[:8], "big")):
        size = int.from_bytes(data[position : position + 8], "big")
        field_bytes = data[position + 8 : position + 8 + size]
        position += 8 + size
        if position > len(data):
            raise MalformedValue("a field reaches beyond the end")
        fields.append(field_bytes)
    if position != len(data):
        raise MalformedValue("bytes are left over")
    return fields


def _pair(data: bytes) -> tuple[bytes, bytes]:
    first, second = unframe(data)
    return first, second


def _advertisement_bytes(a: Advertisement) -> bytes:
    return frame(a.site.encode(), a.mask_key, a.kem_key, a.share_key, a.seed_commitment, a.signature)


def _advertisement(data: bytes) -> Advertisement:
    site, mask_key, kem_key, share_key, seed_commitment, signature = unframe(data)
    return Advertisement(site.decode(), mask_key, kem_key, share_key, seed_commitment, signature)


def _dealt_bytes(site: str, d: DealtShares) -> bytes:
    fields = (d.kem_ciphertext, d.pair_secret, d.ciphertext, d.seed_digest, d.key_digest, d.signature)
    return frame(site.encode(), *fields)


def _dealt(data: bytes) -> tuple[str, DealtShares]:
    site, *fields = unframe(data)
    return site.decode(), DealtShares(*fields)


def _secrets_bytes(secrets: OwnSecrets | None) -> bytes:
    if secrets is None:
        return b""
    own = (secrets.mask, secrets.share, secrets.seed, secrets.polynomial)
    return frame(*(secret.expose() for secret in own))


def _secrets(data: bytes) -> OwnSecrets | None:
    if not data:
        return None
    mask, share, seed, polynomial = unframe(data)
    return OwnSecrets(MaskSecret(mask), ShareSecret(share), Seed(seed), PolynomialSecret(polynomial))


def _opened_bytes(site: str, opened: OpenedShares) -> bytes:
    return frame(site.encode(), opened.seed_share, opened.key_share)


def _opened(data: bytes) -> tuple[str, OpenedShares]:
    site, seed_share, key_share = unframe(data)
    return site.decode(), OpenedShares(seed_share, key_share)


def _answer_bytes(about: str, revealed: RevealedShare) -> bytes:
    return frame(about.encode(), revealed.kind.name.encode(), revealed.share)


def _answer(data: bytes) -> tuple[str, RevealedShare]:
    about, kind, share = unframe(data)
    if kind.decode() not in ShareKind.__members__:
        raise MalformedValue("unknown kind of share")
    return about.decode(), RevealedShare(ShareKind[kind.decode()], share)
