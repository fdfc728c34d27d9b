"""The plans that were offered to this site, and the hospital's decision on each.

<state>/agent/plans/<digest hex>.plan       SignedPlan; kept only after its signature verified
<state>/agent/plans/<digest hex>.decision   {"decision": "approved" | "refused"}
<state>/agent/plans/run-<run hex>.mismatch  a model of this run did not verify here
<state>/agent/plans/run-<run hex>.answer    {"declined": reason or null}: this site's one answer to a private run
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.errors import FederationError
from federation.limits import MESSAGE_BYTES_MAX
from federation.plan import TrainingPlan, verify_plan
from federation.v1 import plan_pb2
from federation.vocabulary import StateReason
from federation.wire import parse, serialize

from site_client.errors import StateRefused, StateUnreadable, StepRefused
from site_client.files import private_folder, replace_file, set_aside
from site_client.typed_json import encode_state, read_state
from site_client.untrusted_files import read_regular

_PREFIX_MIN: Final = 8


class PlanDecision(StrEnum):
    """The hospital's answer to a plan."""

    APPROVED = "approved"
    REFUSED = "refused"


@dataclass(frozen=True)
class _DecisionFile:
    decision: PlanDecision


@dataclass(frozen=True)
class RunAnswer:
    """Whether the data of this site suffice for a private run: decided once, so that no later round tells of them."""

    declined: StateReason | None


@dataclass(frozen=True)
class HeldPlan:
    """A plan, the exact bytes that were signed, and the hospital's decision."""

    plan: TrainingPlan
    signed: bytes  # serialized SignedPlan
    decision: PlanDecision | None

    @property
    def digest(self) -> bytes:
        """The plan's digest."""
        return self.plan.digest


class Plans:
    """The folder <state>/agent/plans. The agent keeps plans in it; `hemofed-site plan` writes decisions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parsed: dict[bytes, tuple[TrainingPlan, bytes]] = {}  # a plan never changes, and every poll needs it

    def keep(self, signed: plan_pb2.SignedPlan, digest: bytes, custodian: Ed25519PublicKey) -> HeldPlan:
        """Verify a plan, then keep it.

        Raises:
            BadSignature: The custodian did not sign it.
            Malformed: It is no plan.
            PlanRefused: A value is outside its bounds.
            StepRefused: It is another plan than `digest` names.
        """
        # Verified before a byte is kept: `get` trusts the folder.
        plan = verify_plan(signed, custodian)
        # A valid plan of another run would bind this site to other bounds.
        if plan.digest != digest:
            raise StepRefused("expected the plan that the step names, got another one; nothing was kept")
        private_folder(self._folder)
        replace_file(self._path(digest, "plan"), serialize(signed))
        return HeldPlan(plan, serialize(signed), self._decision(digest))

    def get(self, digest: bytes) -> HeldPlan | None:
        """Return the plan with this digest; None when it was not kept, or is damaged: then it is fetched again.

        Raises:
            StateRefused: The decision on it is damaged.
        """
        kept = self._kept(digest)
        return None if kept is None else HeldPlan(*kept, self._decision(digest))

    def all(self) -> list[HeldPlan]:
        """Return every plan that was kept, the newest first. One with a damaged decision waits for another one."""
        paths = sorted(self._folder.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True)
        plans = []
        for digest in (bytes.fromhex(path.stem) for path in paths):
            if (kept := self._kept(digest)) is not None:
                try:
                    decision = self._decision(digest)
                except StateRefused:
                    # The person who reads this list is the one who can decide again.
                    decision = None
                plans.append(HeldPlan(*kept, decision))
        return plans

    def find(self, prefix: str) -> HeldPlan:
        """Return the one plan whose digest begins with `prefix`.

        Raises:
            StepRefused: There is none, or more than one, or `prefix` is shorter than 8 characters.
        """
        matches = [held for held in self.all() if held.digest.hex().startswith(prefix.lower())]
        if len(prefix) < _PREFIX_MIN or len(matches) != 1:
            raise StepRefused(
                f"expected the first {_PREFIX_MIN} or more characters of one plan's digest; "
                "`hemofed-site plan show` lists them"
            )
        return matches[0]

    def decide(self, digest: bytes, *, approved: bool) -> None:
        """Record the hospital's decision; a later one replaces it."""
        decision = PlanDecision.APPROVED if approved else PlanDecision.REFUSED
        replace_file(self._path(digest, "decision"), encode_state(_DecisionFile(decision)))

    def distrust(self, run_id: bytes) -> None:
        """Take no further part in a run, of which a model did not verify, until a person removes the file."""
        private_folder(self._folder)
        replace_file(self._mismatch(run_id), b"a published model did not verify; remove this file to go on\n")

    def distrusted(self, run_id: bytes) -> bool:
        """Whether a model of this run did not verify."""
        return self._mismatch(run_id).exists()

    def distrusts_any(self) -> bool:
        """Whether a model of any run did not verify, and no person has removed the file yet."""
        return any(self._folder.glob("run-*.mismatch"))

    def way_back(self) -> str:
        """Return the sentence about the runs of which a model did not verify."""
        files = " ".join(str(path) for path in sorted(self._folder.glob("run-*.mismatch")))
        return (
            "a model that the aggregator published does not fit its signatures, so this site takes no further part in "
            f"its run; ask the coordinator, and when the reason is known type `rm {files}`"
        )

    def answer_run(self, run_id: bytes, declined: StateReason | None) -> None:
        """Record the one answer to a private run."""
        private_folder(self._folder)
        replace_file(self._answer(run_id), encode_state(RunAnswer(declined)))

    def run_answer(self, run_id: bytes) -> RunAnswer | None:
        """Return the answer to a private run; None before it."""
        return read_state(
            RunAnswer, self._answer(run_id), "put the state folder of the last backup back, then restart the agent"
        )

    def _kept(self, digest: bytes) -> tuple[TrainingPlan, bytes] | None:
        path = self._path(digest, "plan")
        if not path.exists():
            return None
        if digest not in self._parsed:
            try:
                data = read_regular(path, MESSAGE_BYTES_MAX)
                plan = TrainingPlan.from_bytes(parse(plan_pb2.SignedPlan, data).plan)
                # Its signature was verified when it was kept; a plan that has changed since is another one.
                if plan.digest != digest:
                    raise ValueError("it is another plan")
            except OSError as error:
                raise StateUnreadable.of(path.name, error) from error
            except (ValueError, FederationError) as error:
                set_aside(path, str(error), "the plan is fetched again when a round is offered under it")
                return None
            self._parsed[digest] = plan, data
        return self._parsed[digest]

    def _answer(self, run_id: bytes) -> Path:
        return self._folder / f"run-{run_id.hex()}.answer"

    def _mismatch(self, run_id: bytes) -> Path:
        return self._folder / f"run-{run_id.hex()}.mismatch"

    def _decision(self, digest: bytes) -> PlanDecision | None:
        advice = "decide again: `hemofed-site plan show`, then `plan approve` or `plan refuse`"
        recorded = read_state(_DecisionFile, self._path(digest, "decision"), advice)
        return None if recorded is None else recorded.decision

    def _path(self, digest: bytes, suffix: str) -> Path:
        return self._folder / f"{digest.hex()}.{suffix}"
