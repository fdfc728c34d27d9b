"""The plan of a run, parsed once a process. Its signature was verified when the run began."""

from functools import lru_cache

from federation.plan import TrainingPlan
from federation.v1.plan_pb2 import SignedPlan

from aggregator.store.tables import Run

PLANS_KEPT = 8  # one run at a time; a few more for pages that look back


def plan_of(run: Run) -> TrainingPlan:
    """Parse the run's plan."""
    return _parsed(run.signed_plan)


@lru_cache(PLANS_KEPT)
def _parsed(signed_plan: bytes) -> TrainingPlan:
    return TrainingPlan.from_bytes(SignedPlan.FromString(signed_plan).plan)
