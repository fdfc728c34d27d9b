"""A member of a cohort: five steps at a site, each after the checks that make it safe.

    member = Member.begin(ctx, site, signing_key)
    1 keys      member.advertisement
    2 shares    member.share(advertisements, roster, minimum)   -> ciphertext by peer
    3 upload    member.mask(words, shares)                      -> masked words;   member.claim(digest) -> signature
    4 confirm   member.confirm(uploaded)                        -> signature
    5 reveal    member.reveal(uploaded, confirmations)          -> one share about each member

Everything a member draws at random it draws in `begin`; afterwards each step is a function of its state and of what it
is shown. So a step repeated after a crash, or because the answer was lost, gives identical bytes, and the same step
with anything different is refused.

The caller's part: write `to_bytes()` durably *before* the result of a step leaves the machine, drop the member after
each step, and overwrite the file when the attempt is over, however it ended. A refusal leaves the state as it was.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.secagg import keys, masks, shamir, state
from federation.secagg.cohort import Cohort, out_of_reach, split, verify_cohort, verify_confirmation
from federation.secagg.errors import (
    BelowThreshold,
    CohortRefused,
    ConfirmationRefused,
    MalformedValue,
    OutOfOrder,
    ShareRefused,
    UploadRefused,
)
from federation.secagg.masks import MaskStreams, Words
from federation.secagg.secret import SECRET_BYTES, MaskSecret, PolynomialSecret, Seed, SharePair, ShareSecret, StreamKey
from federation.secagg.state import MemberState, OwnSecrets, Phase
from federation.secagg.transcript import (
    Advertisement,
    CohortContext,
    Context,
    RevealedShare,
    ShareKind,
    commitment,
    confirm_statement,
    keys_statement,
    order,
    upload_statement,
)

MEMBERS_MIN = 3  # in a sum of two, each knows the other's part


class Member:
    """One site's part in one attempt. Not thread-safe; its repr shows site and phase only."""

    def __init__(self, current: MemberState, signing_key: Ed25519PrivateKey) -> None:
        self._state = current
        self._signing_key = signing_key

    @classmethod
    def begin(
        cls, ctx: Context, site: str, signing_key: Ed25519PrivateKey, random: Callable[[int], bytes] = os.urandom
    ) -> "Member":
        """Draw fresh keys and commit to the self-mask seed.

        random: size -> that many bytes from a cryptographic generator; asked for 32 bytes four times.
        """
        secrets = OwnSecrets(
            mask=MaskSecret(random(SECRET_BYTES)),
            share=ShareSecret(random(SECRET_BYTES)),
            seed=Seed(random(SECRET_BYTES)),
            polynomial=PolynomialSecret(random(SECRET_BYTES)),
        )
        own = Advertisement(
            site=site,
            mask_key=keys.public_key(secrets.mask),
            share_key=keys.public_key(secrets.share),
            seed_commitment=commitment(ctx, site, secrets.seed.expose()),
            signature=b"",
        )
        own = replace(own, signature=signing_key.sign(keys_statement(ctx, own)))
        return cls(MemberState(phase=Phase.ADVERTISED, ctx=ctx, own=own, secrets=secrets), signing_key)

    @property
    def site(self) -> str:
        """Name of this member."""
        return self._state.own.site

    @property
    def phase(self) -> Phase:
        """The last step that this member took."""
        return self._state.phase

    @property
    def advertisement(self) -> Advertisement:
        """What to send in the keys phase."""
        return self._state.own

    @property
    def uctx(self) -> CohortContext:
        """Names this member's cohort; OutOfOrder before `share`."""
        self._require(Phase.SHARED, Phase.MASKED, Phase.CONFIRMED, Phase.REVEALED)
        return self._state.uctx

    @property
    def cohort(self) -> tuple[str, ...]:
        """U1 of this member's complete graph, in order; OutOfOrder before `share`."""
        self._require(Phase.SHARED, Phase.MASKED, Phase.CONFIRMED, Phase.REVEALED)
        return tuple(order(self._state.cohort))

    def share(
        self,
        advertisements: Mapping[str, Advertisement],
        roster: Mapping[str, bytes],
        minimum: int = MEMBERS_MIN,
        uploaded_to: Collection[str] = (),
    ) -> dict[str, bytes]:
        """Checks the cohort and deals shares of both secrets.

        Args:
            advertisements: By site, of the whole cohort, this member's included.
            roster: Raw Ed25519 key by site, from the custodian's signed roster that this site *stores*; never from the
                aggregator's round messages.
            minimum: The site's own minimum, at least 3.
            uploaded_to: `cohort` of the last attempt at this round that this site's upload left in. The cohort shown
                has to put that attempt `out_of_reach`.

        Returns:
            An 82-byte ciphertext for every other member of U1 (of its shard), by site.

        Raises:
            AdvertisementRefused: An advertisement is refused.
            CohortRefused: The cohort is not one this member may join, or it is a second one.
        """
        secrets = self._secrets(Phase.ADVERTISED, Phase.SHARED, Phase.MASKED)
        cohort = self._accept_cohort(advertisements, roster, minimum)
        if uploaded_to and not out_of_reach(uploaded_to, advertisements):
            raise CohortRefused(
                "an earlier attempt, which holds this member's upload, could still be recovered beside it"
            )
        pairs = _deal(secrets, cohort)
        ciphertexts = {
            peer: keys.seal_shares(
                secrets.share, cohort.advertisements[peer].share_key, cohort.uctx, self.site, peer, pair
            )
            for peer, pair in pairs.items()
            if peer != self.site
        }
        if self.phase is Phase.ADVERTISED:
            seed_share, key_share = pairs[self.site]
            self._state = replace(
                self._state,
                phase=Phase.SHARED,
                uctx=cohort.uctx,
                cohort=cohort.advertisements,
                signing_keys={site: roster[site] for site in cohort.advertisements},
                held={self.site: SharePair(seed_share + key_share)},
            )
        return ciphertexts

    def mask(self, words: Words, shares: Mapping[str, bytes], *, in_place: bool = False) -> Words:
        """Masks `words` uint64 [m] and returns a copy, or the words themselves. Changes nothing when it raises.

        Args:
            words: The encoded update.
            shares: Ciphertext for this member from every other member of U2. With this member they are U2, whose masks
                hide the words.
            in_place: Mask `words` itself.

        Raises:
            ShareRefused: A ciphertext does not decrypt.
            BelowThreshold: |U2| < t.
            UploadRefused: A second vector, or another U2 under the same keys.
        """
        secrets = self._secrets(Phase.SHARED, Phase.MASKED)
        masks.check_words(words)
        before = self._state
        if self.phase is Phase.SHARED:
            self._state = replace(before, phase=Phase.MASKED, held=self._decrypt_shares(secrets, shares))
        elif {*shares, self.site} != set(before.held):
            raise UploadRefused(f"{self.site!r} already masked its words for another set of members")
        masked = words if in_place else words.copy()
        streams = self._streams(secrets)
        masks.apply(masked, streams)
        digest = hashlib.sha256(masked.astype("<u8", copy=False).data).digest()
        is_another = before.phase is Phase.MASKED and digest != before.masked_digest
        if is_another:
            masks.apply(masked, streams.inverse())
        streams.wipe()
        if is_another:
            # The difference of two vectors under one mask is a difference of two updates, in clear.
            raise UploadRefused(f"{self.site!r} already masked other words in this attempt; resend those")
        self._state = replace(self._state, masked_digest=digest)
        return masked

    @property
    def masked_digest(self) -> bytes:
        """SHA-256 of the masked words as they travel, little-endian. OutOfOrder before there are any."""
        self._require(Phase.MASKED, Phase.CONFIRMED, Phase.REVEALED)
        return self._state.masked_digest

    def claim(self, digest: bytes) -> bytes:
        """Signature that binds the uploaded blob (its SHA-256) to this member. UploadRefused for a second digest."""
        self._require(Phase.MASKED)
        signature = self._signing_key.sign(upload_statement(self._state.uctx, self.site, digest))
        if self._state.upload_digest not in (b"", digest):
            raise UploadRefused(f"{self.site!r} already claimed another upload in this attempt")
        self._state = replace(self._state, upload_digest=digest)
        return signature

    def confirm(self, uploaded: Collection[str]) -> bytes:
        """Signs H(U3), and wipes this member's own secrets. From now on it helps to recover the sum over this set only.

        Raises:
            ConfirmationRefused: The set is not part of U2, lacks this member, or is a second one.
            BelowThreshold: |U3| < t.
        """
        self._require(Phase.MASKED, Phase.CONFIRMED)
        chosen = self._accept_uploaded(uploaded)
        signature = self._signing_key.sign(confirm_statement(self._state.uctx, chosen))
        if self.phase is Phase.MASKED:
            before = self._state
            self._state = replace(before, phase=Phase.CONFIRMED, secrets=None, uploaded=chosen)
            # A state that is past ADVERTISED and before CONFIRMED has its secrets: see the table in state.py.
            assert before.secrets is not None
            before.secrets.wipe()
        return signature

    def reveal(self, uploaded: Collection[str], confirmations: Mapping[str, bytes]) -> dict[str, RevealedShare]:
        """Returns the one answer, by site: a seed share about each of U3, a mask-key share about each of U2 without U3.

        Args:
            uploaded: U3.
            confirmations: Signature by member of U3, at least t of them, this member's own among them or not.

        Raises:
            ConfirmationRefused: The set is another than the confirmed one, or a signature is foreign or wrong.
            BelowThreshold: Fewer than t confirmations.
        """
        self._require(Phase.CONFIRMED, Phase.REVEALED)
        self._check_confirmations(uploaded, confirmations)
        if self.phase is Phase.CONFIRMED:
            before = self._state
            answer = {about: _one_kind(about in before.uploaded, pair) for about, pair in before.held.items()}
            self._state = replace(before, phase=Phase.REVEALED, held={}, answer=answer)
            before.wipe()
        return dict(self._state.answer)

    def to_bytes(self) -> bytes:
        """Canonical bytes of the state, secrets included, the signing key not."""
        return state.to_bytes(self._state)

    @classmethod
    def from_bytes(cls, data: bytes, signing_key: Ed25519PrivateKey) -> "Member":
        """Restores a saved member.

        Raises:
            SnapshotRefused: The data is torn, altered or of another version.
        """
        return cls(state.from_bytes(data), signing_key)

    def __repr__(self) -> str:
        return f"Member({self.site!r}, {self.phase.value})"

    def _require(self, *allowed: Phase) -> None:
        if self.phase not in allowed:
            names = " or ".join(phase.value for phase in allowed)
            raise OutOfOrder(f"this step is for a member that has {names}; {self.site!r} has {self.phase.value}")

    def _secrets(self, *allowed: Phase) -> OwnSecrets:
        self._require(*allowed)
        # The phases before CONFIRMED have their secrets: see the table in state.py.
        assert self._state.secrets is not None
        return self._state.secrets

    def _accept_cohort(
        self, advertisements: Mapping[str, Advertisement], roster: Mapping[str, bytes], minimum: int
    ) -> Cohort:
        """This member's complete graph, after every check of the shares phase."""
        if minimum < MEMBERS_MIN:
            raise MalformedValue(
                f"a cohort has at least {MEMBERS_MIN} members, a minimum of {minimum} would not protect"
            )
        if advertisements.get(self.site) != self._state.own:
            raise CohortRefused("this member's own advertisement is missing or altered in the cohort shown")
        verify_cohort(self._state.ctx, roster, advertisements)
        cohort = next(one for one in split(self._state.ctx, advertisements) if self.site in one.advertisements)
        if len(cohort.advertisements) < minimum:
            raise CohortRefused(f"the cohort has {len(cohort.advertisements)} members, this site asks for {minimum}")
        if self._state.uctx not in (b"", cohort.uctx):
            raise CohortRefused("a second, different cohort is shown for an attempt whose shares were already dealt")
        return cohort

    def _decrypt_shares(self, secrets: OwnSecrets, shares: Mapping[str, bytes]) -> dict[str, SharePair]:
        """Shares about every member of U2, this one included."""
        cohort = Cohort(self._state.uctx, self._state.cohort)
        if len(shares) + 1 < cohort.threshold:
            raise BelowThreshold("members that dealt shares", len(shares) + 1, cohort.threshold)
        held = dict(self._state.held)
        for peer, ciphertext in shares.items():
            if peer not in cohort.advertisements or peer == self.site:
                raise ShareRefused(peer, "it is not another member of this cohort")
            peer_key = cohort.advertisements[peer].share_key
            seed_share, key_share = keys.decrypt_shares(
                secrets.share, peer_key, cohort.uctx, peer, self.site, ciphertext
            )
            held[peer] = SharePair(seed_share + key_share)
        return held

    def _streams(self, secrets: OwnSecrets) -> MaskStreams:
        """PRG(b) and every pairwise mask with U2: added towards later members, subtracted towards earlier ones."""
        uctx = self._state.uctx
        add: list[StreamKey] = [keys.self_key(secrets.seed, uctx, self.site)]
        subtract: list[StreamKey] = []
        peers = {peer: self._state.cohort[peer].mask_key for peer in order(self._state.held) if peer != self.site}
        for peer, key in keys.pair_keys(secrets.mask, peers, uctx, self.site).items():
            (add if order((self.site, peer))[0] == self.site else subtract).append(key)
        return MaskStreams(tuple(add), tuple(subtract))

    def _accept_uploaded(self, uploaded: Collection[str]) -> tuple[str, ...]:
        """U3 in order, after every check of the confirm phase."""
        chosen = tuple(order(set(uploaded)))
        needed = Cohort(self._state.uctx, self._state.cohort).threshold
        if len(chosen) != len(uploaded) or not set(chosen) <= set(self._state.held):
            raise ConfirmationRefused("the set of uploads names a site twice, or one that dealt no shares")
        if self.site not in chosen or not self._state.upload_digest:
            raise ConfirmationRefused(f"the set of uploads lacks {self.site!r}, or names it before it uploaded")
        if len(chosen) < needed:
            raise BelowThreshold("uploads that arrived", len(chosen), needed)
        if self._state.uploaded not in ((), chosen):
            raise ConfirmationRefused(f"{self.site!r} already confirmed another set of uploads in this attempt")
        return chosen

    def _check_confirmations(self, uploaded: Collection[str], confirmations: Mapping[str, bytes]) -> None:
        """Proof that t members will help to recover this set; then no other set can find t of them."""
        if tuple(order(uploaded)) != self._state.uploaded:
            raise ConfirmationRefused("the set of uploads is not the one this member confirmed")
        for site, signature in confirmations.items():
            if site not in self._state.uploaded:
                raise ConfirmationRefused(f"{site!r} confirms uploads without being one of them")
            verify_confirmation(self._state.uctx, site, uploaded, signature, self._state.signing_keys[site])
        needed = Cohort(self._state.uctx, self._state.cohort).threshold
        if len(confirmations) < needed:
            raise BelowThreshold("confirmations of one set of uploads", len(confirmations), needed)


def _deal(secrets: OwnSecrets, cohort: Cohort) -> dict[str, tuple[bytes, bytes]]:
    """(seed share, mask-key share) for every member of the cohort, the dealer included."""
    members, t = cohort.members, cohort.threshold
    dealt = []
    for kind, secret in ((ShareKind.SEED, secrets.seed), (ShareKind.MASK_KEY, secrets.mask)):
        size_bytes = (t - 1) * shamir.COEFFICIENT_BYTES
        randomness = keys.coefficient_bytes(secrets.polynomial, cohort.uctx, kind, size_bytes)
        dealt.append(shamir.split(secret.expose(), t, len(members), randomness))
    return dict(zip(members, zip(*dealt, strict=True), strict=True))


def _one_kind(uploaded: bool, pair: SharePair) -> RevealedShare:
    """Both kinds about one member would recover its update: the seed and the mask key take off its two masks."""
    both = pair.expose()
    if uploaded:
        return RevealedShare(ShareKind.SEED, both[: shamir.ELEMENT_BYTES])
    return RevealedShare(ShareKind.MASK_KEY, both[shamir.ELEMENT_BYTES :])
