"""What a member remembers between two steps, and its canonical bytes.

    ADVERTISED -> SHARED -> MASKED -> CONFIRMED -> REVEALED        (from anywhere the file is overwritten and removed)

    | phase      | secrets | cohort, signing keys | held           | words | claim | uploaded | answer |
    |------------|---------|----------------------|----------------|-------|-------|----------|--------|
    | ADVERTISED | all     | –                    | –              | –     | –     | –        | –      |
    | SHARED     | all     | U1                   | own            | –     | –     | –        | –      |
    | MASKED     | all     | U1                   | of all of U2   | yes   | maybe | –        | –      |
    | CONFIRMED  | wiped   | U1                   | of all of U2   | yes   | yes   | U3       | –      |
    | REVEALED   | wiped   | U1                   | wiped          | yes   | yes   | U3       | yes    |

Secrets go as early as they can: a member's own when it knows that its upload arrived, the other kind of each held
share when the answer is made. Whoever reads the state file afterwards finds only what was already revealed.

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
from federation.secagg.transcript import Advertisement, CohortContext, Context, RevealedShare, ShareKind, frame, order

_FORMAT = b"hemofed secagg member 2"


_NO_COHORT = CohortContext(b"")


class Phase(Enum):
    """The last step a member took."""

    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    REVEALED = "revealed"


@dataclass(frozen=True)
class OwnSecrets:
    """Everything a member ever draws at random."""

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

    own: this member's advertisement. uctx: of the member's own shard, empty before SHARED. cohort: U1 of that shard.
    signing_keys: the roster's, of U1. held: shares about others (and itself) by dealer. masked_digest: SHA-256 of the
    masked words. upload_digest: what the claim signs. uploaded: U3, in order. answer: by whom it is about.
    """

    phase: Phase
    ctx: Context
    own: Advertisement
    secrets: OwnSecrets | None = None
    uctx: CohortContext = _NO_COHORT
    cohort: Mapping[str, Advertisement] = field(default_factory=dict)
    signing_keys: Mapping[str, bytes] = field(default_factory=dict)
    held: Mapping[str, SharePair] = field(default_factory=dict)
    masked_digest: bytes = b""
    upload_digest: bytes = b""
    uploaded: tuple[str, ...] = ()
    answer: Mapping[str, RevealedShare] = field(default_factory=dict)

    def wipe(self) -> None:
        """Overwrite every secret this state holds."""
        if self.secrets is not None:
            self.secrets.wipe()
        for pair in self.held.values():
            pair.wipe()


def to_bytes(state: MemberState) -> bytes:
    """Canonical: one state, one string. Holds the state's secrets in clear."""
    body = frame(
        _FORMAT,
        state.phase.value.encode(),
        state.ctx,
        _advertisement_bytes(state.own),
        _secrets_bytes(state.secrets),
        state.uctx,
        frame(*(_advertisement_bytes(state.cohort[site]) for site in order(state.cohort))),
        frame(*(state.signing_keys[site] for site in order(state.cohort))),
        frame(*(frame(site.encode(), state.held[site].expose()) for site in order(state.held))),
        state.masked_digest,
        state.upload_digest,
        frame(*(site.encode() for site in state.uploaded)),
        frame(*(_answer_bytes(site, state.answer[site]) for site in order(state.answer))),
    )
    return body + hashlib.sha256(body).digest()


def from_bytes(data: bytes) -> MemberState:
    """The state whose `to_bytes` is `data`; anything else is refused with SnapshotRefused."""
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
    if len(fields) != 13 or fields[0] != _FORMAT:
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
        held={site.decode(): SharePair(pair) for site, pair in map(_pair, unframe(fields[8]))},
        masked_digest=fields[9],
        upload_digest=fields[10],
        uploaded=tuple(site.decode() for site in unframe(fields[11])),
        answer=dict(_answer(entry) for entry in unframe(fields[12])),
    )


def unframe(data: bytes) -> list[bytes]:
    """Inverse of `transcript.frame`; Malformed for anything that `frame` does not make."""
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
    one, other = unframe(data)
    return one, other


def _advertisement_bytes(a: Advertisement) -> bytes:
    return frame(a.site.encode(), a.mask_key, a.share_key, a.seed_commitment, a.signature)


def _advertisement(data: bytes) -> Advertisement:
    site, mask_key, share_key, seed_commitment, signature = unframe(data)
    return Advertisement(site.decode(), mask_key, share_key, seed_commitment, signature)


def _secrets_bytes(secrets: OwnSecrets | None) -> bytes:
    if secrets is None:
        return b""
    return frame(*(one.expose() for one in (secrets.mask, secrets.share, secrets.seed, secrets.polynomial)))


def _secrets(data: bytes) -> OwnSecrets | None:
    if not data:
        return None
    mask, share, seed, polynomial = unframe(data)
    return OwnSecrets(MaskSecret(mask), ShareSecret(share), Seed(seed), PolynomialSecret(polynomial))


def _answer_bytes(about: str, revealed: RevealedShare) -> bytes:
    return frame(about.encode(), revealed.kind.name.encode(), revealed.share)


def _answer(data: bytes) -> tuple[str, RevealedShare]:
    about, kind, share = unframe(data)
    if kind.decode() not in ShareKind.__members__:
        raise MalformedValue("unknown kind of share")
    return about.decode(), RevealedShare(ShareKind[kind.decode()], share)
