"""The ways in which a model becomes the newest one of this site.

Every model after the first signed one was either recomputed here from a published sum, or came whole with a
certificate: the signatures of enough members of the round that led to it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.certificate import ModelCertificate, verify_certificate
from federation.chain import next_model
from federation.encoding import DecodedSum, Layout, decode_sum, unpack_sum
from federation.errors import ChainRefused, EncodingRefused
from federation.gate import Verdict, judge
from federation.plan import TrainingPlan
from federation.rollback import verify_rollback
from federation.v1 import rounds_pb2

from site_client.agent.egress.egress import Egress
from site_client.agent.rounds.lineage import Lineage
from site_client.agent.rounds.model_files import ModelFiles
from site_client.agent.rounds.run_rollbacks import FollowedRollback, RunRollbacks
from site_client.errors import ModelMismatch, StepRefused
from site_client.files import remove

_KEPT: Final = 2
_ARRIVALS: Final = (".*.part", "sum-*", "whole-*")  # downloads: not whole yet, or not used yet


@dataclass(frozen=True)
class Witnesses:
    """The hospitals whose word this site believes about a model, and how many of them a cohort has to have."""

    signing_keys: Mapping[str, bytes]  # Ed25519 public key by name, of the stored roster
    known: Collection[str]  # the names among them that count
    minimum: int


class Models:
    """Decides how a model becomes this site's: computed from a sum, fetched with a certificate, or gone back to."""

    def __init__(self, folder: Path, files: ModelFiles) -> None:
        """Take the files, and their folder for the order of models and the rollbacks."""
        self._files, self._lineage, self.rollbacks = files, Lineage(folder), RunRollbacks(folder)

    def obtain(self, egress: Egress, plan: TrainingPlan, step: rounds_pb2.TrainStep, witnesses: Witnesses) -> None:
        """Make sure that the step's base model is here: kept, computed from a kept one, or fetched whole.

        Args:
            egress: The only way out.
            plan: Of the run.
            step: Offers ways to the base model.
            witnesses: Believed about a whole model, other than the plan's first.

        Raises:
            ModelMismatch: Another model than the announced one arrived or was computed.
            ModelDamaged: A file was damaged on the way or on a disk; the next call fetches it again.
            StepRefused: The step offers no way to the base model.
            Unreachable: A download broke off; the next call continues it.
            CertificateRefused: Too few of the witnesses say that a round led to this whole model.
            FederationError: A published sum that the chain refuses.
        """
        newest = self._lineage.newest(plan)
        is_newest = newest is not None and newest.model_digest == step.base_model_digest
        if plan.gate is None:
            newest = None
        is_another = newest is not None and newest.model_digest != step.base_model_digest
        is_here = self._files.holds(plan, step.base_model_digest) and self._lineage.holds(plan, step.base_model_digest)
        if is_here and not is_another:
            self._check_predecessor(plan, step)
            return
        # A chain of sums is preferred: it proves how the model came about, a whole model only matches a digest.
        can_begin = self._files.newest and self._lineage.holds(plan, self._files.newest)
        follows = step.chain and (can_begin or step.HasField("initial_model"))
        # Under a gate, only a sum that refuses the newest model leads back from it.
        if newest is not None and is_another and not follows and step.certificate.round <= newest.round:
            raise StepRefused(
                "the base model is older than the newest one here, which no published sum refuses; ask the coordinator "
                "for a rollback that the custodian has signed"
            )
        if follows:
            self._follow_chain(egress, plan, step)
            self._check_predecessor(plan, step)
            return
        # The digest of the newest model was verified here, or signed by the custodian; only its file is missing.
        is_known = is_newest or step.base_model_digest == plan.initial_model_digest
        if not is_known:
            self._check_certificate(plan, step, witnesses)
        if not step.HasField("whole_model"):
            raise StepRefused("the base model cannot be computed here, and no whole model is on offer; polling again")
        self._files.fetch_whole(egress, plan, step.whole_model, step.base_model_digest)
        if not is_known:
            predecessor = step.predecessor_digest or None
            self._lineage.record(plan, step.certificate.round, step.base_model_digest, predecessor)

    def follow_rollback(self, plan: TrainingPlan, step: rounds_pb2.TrainStep, custodian: Ed25519PublicKey) -> None:
        """Go back to the model of the rollback that a step shows, unless this site has done so, or has gone on since.

        Args:
            plan: Of the run.
            step: Shows the newest rollback of the run.
            custodian: The key in force.

        Raises:
            BadSignature: The custodian did not sign it.
            Malformed: It is no rollback.
            StepRefused: It is of another run, or of this round or a later one.
        """
        rollback = verify_rollback(step.rollback, custodian)
        if rollback.plan_digest != plan.digest:
            raise StepRefused("the rollback on offer is of another run; nothing was done")
        if rollback.after_round >= step.round.round:
            raise StepRefused("the rollback on offer is of a round that is not over; nothing was done")
        followed, newest = self.rollbacks.newest(plan.run_id), self._lineage.newest(plan)
        is_old = followed is not None and rollback.number <= followed.number
        # One that was put off: this site has followed sums of later rounds, and they stay.
        if is_old or (newest is not None and newest.round > rollback.after_round):
            return
        self._go_back(plan, rollback.after_round, rollback.model_digest)
        # Last: after a crash the same rollback is followed again.
        self.rollbacks.record(plan.run_id, FollowedRollback.of(rollback))

    def follow(
        self,
        egress: Egress,
        plan: TrainingPlan,
        base: bytes,
        link: rounds_pb2.PublishedSum,
        predecessor: bytes | None = None,
    ) -> bytes | None:
        """Recompute the model that `link` leads to from `base`, and keep it.

        Args:
            egress: The only way out.
            plan: Of the run.
            base: Digest of the round's base model, which is held here.
            link: The published sum of a training round.
            predecessor: Digest of the model that `base` is a candidate against; None if it is none.

        Returns:
            The digest of the model that the new one is a candidate against; None if it is none.

        Raises:
            ModelMismatch: The digest differs from the published one, so the aggregator published another model.
            ModelDamaged: The sum arrived damaged, or the base model is damaged here; the next call fetches it again.
            StepRefused: The sum on offer has another size than the plan gives it.
            Unreachable: A download broke off; the next call continues it.
            FederationError: A published sum that the chain refuses.
        """
        # The step comes again after a crash. Any other model that is held is no result of this sum.
        if self._files.newest_two == [base, link.model_digest] and self._files.holds(plan, link.model_digest):
            return base if plan.gate is not None else None
        if plan.evaluates_only(link.round):
            raise StepRefused(f"expected the sum of a training round, got one of round {link.round}")
        layout = Layout.of_round(plan, link.round)
        # Before the size is computed from it: the number of members comes over the network.
        layout.check_members(link.members)
        arrived = self._files.fetch_sum(egress, plan, link.sum, layout.sum_bytes_for(link.members), link.model_digest)
        try:
            with self._files.plaintext(plan, link.model_digest, arrived) as data:
                published = unpack_sum(layout, data, link.members)
            if predecessor is not None and _is_refused(plan, published):
                self._fall_back(plan, base, link, predecessor)
                return None
            # `next_model` destroys its input, which saves one model in memory; so no reference to it may remain here.
            model = self._files.take(plan, base)
            computed = next_model(plan, model, published, uses_up=True)
        finally:
            # A refused sum must neither stay on the disk nor be used again.
            remove(arrived)
        if computed.digest != link.model_digest:
            raise ModelMismatch(
                f"the model published after round {link.round} is not the one its published sum leads to; "
                "this site takes no further part in the run until the coordinator has explained it"
            )
        candidate_against = base if plan.gate is not None and computed.digest != base else None
        self._lineage.record(plan, link.round, computed.digest, candidate_against)
        self._files.keep(plan, computed, over_old=True)
        return candidate_against

    def check_refused(
        self,
        egress: Egress,
        plan: TrainingPlan,
        base: bytes,
        link: rounds_pb2.PublishedSum,
        predecessor: bytes | None = None,
    ) -> None:
        """Check that a sum which was said to be refused leads to no model, neither on nor back to the predecessor.

        Raises:
            ModelMismatch: It leads to one.
            StepRefused: The sum on offer has another size than the plan gives it.
            Unreachable: The download broke off; the next call continues it.
        """
        layout = Layout.of_round(plan, link.round)
        layout.check_members(link.members)
        arrived = self._files.fetch_sum(egress, plan, link.sum, layout.bytes, base)
        try:
            with self._files.plaintext(plan, base, arrived) as data:
                words = np.frombuffer(data, "<u8").astype(np.uint64)
        finally:
            remove(arrived)
        try:
            decoded = decode_sum(layout, words, link.members)
            # The verdict holds whatever else is in the sum: `rounds.aggregation` leads back before it looks further.
            refuses_base = predecessor is not None and _is_refused(plan, decoded)
            if not refuses_base and not plan.evaluates_only(link.round):
                next_model(plan, self._files.load(plan, base), decoded)
        except (ChainRefused, EncodingRefused):
            return
        raise ModelMismatch(
            f"the sum of round {link.round} was said to lead to no model, and leads to one; this site takes no further "
            "part in the run until the coordinator has explained it"
        )

    def check_evaluation(
        self,
        egress: Egress,
        plan: TrainingPlan,
        base: bytes,
        link: rounds_pb2.PublishedSum,
        predecessor: bytes | None = None,
    ) -> None:
        """Check that an evaluation-only round has a sum, and that the model stays, or goes back where it is refused.

        Args:
            egress: The only way out.
            plan: Of the run.
            base: Digest of the model that was evaluated.
            link: The published sum.
            predecessor: Digest of the model that `base` is a candidate against; None if it is none.

        Raises:
            ModelMismatch: Another model was published.
            StepRefused: The sum on offer has another size than the plan gives it.
            Unreachable: The download broke off; the next call continues it.
            FederationError: It is no sum of so many members.
        """
        layout = Layout.of_round(plan, link.round)
        # Before the size is computed from it: the number of members comes over the network.
        layout.check_members(link.members)
        arrived = self._files.fetch_sum(egress, plan, link.sum, layout.sum_bytes_for(link.members), link.model_digest)
        try:
            with self._files.plaintext(plan, link.model_digest, arrived) as data:
                published = unpack_sum(layout, data, link.members)
        finally:
            remove(arrived)
        if predecessor is not None and _is_refused(plan, published):
            self._fall_back(plan, base, link, predecessor)
        elif link.model_digest != base:
            raise ModelMismatch("an evaluation-only round changed the model; ask the coordinator")

    def _fall_back(self, plan: TrainingPlan, base: bytes, link: rounds_pb2.PublishedSum, predecessor: bytes) -> None:
        """Drop a refused model; the one before it is the newest again, if it is here."""
        if link.model_digest != predecessor:
            raise ModelMismatch(
                f"the sum of round {link.round} refuses its base model, and the round led to another model than the "
                "one before; this site takes no further part in the run until the coordinator has explained it"
            )
        self._go_back(plan, link.round, predecessor, dropped=base)

    def _go_back(self, plan: TrainingPlan, number: int, digest: bytes, dropped: bytes = b"") -> None:
        """Make an earlier model the newest one of a run, whether its file is here or not."""
        self._lineage.go_back(plan, number, digest)
        # After the lineage, as in `follow`.
        self._files.put_newest(plan, digest, dropped)

    def _check_predecessor(self, plan: TrainingPlan, step: rounds_pb2.TrainStep) -> None:
        """Refuse a base model that is said to be a candidate, or none, against the sums followed here."""
        newest = self._lineage.newest(plan)
        if plan.gate is None or newest is None or newest.model_digest != step.base_model_digest:
            return
        if (newest.predecessor_digest or b"") != step.predecessor_digest:
            raise StepRefused("the base model is a candidate against another model, by the sums here; polling again")

    def _check_certificate(self, plan: TrainingPlan, step: rounds_pb2.TrainStep, witnesses: Witnesses) -> None:
        if not step.HasField("certificate"):
            raise StepRefused("too few members of the round before have signed its model yet; polling again")
        certificate = ModelCertificate.of_message(step.certificate)
        # With the predecessor at hand the model can be computed, which proves more than signatures do.
        if self._files.holds(plan, certificate.base_model_digest):
            raise StepRefused("this site holds the model before; it takes the published sum, and no whole model")
        # A candidate was trained from its predecessor, and the members have signed which model that was.
        if step.predecessor_digest not in (b"", certificate.base_model_digest):
            raise StepRefused("the base model is a candidate against another model, by its certificate; polling again")
        verify_certificate(
            certificate,
            plan.digest,
            step.base_model_digest,
            witnesses.signing_keys,
            witnesses.known,
            witnesses.minimum,
        )

    def _follow_chain(self, egress: Egress, plan: TrainingPlan, step: rounds_pb2.TrainStep) -> None:
        rounds = [link.round for link in step.chain]
        # One sum a round: the plan bounds how far a chain can lead, true or not.
        if rounds != sorted(set(rounds)) or not 0 < rounds[0] <= rounds[-1] < step.round.round:
            raise StepRefused("expected one sum of each earlier round, in their order, got others; polling again")
        base = self._files.newest
        newest = self._lineage.newest(plan)
        predecessor: bytes | None = None
        if newest is not None and newest.model_digest == base:
            predecessor = newest.predecessor_digest
        if step.HasField("initial_model"):
            base, predecessor = self._first_model(plan), None
        self._lineage.check_chain(plan, base, step.chain)
        if step.HasField("initial_model") and not self._files.holds(plan, base):
            self._files.fetch_whole(egress, plan, step.initial_model, base)
        for link in step.chain:
            predecessor = self.follow(egress, plan, base, link, predecessor)
            base = link.model_digest
            if not self._files.holds(plan, base):  # a refused model's predecessor, which was never here
                raise StepRefused("the model before the refused one is not here; it is fetched whole at the next turn")
        if self._files.newest != step.base_model_digest:
            raise ModelMismatch("the chain of sums does not lead to the base model it is said to lead to")

    def _first_model(self, plan: TrainingPlan) -> bytes:
        """Return the model that a chain of all sums begins at: the plan's, or that of the newest rollback."""
        followed = self.rollbacks.newest(plan.run_id)
        return plan.initial_model_digest if followed is None else followed.model_digest


def _is_refused(plan: TrainingPlan, published: DecodedSum) -> bool:
    if plan.gate is None:
        return False
    return judge(plan.gate, published.header.comparisons, plan.cohort.minimum).verdict is Verdict.REFUSED
