"""What this hospital's policy has against a plan, whoever signed it: one sentence each. Pure."""

from collections.abc import Iterator

from federation.plan import TrainingPlan

from site_client.config import PolicySettings


def policy_conflicts(policy: PolicySettings, plan: TrainingPlan) -> Iterator[str]:
    """Nothing when the plan may be trained."""
    unwanted = {metric.name for metric in plan.metrics} - set(policy.metrics)
    if unwanted:
        yield f"policy.metrics does not hold {', '.join(sorted(unwanted))}, which the plan wants"
    if plan.cohort.maximum < policy.cohort_min:
        yield f"policy.cohort_min is {policy.cohort_min}, the plan's cohorts have at most {plan.cohort.maximum} sites"
    if policy.epsilon_max > 0:
        # No plan of this version has a field for it; one that gets it is compared here.
        yield f"policy.epsilon_max is {policy.epsilon_max:g}, the plan promises no differential privacy at all"
