"""A member of a cohort: six steps at a site, each after the checks that make it safe.

    member = Member.begin(ctx, site, signing_key)
    1 keys      member.advertisement
    2 shares    member.share(advertisements, roster, minimum)   -> dealt shares by member
    3 upload    member.receive(dealt)                           -> complaints: signature by dealer
                member.mask(words, dealt)                       -> masked words;   member.claim(digest) -> signature
    4 confirm   member.confirm(uploaded, complaints)            -> signature;      member.opened -> shares by member
    5 reveal    member.reveal(uploaded, confirmations)          -> one share about each member;  member.reveal_signature

Everything a member draws at random it draws in `begin` and, the KEM ciphertexts, in `share`; afterwards each step is a
function of its state and of what it is shown. So a step repeated after a crash, or because the answer was lost, gives
identical bytes, and the same step with anything different is refused.

The caller's part: write `to_bytes()` durably *before* the result of a step leaves the machine, drop the member after
each step, and overwrite the file when the attempt is over, however it ended. A refusal leaves the state as it was.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.secagg import keys, masks, shamir, state
from federation.secagg.cohort import (
    Cohort,
    complaints_max,
    out_of_reach,
    split,
    verify_cohort,
    verify_complaint,
    verify_confirmation,
    verify_dealt,
)
from federation.secagg.errors import (
    BelowThreshold,
    CohortRefused,
    ConfirmationRefused,
    MalformedValue,
    OutOfOrder,
    ShareRefused,
    UploadRefused,
)
from federation.secagg.evidence import BadDealing, verify_bad_dealing
from federation.secagg.masks import MaskStreams, Words
from federation.secagg.secret import SECRET_BYTES, MaskSecret, PolynomialSecret, Seed, SharePair, ShareSecret, StreamKey
from federation.secagg.state import MemberState, OwnSecrets, Phase
from federation.secagg.transcript import (
    Advertisement,
    CohortContext,
    Context,
    DealtShares,
    OpenedShares,
    RevealedShare,
    ShareKind,
    commitment,
    complaint_statement,
    confirm_statement,
    dealt_digest,
    dealt_statement,
    keys_statement,
    order,
    reveal_statement,
    share_digest,
    upload_statement,
)

_NO_COMPLAINTS: Mapping[str, bytes] = MappingProxyType({})
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
        mask_keys = keys.MaskKeys(secrets.mask)
        own = Advertisement(
            site=site,
            mask_key=mask_keys.mask_key,
            kem_key=mask_keys.kem_key,
            share_key=keys.share_public_key(secrets.share),
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
        """The keys to send in the keys phase."""
        return self._state.own

    @property
    def uctx(self) -> CohortContext:
        """The 32 bytes that name this member's cohort; OutOfOrder before `share`."""
        self._require(Phase.SHARED, Phase.RECEIVED, Phase.MASKED, Phase.CONFIRMED, Phase.REVEALED)
        return self._state.uctx

    @property
    def cohort(self) -> tuple[str, ...]:
        """U1 of this member's complete graph, in order; OutOfOrder before `share`."""
        self._require(Phase.SHARED, Phase.RECEIVED, Phase.MASKED, Phase.CONFIRMED, Phase.REVEALED)
        return tuple(order(self._state.cohort))

    def share(
        self,
        advertisements: Mapping[str, Advertisement],
        roster: Mapping[str, bytes],
        minimum: int = MEMBERS_MIN,
        uploaded_to: Collection[str] = (),
        encapsulate: keys.Encapsulate = keys.encapsulate,
    ) -> dict[str, DealtShares]:
        """Checks the cohort and deals shares of both secrets.

        Args:
            advertisements: By site, of the whole cohort, this member's included.
            roster: Raw Ed25519 key by site, from the custodian's signed roster that this site *stores*; never from the
                aggregator's round messages.
            minimum: The site's own minimum, at least 3.
            uploaded_to: `cohort` of the last attempt at this round that this site's upload left in. The cohort shown
                has to put that attempt `out_of_reach`.
            encapsulate: Draws a KEM key and its ciphertext, once for every other member.

        Returns:
            What goes to every member of U1 (of its shard), by site; to this member itself the digests alone.

        Raises:
            AdvertisementRefused: An advertisement is refused.
            CohortRefused: The cohort is not one this member may join, or it is a second one.
        """
        secrets = self._secrets(Phase.ADVERTISED, Phase.SHARED, Phase.RECEIVED, Phase.MASKED)
        cohort = self._accept_cohort(advertisements, roster, minimum)
        if uploaded_to and not out_of_reach(uploaded_to, advertisements):
            raise CohortRefused(
                "an earlier attempt, which holds this member's upload, could still be recovered beside it"
            )
        if self.phase is Phase.ADVERTISED:
            shares = _split_secrets(secrets, cohort)
            seed_share, key_share = shares[self.site]
            self._state = replace(
                self._state,
                phase=Phase.SHARED,
                uctx=cohort.uctx,
                cohort=cohort.advertisements,
                signing_keys={site: roster[site] for site in cohort.advertisements},
                dealt=self._deal(secrets, cohort, shares, encapsulate),
                held={self.site: SharePair(seed_share + key_share)},
            )
        return dict(self._state.dealt)

    def receive(self, dealt: Mapping[str, DealtShares]) -> dict[str, bytes]:
        """Decrypts the shares that U2 dealt to this member.

        Shares that their dealer signed and that are none do not stop this member: it complains, and goes on without
        them. Pairwise masks do not depend on them.

        Args:
            dealt: By dealer, from every other member of U2. With this member they are U2.

        Returns:
            A signed complaint by dealer; empty when all shares are in order.

        Raises:
            ShareRefused: A dealer is not of this cohort, or did not sign what is said to be its.
            BelowThreshold: |U2| < t, or fewer than t shares are in order.
            UploadRefused: Another U2, or other shares, than before.
        """
        secrets = self._secrets(Phase.SHARED, Phase.RECEIVED, Phase.MASKED)
        received = {dealer: dealt_digest(dealt[dealer]) for dealer in order(dealt)}
        if self.phase is Phase.SHARED:
            self._accept_dealers(dealt)
            held, complained = self._decrypt_shares(secrets, dealt)
            threshold = Cohort(self._state.uctx, self._state.cohort).threshold
            if len(held) < threshold:
                raise BelowThreshold("dealers whose shares are in order", len(held), threshold)
            self._state = replace(
                self._state, phase=Phase.RECEIVED, received=received, complained=complained, held=held
            )
        elif received != self._state.received:
            raise UploadRefused(f"{self.site!r} already received other shares in this attempt")
        return {dealer: self._complaint(dealer, dealt[dealer]) for dealer in self._state.complained}

    def mask(self, words: Words, dealt: Mapping[str, DealtShares], *, in_place: bool = False) -> Words:
        """Masks `words` uint64[m] and returns a copy, or the words themselves. Changes nothing when it raises.

        Args:
            words: The encoded update.
            dealt: As given to `receive`. Their dealers are U2, whose masks hide the words.
            in_place: Mask `words` itself.

        Raises:
            UploadRefused: A second vector, another U2, or other shares under the same keys.
        """
        secrets = self._secrets(Phase.RECEIVED, Phase.MASKED)
        masks.check_words(words)
        if {dealer: dealt_digest(one) for dealer, one in dealt.items()} != dict(self._state.received):
            raise UploadRefused(f"{self.site!r} received other shares in this attempt; its masks hang on those")
        masked = words if in_place else words.copy()
        streams = self._streams(secrets, dealt)
        masks.apply(masked, streams)
        digest = hashlib.sha256(masked.astype("<u8", copy=False).data).digest()
        is_another = self.phase is Phase.MASKED and digest != self._state.masked_digest
        if is_another:
            masks.apply(masked, streams.inverse())
        streams.wipe()
        if is_another:
            # The difference of two vectors under one mask is a difference of two updates, in clear.
            raise UploadRefused(f"{self.site!r} already masked other words in this attempt; resend those")
        self._state = replace(self._state, phase=Phase.MASKED, masked_digest=digest)
        return masked

    @property
    def masked_digest(self) -> bytes:
        """SHA-256, 32 bytes, of the masked words as they travel, little-endian. OutOfOrder before there are any."""
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

    def confirm(self, uploaded: Collection[str], complaints: Mapping[str, bytes] = _NO_COMPLAINTS) -> bytes:
        """Signs H(U3), and wipes this member's own secrets. From now on it helps to recover the sum over this set only.

        It opens what it dealt to the members that complained about it. An honest dealer's accusers are corrupt, so they
        know these shares; and they are fewer than a third, or their complaints are refused.

        Args:
            uploaded: U3.
            complaints: Signature by member, over what this member dealt to it.

        Raises:
            ConfirmationRefused: The set is not part of U2, lacks this member, or is a second one; or more members
                complain than may be corrupt, or others than before.
            ComplaintRefused: A complaint is not signed by a member over what this member dealt.
            BelowThreshold: |U3| < t.
        """
        self._require(Phase.MASKED, Phase.CONFIRMED)
        chosen = self._accept_uploaded(uploaded)
        signature = self._signing_key.sign(confirm_statement(self._state.uctx, chosen))
        if self.phase is Phase.MASKED:
            before = self._state
            opened = self._open(complaints)
            self._state = replace(before, phase=Phase.CONFIRMED, secrets=None, dealt={}, uploaded=chosen, opened=opened)
            # A state that is past ADVERTISED and before CONFIRMED has its secrets: see the table in state.py.
            assert before.secrets is not None
            before.secrets.wipe()
        elif set(complaints) != set(self._state.opened):
            raise ConfirmationRefused(f"{self.site!r} already confirmed, with other complaints about it")
        return signature

    @property
    def opened(self) -> dict[str, OpenedShares]:
        """Its shares for the members that complained about it, in clear; OutOfOrder before `confirm`."""
        self._require(Phase.CONFIRMED, Phase.REVEALED)
        return dict(self._state.opened)

    def reveal(self, uploaded: Collection[str], confirmations: Mapping[str, bytes]) -> dict[str, RevealedShare]:
        """Returns the one answer, by site: a seed share about each of U3, a mask-key share about each of U2 without U3.

        Nothing is said about a dealer that this member complained about.

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

    def reveal_signature(self) -> bytes:
        """Signs the answer, 64 bytes, so that a wrong share in it is evidence. OutOfOrder before `reveal`."""
        self._require(Phase.REVEALED)
        return self._signing_key.sign(reveal_statement(self._state.uctx, self.site, self._state.answer))

    def verify_bad_dealing(self, evidence: BadDealing) -> None:
        """Checks evidence against another member of this attempt; OutOfOrder before `share`.

        Raises:
            EvidenceRefused: It proves nothing.
        """
        cohort = Cohort(self.uctx, self._state.cohort)
        signing_key = self._state.signing_keys.get(evidence.dealer, b"")
        verify_bad_dealing(self._state.ctx, cohort, signing_key, evidence)

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

    def _deal(
        self,
        secrets: OwnSecrets,
        cohort: Cohort,
        shares: Mapping[str, tuple[bytes, bytes]],
        encapsulate: keys.Encapsulate,
    ) -> dict[str, DealtShares]:
        mask_keys = keys.MaskKeys(secrets.mask)
        dealt = {}
        for member, pair in shares.items():
            parts = (b"", b"", b"")
            if member != self.site:
                peer = cohort.advertisements[member]
                public = (peer.kem_key, peer.share_key)
                parts = keys.deal(secrets.share, mask_keys, public, cohort.uctx, self.site, member, pair, encapsulate)
            digests = (
                share_digest(cohort.uctx, kind, self.site, member, share)
                for kind, share in zip((ShareKind.SEED, ShareKind.MASK_KEY), pair, strict=True)
            )
            unsigned = DealtShares(*parts, *digests)
            signature = self._signing_key.sign(dealt_statement(cohort.uctx, self.site, member, unsigned))
            dealt[member] = replace(unsigned, signature=signature)
        return dealt

    def _accept_dealers(self, dealt: Mapping[str, DealtShares]) -> None:
        """U2 as shown, after every check that needs no secret."""
        cohort = Cohort(self._state.uctx, self._state.cohort)
        if len(dealt) + 1 < cohort.threshold:
            raise BelowThreshold("members that dealt shares", len(dealt) + 1, cohort.threshold)
        for dealer, shares in dealt.items():
            if dealer not in cohort.advertisements or dealer == self.site:
                raise ShareRefused(dealer, "it is not another member of this cohort")
            verify_dealt(cohort.uctx, dealer, self.site, shares, self._state.signing_keys[dealer])

    def _decrypt_shares(
        self, secrets: OwnSecrets, dealt: Mapping[str, DealtShares]
    ) -> tuple[dict[str, SharePair], tuple[str, ...]]:
        """Shares by dealer, this member's own included; and the dealers whose shares are none."""
        uctx, mask_keys = self._state.uctx, keys.MaskKeys(secrets.mask)
        held, complained = dict(self._state.held), []
        for dealer in order(dealt):
            share_key = self._state.cohort[dealer].share_key
            try:
                pair = keys.decrypt_shares(secrets.share, mask_keys, share_key, uctx, dealer, self.site, dealt[dealer])
            except ShareRefused:
                complained.append(dealer)
                continue
            kinds = zip((ShareKind.SEED, ShareKind.MASK_KEY), pair, strict=True)
            # Without this check a dealer could have its good receivers blamed for wrong shares in the reveal phase.
            if all(share_digest(uctx, k, dealer, self.site, s) == dealt[dealer].share_digest(k) for k, s in kinds):
                held[dealer] = SharePair(pair[0] + pair[1])
            else:
                complained.append(dealer)
        return held, tuple(complained)

    def _complaint(self, dealer: str, dealt: DealtShares) -> bytes:
        return self._signing_key.sign(complaint_statement(self._state.uctx, self.site, dealer, dealt))

    def _streams(self, secrets: OwnSecrets, dealt: Mapping[str, DealtShares]) -> MaskStreams:
        """PRG(b) and every pairwise mask with U2: added towards later members, subtracted towards earlier ones."""
        uctx, mask_keys = self._state.uctx, keys.MaskKeys(secrets.mask)
        add: list[StreamKey] = [keys.self_key(secrets.seed, uctx, self.site)]
        subtract: list[StreamKey] = []
        for peer in order(dealt):
            key = mask_keys.pair_key(uctx, self.site, peer, self._state.cohort[peer].mask_key, dealt[peer])
            (add if order((self.site, peer))[0] == self.site else subtract).append(key)
        return MaskStreams(tuple(add), tuple(subtract))

    def _open(self, complaints: Mapping[str, bytes]) -> dict[str, OpenedShares]:
        """Both shares of every member that complained, after every check of its complaint."""
        cohort = Cohort(self._state.uctx, self._state.cohort)
        if len(complaints) > complaints_max(len(cohort.advertisements)):
            raise ConfirmationRefused("more members complain about this one than may be corrupt; it opens no share")
        for site, signature in complaints.items():
            if site == self.site or site not in cohort.advertisements:
                raise ConfirmationRefused(f"{site!r} complains without being another member")
            key = self._state.signing_keys[site]
            verify_complaint(cohort.uctx, site, self.site, self._state.dealt[site], signature, key)
        shares = _split_secrets(self._secrets(Phase.MASKED), cohort) if complaints else {}
        return {site: OpenedShares(*shares[site]) for site in complaints}

    def _accept_uploaded(self, uploaded: Collection[str]) -> tuple[str, ...]:
        """U3 in order, after every check of the confirm phase."""
        chosen = tuple(order(set(uploaded)))
        needed = Cohort(self._state.uctx, self._state.cohort).threshold
        if len(chosen) != len(uploaded) or not set(chosen) <= {self.site, *self._state.received}:
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


def _split_secrets(secrets: OwnSecrets, cohort: Cohort) -> dict[str, tuple[bytes, bytes]]:
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
