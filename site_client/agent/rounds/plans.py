"""The plans this site has been shown, and what the hospital said to each.

<state>/agent/plans/<digest hex>.plan       SignedPlan; kept only after its signature verified
<state>/agent/plans/<digest hex>.decision   {"decision": "approved" | "refused"}
<state>/agent/plans/run-<run hex>.mismatch  a model of this run did not verify here
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.plan import TrainingPlan, verify_plan
from federation.v1 import plan_pb2
from federation.wire import parse, serialize

from site_client.agent.rounds.policy import policy_conflicts
from site_client.config import PolicySettings
from site_client.errors import StepRefused
from site_client.files import private_folder, replace_file

_PREFIX_MIN = 8


class PlanDecision(StrEnum):
    APPROVED = "approved"
    REFUSED = "refused"


@dataclass(frozen=True)
class HeldPlan:
    """A plan and the exact bytes that were signed."""

    plan: TrainingPlan
    signed: bytes  # serialized SignedPlan
    decision: PlanDecision | None

    @property
    def digest(self) -> bytes:
        return self.plan.digest


class Plans:
    """The folder. The agent keeps plans in it; `hemofed-site plan` writes decisions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[bytes, tuple[TrainingPlan, bytes]] = {}  # a plan never changes; it is asked for at every poll

    def keep(self, signed: plan_pb2.SignedPlan, digest: bytes, custodian: Ed25519PublicKey) -> HeldPlan:
        """Verifies, then keeps. Errors: BadSignature, Malformed, PlanRefused; StepRefused when it is another plan."""
        plan = verify_plan(signed, custodian)
        if plan.digest != digest:
            raise StepRefused("expected the plan that the step names, got another one; nothing was kept")
        private_folder(self._folder)
        replace_file(self._path(digest, "plan"), serialize(signed))
        return HeldPlan(plan, serialize(signed), self._decision(digest))

    def get(self, digest: bytes) -> HeldPlan | None:
        """The plan with this digest, if it was kept."""
        path = self._path(digest, "plan")
        if not path.exists():
            return None
        if digest not in self._read:
            data = path.read_bytes()
            self._read[digest] = TrainingPlan.from_bytes(parse(plan_pb2.SignedPlan, data).plan), data
        return HeldPlan(*self._read[digest], self._decision(digest))

    def all(self) -> list[HeldPlan]:
        """Every plan kept, the newest first."""
        paths = sorted(self._folder.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True)
        held = (self.get(bytes.fromhex(path.stem)) for path in paths)
        return [plan for plan in held if plan is not None]

    def find(self, prefix: str) -> HeldPlan:
        """The one plan whose digest begins so. Errors: StepRefused when there is none, or more than one."""
        found = [held for held in self.all() if held.digest.hex().startswith(prefix.lower())]
        if len(prefix) < _PREFIX_MIN or len(found) != 1:
            raise StepRefused(
                f"expected the first {_PREFIX_MIN} or more characters of one plan's digest; "
                "`hemofed-site plan show` lists them"
            )
        return found[0]

    def decide(self, digest: bytes, *, approved: bool) -> None:
        """Writes down what the hospital said; the last word counts."""
        decision = PlanDecision.APPROVED if approved else PlanDecision.REFUSED
        replace_file(self._path(digest, "decision"), json.dumps({"decision": decision}).encode())

    def distrust(self, run_id: bytes) -> None:
        """A model of this run did not verify: takes no further part in it until a person removes the file."""
        private_folder(self._folder)
        replace_file(self._distrusted(run_id), b"a published model did not verify; remove this file to go on\n")

    def distrusted(self, run_id: bytes) -> bool:
        return self._distrusted(run_id).exists()

    def distrusts_any(self) -> bool:
        """Whether a person is still to look at some run."""
        return any(self._folder.glob("run-*.mismatch"))

    def _distrusted(self, run_id: bytes) -> Path:
        return self._folder / f"run-{run_id.hex()}.mismatch"

    def _decision(self, digest: bytes) -> PlanDecision | None:
        path = self._path(digest, "decision")
        return PlanDecision(json.loads(path.read_bytes())["decision"]) if path.exists() else None

    def _path(self, digest: bytes, suffix: str) -> Path:
        return self._folder / f"{digest.hex()}.{suffix}"


def summarize(plans: Plans) -> str:
    """One line a plan."""
    lines = [f"{p.digest.hex()[:16]}  {p.decision or 'waits for you':<14}  {p.plan.name}" for p in plans.all()]
    return "\n".join(lines) or "no plan has been offered to this site yet"


def describe(held: HeldPlan, policy: PolicySettings) -> str:
    """Everything a hospital agrees to, in words, and what its own policy has against it."""
    plan = held.plan
    metrics = ", ".join(metric.name.lower() for metric in plan.metrics) or "none"
    facts = {
        "name": plan.name,
        "purpose": plan.purpose,
        "digest": held.digest.hex(),
        "decision": held.decision or "waits for you: plan approve / plan refuse",
        "against it": "; ".join(policy_conflicts(policy, plan)) or "nothing, by the policy of this site",
        "network": f"{plan.architecture}, {plan.manifest.size:,} numbers in {len(plan.manifest.tensors)} tensors",
        "rounds": f"{plan.rounds} of training and one of evaluation",
        "training": f"{plan.training.epochs} passes a round, at least {plan.training.studies_min} studies",
        "cohort": f"{plan.cohort.minimum} to {plan.cohort.maximum} hospitals in a sum, {plan.cohort.target} wanted",
        "leaves this site": f"one masked update a round, clipped to norm {plan.encoding.clip_norm:g}, "
        f"{plan.encoding.bits} bits a number; the aggregator opens only the sum over the cohort",
        "metrics in the sum": metrics,
        "deadlines": f"{plan.deadlines.training_s} s to train, {plan.deadlines.phase_s} s a masking phase",
    }
    return "\n".join(f"{name:<20}{value}" for name, value in facts.items())
