"""The five phases at a site: keys, shares, upload, confirm, reveal. One method for each; each may be repeated.

The order within each makes a crash harmless: compute, write the member's state durably, then send. A step that comes
again finds the state and gives the same bytes. A step that comes again with anything different is refused by
`federation.secagg`, and a refusal ends the attempt for this site: its secrets are overwritten, it sends no more in it.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from federation.encoding.noised import COINS_BYTES
from federation.masking_messages import advertisement_of, confirmation_message, dealt_of, message_of, share_message
from federation.plan import TrainingPlan
from federation.secagg import DealtShares, Member, RevealedShare, SecaggError, ShareKind, context
from federation.v1 import rounds_pb2, secagg_pb2
from federation.v1.blobs_pb2 import RoundRef

from site_client.agent.egress.calls import (
    SEND_COMPLAINTS,
    SEND_CONFIRM,
    SEND_KEYS,
    SEND_REVEAL,
    SEND_SHARES,
    SEND_UPLOAD,
)
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.transfer import upload
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.identity.known_sites import check_cohort, check_uploaded
from site_client.agent.rounds.contribution import Contribution, mask_contribution
from site_client.agent.rounds.journal import ATTEMPT_MAX, CurrentRound, RoundJournal, overwrite
from site_client.agent.rounds.revealed_sums import RevealedSums
from site_client.errors import StepRefused
from site_client.files import replace_file

_T = TypeVar("_T")
_KINDS = {
    ShareKind.SEED: secagg_pb2.RevealedShare.SEED,
    ShareKind.MASK_KEY: secagg_pb2.RevealedShare.MASK_KEY,
}


@dataclass(frozen=True)
class MaskingPhases:
    """The phases.

    Attributes:
        cohort_min: The hospital's own.
        known: Gives the names that count toward it now.
        charge: Records durably what a round of a plan costs in privacy; it may be called again.
    """

    egress: Egress
    identity: SiteIdentity
    journal: RoundJournal
    sums: RevealedSums
    cohort_min: int
    known: Callable[[], Collection[str]]
    charge: Callable[[TrainingPlan, int], None]

    def keys(self, plan: TrainingPlan, step: rounds_pb2.KeysStep) -> None:
        """Draw fresh keys for a new attempt, and advertise them.

        Raises:
            StepRefused: The step is for another base model, or for a roster that this site does not hold.
        """
        current = self._enter(step.round)
        # Members with different base models would reveal by their sum how the models differ.
        if step.base_model_digest != current.base_model_digest:
            raise StepRefused("the masking keys would be bound to another base model than ours; no keys were made")
        if not 1 <= step.roster_epoch <= self.identity.roster.epoch:
            raise StepRefused(
                f"the attempt is for roster epoch {step.roster_epoch}, this site holds {self.identity.roster.epoch}"
            )
        # Loaded first: a repeated step must send the same keys, or two sets of masks would exist.
        member = self._load(step.round) or self._begin(plan, current, step)
        own = message_of(member.advertisement)
        self.egress.send(SEND_KEYS, secagg_pb2.KeysMessage(round=step.round, advertisement=own))

    def shares(self, plan: TrainingPlan, step: rounds_pb2.SharesStep) -> None:
        """Check the cohort against the stored roster, and deal shares.

        Raises:
            StepRefused: The cohort is too small, or holds a site or key that the roster does not.
        """
        member, current = self._member(step.round), self._enter(step.round)
        advertisements = {message.site: advertisement_of(message) for message in step.advertisements}
        # A dict would hide the second entry, and with it a replaced key.
        if len(advertisements) != len(step.advertisements):
            raise StepRefused("a site stands in the cohort twice; the attempt is left")
        minimum = self._minimum(plan)
        # The stored roster, never one from this message: the aggregator could invent members otherwise.
        roster = self.identity.roster.signing_keys
        dealt = self._checked(step.round, lambda: member.share(advertisements, roster, minimum, current.uploaded_to))
        self._checked(step.round, lambda: check_cohort(member.cohort, self.known(), self.cohort_min))
        self._save(step.round.attempt, member)
        shares = [share_message(member.site, peer, dealt[peer]) for peer in sorted(dealt)]
        self.egress.send(SEND_SHARES, secagg_pb2.SharesMessage(round=step.round, shares=shares))

    def upload(self, plan: TrainingPlan, step: rounds_pb2.UploadStep, contribution: Contribution) -> None:
        """Receive the shares, mask the contribution and send it.

        Shares of a dealer that are none are complained about first; the upload does not wait for the consequences.
        Masking again with the attempt's coins gives the same bytes, and the member refuses any others. So the masked
        bytes need no file: a transfer that broke off continues where it stopped.

        Raises:
            StepRefused: The shares are not those of the members, the member refuses them, or the coins are gone.
            LedgerBroken: The privacy ledger takes no charge.
        """
        member = self._member(step.round)
        dealt = _dealt_to(member.site, step)
        self._receive(step.round, member, dealt)
        coins = self._coins(step.round)
        masked = self._checked(step.round, lambda: mask_contribution(member, contribution, dealt, coins))
        digest = member.masked_digest
        with self.egress.guard.upload_of(contribution.layout, masked, digest):
            # The claim names the digest of the whole upload, so that the aggregator cannot exchange it.
            signature = self._checked(step.round, lambda: member.claim(digest))
            self._save(step.round.attempt, member)
            current = self._enter(step.round)
            # Charged before the first byte leaves, and never given back: what follows may be cut off anywhere.
            self.charge(plan, current.number)
            # On disk before the first byte leaves: from then on others may recover a sum that holds it.
            if current.uploaded_to != member.cohort:
                self.journal.save(replace(current, uploaded_to=member.cohort))
            upload(self.egress, step.round, masked, digest)
        claim = secagg_pb2.UploadClaim(site=member.site, digest=digest, signature=signature)
        self.egress.send(SEND_UPLOAD, secagg_pb2.UploadMessage(round=step.round, claim=claim))

    def confirm(self, plan: TrainingPlan, step: rounds_pb2.ConfirmStep) -> None:
        """Sign the one set of uploads whose sum this site helps to recover, and open shares that are complained about.

        Raises:
            StepRefused: The set is too small, lacks this site, is a second one, or differs by too few members from the
                set of an earlier sum on the same model; or a complaint is not one about this site.
        """
        member = self._member(step.round)
        complaints = {
            complaint.site: complaint.signature for complaint in step.complaints if complaint.dealer == member.site
        }
        if len(complaints) != len(step.complaints):
            raise StepRefused("expected complaints about this site, one a member, got others; polling again")
        self._checked(step.round, lambda: check_uploaded(step.uploaded, member.cohort, self.known()))
        self.sums.check_set(self._enter(step.round), step.uploaded, self._minimum(plan), self.known())
        signature = self._checked(step.round, lambda: member.confirm(list(step.uploaded), complaints))
        self._save(step.round.attempt, member)
        # No upload is masked any more. Coins together with the sum would show this site's part without its noise.
        self.journal.erase_coins(step.round.attempt)
        current = self._enter(step.round)
        confirmed = tuple(sorted(step.uploaded))
        if current.confirmed != confirmed:
            self.journal.save(replace(current, confirmed=confirmed))
        confirmation = confirmation_message(member.site, signature, member.opened)
        self.egress.send(SEND_CONFIRM, secagg_pb2.ConfirmMessage(round=step.round, confirmation=confirmation))

    def reveal(self, step: rounds_pb2.RevealStep) -> None:
        """Reveal one share about each member: the one answer of the round.

        Raises:
            StepRefused: Too few members confirmed this set, or it is another set than this site confirmed.
        """
        member = self._member(step.round)
        confirmations = {message.site: message.signature for message in step.confirmations}
        answer = self._checked(step.round, lambda: member.reveal(list(step.uploaded), confirmations))
        current = self._enter(step.round)
        # Recorded before it is sent: a site that answered in one attempt must never answer in another, crash or not.
        if current.revealed_attempt != step.round.attempt:
            self.sums.record(current, step.uploaded)
            confirmed = tuple(sorted(step.uploaded))
            self.journal.save(replace(current, revealed_attempt=step.round.attempt, confirmed=confirmed))
        self._save(step.round.attempt, member)
        message = _reveal_message(step.round, answer, member.reveal_signature())
        self.egress.send(SEND_REVEAL, message)

    def _minimum(self, plan: TrainingPlan) -> int:
        """Return the stricter of hospital and plan."""
        return max(self.cohort_min, plan.cohort.minimum)

    def _receive(self, ref: RoundRef, member: Member, dealt: dict[str, DealtShares]) -> None:
        complaints = self._checked(ref, lambda: member.receive(dealt))
        # Recorded before it is sent: after a crash this member must not hold shares that it has complained about.
        self._save(ref.attempt, member)
        if complaints:
            signed = [
                secagg_pb2.Complaint(site=member.site, dealer=dealer, signature=complaints[dealer])
                for dealer in sorted(complaints)
            ]
            self.egress.send(SEND_COMPLAINTS, secagg_pb2.ComplaintMessage(round=ref, complaints=signed))

    def _begin(self, plan: TrainingPlan, current: CurrentRound, step: rounds_pb2.KeysStep) -> Member:
        attempt = step.round.attempt
        # Earlier attempts are dead: their secrets go before new ones exist.
        self.journal.erase_attempts()
        self.journal.save(replace(current, attempt=attempt))
        ctx = context(
            plan.digest, current.base_model_digest, current.run_id, current.number, attempt, step.roster_epoch
        )
        # Drawn here and nowhere else: an attempt that has lost its coins is left, and never gets others.
        replace_file(self.journal.coins_file(attempt), os.urandom(COINS_BYTES))
        member = Member.begin(ctx, self.identity.site, self.identity.keys.signing)
        self._save(attempt, member)
        return member

    def _enter(self, ref: RoundRef) -> CurrentRound:
        """Return the round in progress, if a step of this attempt may concern it."""
        current = self.journal.current
        if current is None or not current.is_of(ref):
            raise StepRefused(f"round {ref.round} is not the one this site works on; polling again")
        # Answers in two attempts could together remove both masks of one upload.
        if current.revealed_attempt not in (0, ref.attempt):
            raise StepRefused("this site has already revealed in another attempt of this round; it joins no second one")
        if ref.attempt > ATTEMPT_MAX:
            raise StepRefused(f"expected an attempt up to {ATTEMPT_MAX}, got {ref.attempt}; polling again")
        if ref.attempt == 0 or ref.attempt < current.attempt or ref.attempt == current.refused_attempt:
            raise StepRefused(f"attempt {ref.attempt} is over for this site; polling again")
        return current

    def _member(self, ref: RoundRef) -> Member:
        self._enter(ref)
        member = self._load(ref)
        if member is None:
            raise StepRefused(f"this site has no keys in attempt {ref.attempt}; polling again")
        return member

    def _coins(self, ref: RoundRef) -> bytes:
        path = self.journal.coins_file(ref.attempt)
        coins = path.read_bytes() if path.is_file() else b""
        # Lost, or erased by a confirmation; a power cut on some file systems leaves zeros, which are no secret.
        if len(coins) != COINS_BYTES or not any(coins):
            raise self._left(ref, "its coins are not in the state folder")
        return coins

    def _load(self, ref: RoundRef) -> Member | None:
        path = self.journal.member_file(ref.attempt)
        if not path.exists():
            return None
        if not path.is_file():
            raise self._left(ref, "member.bin in the state folder is no regular file")
        # A state that is damaged, or that another version wrote, is of no use: the attempt is left, the update stays.
        return self._checked(ref, lambda: Member.from_bytes(path.read_bytes(), self.identity.keys.signing))

    def _save(self, attempt: int, member: Member) -> None:
        path = self.journal.member_file(attempt)
        data = member.to_bytes()
        if path.exists() and path.read_bytes() == data:
            return
        replaced = path.with_name(".member.bin.old")
        _forget(replaced, path)
        if path.exists():
            replaced.hardlink_to(path)  # so that the secrets in the replaced file can still be overwritten
        replace_file(path, data)
        _forget(replaced, path)

    def _checked(self, ref: RoundRef, act: Callable[[], _T]) -> _T:
        """Run a step of the member; its refusal ends the attempt here."""
        try:
            return act()
        except SecaggError as error:
            raise self._left(ref, str(error)) from error

    def _left(self, ref: RoundRef, why: str) -> StepRefused:
        """Leave an attempt for good, and return the sentence about it."""
        current = self._enter(ref)
        # Recorded before the secrets go: a restart must not enter the attempt again.
        self.journal.save(replace(current, refused_attempt=ref.attempt))
        self.journal.erase_attempts()
        return StepRefused(f"left attempt {ref.attempt} of round {ref.round}: {why}")


def _forget(replaced: Path, current: Path) -> None:
    """Overwrite and remove a replaced state file; one that is still the current file only loses this name."""
    if not replaced.exists():
        return
    if not (current.exists() and replaced.samefile(current)):
        overwrite(replaced)
    replaced.unlink()


def _dealt_to(site: str, step: rounds_pb2.UploadStep) -> dict[str, DealtShares]:
    """Return what was dealt to this site, by dealer; together with this site the dealers are U2."""
    shares = {share.from_site: dealt_of(share) for share in step.shares if share.to_site == site}
    if len(shares) != len(step.shares) or sorted([*shares, site]) != sorted(step.members):
        raise StepRefused("expected one share from every other member that dealt shares, got others; polling again")
    return shares


def _reveal_message(ref: RoundRef, answer: Mapping[str, RevealedShare], signature: bytes) -> secagg_pb2.RevealMessage:
    shares = [
        secagg_pb2.RevealedShare(
            about_site=about,
            kind=_KINDS[answer[about].kind],
            share=answer[about].share,
        )
        for about in sorted(answer)
    ]
    return secagg_pb2.RevealMessage(round=ref, shares=shares, signature=signature)
