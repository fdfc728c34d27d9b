"""The plan of a run, parsed once a process. It was verified when the run began; here it is only read."""

from functools import lru_cache

from federation.encoding import Layout
from federation.plan import TrainingPlan
from federation.v1.plan_pb2 import SignedPlan

from aggregator.store.tables import Run

PLANS_KEPT = 8  # one run at a time; a few more for pages that look back


def plan_of(run: Run) -> TrainingPlan:
    """The run's plan."""
    return _parsed(run.signed_plan)


def evaluates_only(plan: TrainingPlan, number: int) -> bool:
    """Whether round `number` judges the last model and trains nothing."""
    return number > plan.rounds


def layout_of(plan: TrainingPlan, number: int) -> Layout:
    """How the words of round `number` are laid out; the evaluation-only round has header words alone."""
    return Layout.of(plan, 0 if evaluates_only(plan, number) else plan.manifest.size)


@lru_cache(PLANS_KEPT)
def _parsed(signed_plan: bytes) -> TrainingPlan:
    return TrainingPlan.from_bytes(SignedPlan.FromString(signed_plan).plan)
