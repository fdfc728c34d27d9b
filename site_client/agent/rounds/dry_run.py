"""A dry run: a masking with imagined other members on this machine, with real masks, and nothing that leaves.

For `policy.dry_run` and for `hemofed-site prove`. The very code of a real round makes each message, the guard checks
it, the ledger records it, and it ends here. The imagined members' keys are drawn for one dry run and dropped with it.
Without them the masks can no more be removed than those of a real upload.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.hpke import SEALING_KEY_BYTES
from federation.masking_messages import advertisement_of, dealt_of, message_of, share_message
from federation.plan import TrainingPlan
from federation.roster import Roster, RosterEntry
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
from site_client.agent.rounds.revealed_sums import RevealedSums
from site_client.config import PolicySettings
from site_client.files import remove

_ATTEMPT: Final = 1


@dataclass
class RecordingTransport:
    """A transport whose other end is this object, which keeps every message in `sent`."""

    peer: str
    sent: list[tuple[str, bytes]] = field(default_factory=list)

    def unary(self, path: str, request: Cleared) -> bytes:
        """Record a message, and accept it."""
        self.sent.append((path, request.data))
        if path == OFFER_BLOB.path:
            return serialize(blobs_pb2.BlobProgress())
        return serialize(rounds_pb2.Receipt(verdict=rounds_pb2.Receipt.ACCEPTED))

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes:
        """Record a stream of chunks, and accept it."""
        held_bytes = 0
        for request in requests:
            self.sent.append((path, request.data))
            held_bytes += len(parse(PUT_BLOB.request, request.data).data)
        return serialize(blobs_pb2.BlobProgress(held_bytes=held_bytes, complete=True))

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        """Refuse: a dry run downloads nothing."""
        raise NotImplementedError(path)

    def last(self, name: str) -> Message:
        """Return the newest message of a call."""
        call = CALLS[name]
        return parse(call.request, next(data for path, data in reversed(self.sent) if path == call.path))


@dataclass(frozen=True)
class DryRunSite:
    """The parts of a site that a dry run uses."""

    identity: SiteIdentity
    ledger: Ledger
    payloads: Payloads | None
    policy: PolicySettings
    folder: Path  # emptied before and after


def run_dry(
    site: DryRunSite, plan: TrainingPlan, current: CurrentRound, contribution: Contribution, dest: str
) -> RecordingTransport:
    """Run all phases of one round.

    Args:
        site: This site.
        plan: Of the round.
        current: The round.
        contribution: Of this site.
        dest: host:port that stands in the ledger, with the decision `dry_run`.

    Returns:
        The transport, with every message that would have left.

    Raises:
        EgressRefused: The guard would not let a message leave.
        StepRefused: A phase was refused.
    """
    remove(site.folder)
    transport = RecordingTransport(dest)
    # This guard checks as for a real round; the transport below is what keeps the messages here.
    guard = Guard(replace(site.policy, dry_run=False))
    egress = Egress(guard, site.ledger, transport, site.payloads, decision=EgressDecision.DRY_RUN)
    try:
        # A journal of its own: the real one must not record an upload that never left.
        journal = RoundJournal(site.folder)
        journal.begin(CurrentRound(*current.offer))
        egress.send(READY, rounds_pb2.ReadyMessage(round=current.ref(attempt=0)))
        _DryRun(site, plan, current, egress, transport, journal).run(contribution)
        journal.close()
    finally:
        remove(site.folder)
    return transport


@dataclass(frozen=True)
class _MaskingIdentity:
    """The parts of a SiteIdentity that masking uses, with a roster that holds the imagined members."""

    site: str
    keys: SiteKeys
    roster: Roster

    @classmethod
    def among(cls, identity: SiteIdentity, signers: dict[str, Ed25519PrivateKey]) -> "_MaskingIdentity":
        own = RosterEntry(identity.site, identity.keys.signing_public, identity.keys.sealing.public_bytes)
        imagined = [
            RosterEntry(name, key.public_key().public_bytes_raw(), os.urandom(SEALING_KEY_BYTES))
            for name, key in signers.items()
        ]
        entries = sorted([own, *imagined], key=lambda entry: entry.site)
        return cls(identity.site, identity.keys, Roster(1, tuple(entries)))


@dataclass
class _DryRun:
    """The phases, in order, with this site as one of `minimum` members."""

    site: DryRunSite
    plan: TrainingPlan
    current: CurrentRound
    egress: Egress
    transport: RecordingTransport
    journal: RoundJournal

    def run(self, contribution: Contribution) -> None:
        minimum = max(self.site.policy.cohort_min, self.plan.cohort.minimum)
        signers = {f"imagined-{number}": Ed25519PrivateKey.generate() for number in range(1, minimum)}
        identity = _MaskingIdentity.among(self.site.identity, signers)
        # Masking uses no other attribute of an identity than these three.
        member, cohort_min = cast(SiteIdentity, identity), self.site.policy.cohort_min
        sums, known = RevealedSums(self.site.folder), [self.site.identity.site, *signers]
        # Nothing leaves, so nothing is charged.
        masking = MaskingPhases(
            self.egress, member, self.journal, sums, cohort_min, lambda: known, lambda plan, number: None
        )
        ref = self.current.ref(_ATTEMPT)
        base, epoch = self.current.base_model_digest, identity.roster.epoch
        ctx = context(self.plan.digest, base, self.current.run_id, self.current.number, _ATTEMPT, epoch)
        others = [Member.begin(ctx, name, key) for name, key in signers.items()]
        masking.keys(self.plan, rounds_pb2.KeysStep(round=ref, base_model_digest=base, roster_epoch=epoch))
        # `last` parses a call's messages as the type of that call; so do the other casts here.
        own = cast(secagg_pb2.KeysMessage, self.transport.last(SEND_KEYS.name)).advertisement
        shown = [own, *(message_of(member.advertisement) for member in others)]
        masking.shares(self.plan, rounds_pb2.SharesStep(round=ref, advertisements=shown))
        self._upload_and_recover(masking, ref, others, shown, identity, contribution)

    def _upload_and_recover(
        self,
        masking: MaskingPhases,
        ref: RoundRef,
        others: list[Member],
        shown: list[secagg_pb2.Advertisement],
        identity: _MaskingIdentity,
        contribution: Contribution,
    ) -> None:
        advertisements = {message.site: advertisement_of(message) for message in shown}
        roster = identity.roster.signing_keys
        dealt = {member.site: dict(member.share(advertisements, roster)) for member in others}
        # Proof of the cast: see `run`.
        for share in cast(secagg_pb2.SharesMessage, self.transport.last(SEND_SHARES.name)).shares:
            dealt.setdefault(identity.site, {})[share.to_site] = dealt_of(share)
        # In a cohort of several shards only this site's own shard takes part.
        names = sorted(name for name in dealt if name == identity.site or identity.site in dealt[name])
        for_this_site = [
            share_message(name, identity.site, dealt[name][identity.site]) for name in names if name != identity.site
        ]
        masking.upload(self.plan, rounds_pb2.UploadStep(round=ref, members=names, shares=for_this_site), contribution)
        confirmations = []
        for member in (other for other in others if other.site in names):
            shares = {name: dealt[name][member.site] for name in names if name != member.site}
            member.receive(shares)
            # Their words are never summed here; masking is what moves their state to the next phase.
            member.mask(np.zeros(1, np.uint64), shares)
            member.claim(os.urandom(32))
            confirmations.append(secagg_pb2.Confirmation(site=member.site, signature=member.confirm(names)))
        masking.confirm(self.plan, rounds_pb2.ConfirmStep(round=ref, uploaded=names))
        # Proof of the cast: see `run`.
        confirmations.append(cast(secagg_pb2.ConfirmMessage, self.transport.last(SEND_CONFIRM.name)).confirmation)
        masking.reveal(rounds_pb2.RevealStep(round=ref, uploaded=names, confirmations=confirmations))
