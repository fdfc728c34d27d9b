"""A masking without a consortium: imagined other members on this machine, real masks, and nothing that leaves.

For a dry run (`policy.dry_run`) and for `hemofed-site prove`: what would leave is made by the very code that would make
it, passes the guard, and stands in the ledger, but ends here. The imagined members' keys are drawn for it and thrown
away with it; without them what was masked can no more be opened than what really leaves.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.advertisement import advertisement_of, message_of
from federation.plan import TrainingPlan
from federation.roster import SEALING_KEY_BYTES, Roster, RosterEntry
from federation.secagg import Member, context
from federation.v1 import blobs_pb2, rounds_pb2, secagg_pb2
from federation.v1.blobs_pb2 import RoundRef
from federation.wire import parse, serialize
from google.protobuf.message import Message

from site_client.agent.egress.calls import CALLS, OFFER_BLOB, PUT_BLOB, READY, SEND_CONFIRM, SEND_KEYS, SEND_SHARES
from site_client.agent.egress.egress import Cleared, Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import EgressDecision, Ledger
from site_client.agent.egress.payloads import Payloads
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.identity.keys import SiteKeys
from site_client.agent.rounds.contribution import Contribution
from site_client.agent.rounds.journal import CurrentRound, RoundJournal
from site_client.agent.rounds.masking import MaskingPhases
from site_client.config import PolicySettings
from site_client.files import remove

_ATTEMPT = 1


@dataclass
class RecordingTransport:
    """A transport whose other end is this object. Keeps what it was given, for whoever wants to look at it."""

    peer: str
    sent: list[tuple[str, bytes]] = field(default_factory=list)

    def unary(self, path: str, request: Cleared) -> bytes:
        self.sent.append((path, request.data))
        if path == OFFER_BLOB.path:
            return serialize(blobs_pb2.BlobProgress())
        return serialize(rounds_pb2.Receipt(verdict=rounds_pb2.Receipt.ACCEPTED))

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes:
        held = 0
        for request in requests:
            self.sent.append((path, request.data))
            held += len(parse(PUT_BLOB.request, request.data).data)
        return serialize(blobs_pb2.BlobProgress(held_bytes=held, complete=True))

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        raise NotImplementedError(path)

    def last(self, name: str) -> Message:
        """The newest message of a call."""
        call = CALLS[name]
        return parse(call.request, next(data for path, data in reversed(self.sent) if path == call.path))


@dataclass(frozen=True)
class DryRunSite:
    """What a rehearsal needs of the site."""

    identity: SiteIdentity
    ledger: Ledger
    payloads: Payloads | None
    policy: PolicySettings
    folder: Path  # emptied before and after


def run_dry(
    stage: DryRunSite, plan: TrainingPlan, current: CurrentRound, contribution: Contribution, dest: str
) -> RecordingTransport:
    """All phases of one round; each message is recorded as `dry_run` for `dest`. Gives the ear they ended in.

    Errors: EgressRefused when the guard would not let something leave, StepRefused.
    """
    remove(stage.folder)
    ear = RecordingTransport(dest)
    guard = Guard(replace(stage.policy, dry_run=False))
    egress = Egress(guard, stage.ledger, ear, stage.payloads, decision=EgressDecision.DRY_RUN)
    try:
        book = RoundJournal(stage.folder)
        book.begin(replace(current, attempt=0, refused_attempt=0, revealed_attempt=0, declined=None))
        egress.send(READY, rounds_pb2.ReadyMessage(round=current.ref(attempt=0)))
        _DryRun(stage, plan, current, egress, ear, book).run(contribution)
        book.close()
    finally:
        remove(stage.folder)
    return ear


@dataclass(frozen=True)
class _Member:
    """The parts of an Identity that masking looks at, with a roster that holds the imagined members."""

    site: str
    keys: SiteKeys
    roster: Roster


@dataclass
class _DryRun:
    """The phases, in order, with us as one of `minimum` members."""

    stage: DryRunSite
    plan: TrainingPlan
    current: CurrentRound
    egress: Egress
    ear: RecordingTransport
    book: RoundJournal

    def run(self, contribution: Contribution) -> None:
        minimum = max(self.stage.policy.cohort_min, self.plan.cohort.minimum)
        signers = {f"imagined-{number}": Ed25519PrivateKey.generate() for number in range(1, minimum)}
        member = _enlist(self.stage.identity, signers)
        # Masking asks an identity for nothing but these three.
        masking = MaskingPhases(self.egress, cast(SiteIdentity, member), self.book, self.stage.policy.cohort_min)
        ref = self.current.ref(_ATTEMPT)
        base, epoch = self.current.base_model_digest, member.roster.epoch
        ctx = context(self.plan.digest, base, self.current.run_id, self.current.number, _ATTEMPT, epoch)
        others = [Member.begin(ctx, name, key) for name, key in signers.items()]
        masking.keys(self.plan, rounds_pb2.KeysStep(round=ref, base_model_digest=base, roster_epoch=epoch))
        own = cast(secagg_pb2.KeysMessage, self.ear.last(SEND_KEYS.name)).advertisement
        shown = [own, *(message_of(one.advertisement) for one in others)]
        masking.shares(self.plan, rounds_pb2.SharesStep(round=ref, advertisements=shown))
        self._upload_and_recover(masking, ref, others, shown, member, contribution)

    def _upload_and_recover(
        self,
        masking: MaskingPhases,
        ref: RoundRef,
        others: list[Member],
        shown: list[secagg_pb2.Advertisement],
        member: _Member,
        contribution: Contribution,
    ) -> None:
        advertisements = {one.site: advertisement_of(one) for one in shown}
        dealt = {one.site: one.share(advertisements, member.roster.signing_keys) for one in others}
        for share in cast(secagg_pb2.SharesMessage, self.ear.last(SEND_SHARES.name)).shares:
            dealt.setdefault(member.site, {})[share.to_site] = share.ciphertext
        names = sorted(name for name in dealt if name == member.site or member.site in dealt[name])
        for_us = [
            secagg_pb2.EncryptedShare(from_site=name, to_site=member.site, ciphertext=dealt[name][member.site])
            for name in names
            if name != member.site
        ]
        masking.upload(rounds_pb2.UploadStep(round=ref, members=names, shares=for_us), contribution)
        confirmations = []
        for one in (other for other in others if other.site in names):
            one.mask(np.zeros(1, np.uint64), {name: dealt[name][one.site] for name in names if name != one.site})
            one.claim(os.urandom(32))
            confirmations.append(secagg_pb2.Confirmation(site=one.site, signature=one.confirm(names)))
        masking.confirm(rounds_pb2.ConfirmStep(round=ref, uploaded=names))
        confirmations.append(cast(secagg_pb2.ConfirmMessage, self.ear.last(SEND_CONFIRM.name)).confirmation)
        masking.reveal(rounds_pb2.RevealStep(round=ref, uploaded=names, confirmations=confirmations))


def _enlist(identity: SiteIdentity, signers: dict[str, Ed25519PrivateKey]) -> _Member:
    own = RosterEntry(identity.site, identity.keys.signing_public, identity.keys.sealing.public_bytes)
    imagined = [
        RosterEntry(name, key.public_key().public_bytes_raw(), os.urandom(SEALING_KEY_BYTES))
        for name, key in signers.items()
    ]
    return _Member(identity.site, identity.keys, Roster(1, tuple(sorted([own, *imagined], key=lambda one: one.site))))
