"""A plan in words, for the person at the hospital who decides on it."""

import math

from federation.encoding import Layout
from federation.forecast import TENTHS, cohort_noise, noise_words, train_spent, validation_spent
from federation.plan import Deadlines, TrainingPlan
from federation.privacy import Privacy, evaluations
from federation.release import ReleaseLevel
from federation.vocabulary import Metric

from site_client.agent.privacy.ledger import SpentPrivacy
from site_client.agent.rounds.plans import HeldPlan, Plans
from site_client.agent.rounds.policy import policy_conflicts
from site_client.config import PolicySettings

_MOVING = {
    "heads": "the layers that give the answers",
    "reader": "the layers that give the answers, and the one that reads a study's slices together",
    "norms": "answers, reader, and the scales of all normalizations",
    "all": "all tensors",
}


def summarize(plans: Plans) -> str:
    """Return one line for each plan."""
    lines = [
        f"{held.digest.hex()[:16]}  {held.decision or 'waits for you':<14}  {held.plan.name}" for held in plans.all()
    ]
    return "\n".join(lines) or "no plan has been offered to this site yet"


def describe(held: HeldPlan, policy: PolicySettings, spending: SpentPrivacy) -> str:
    """Return all that a hospital agrees to, in words, and the conflicts with its own policy."""
    plan = held.plan
    facts = {
        "name": plan.name,
        "purpose": plan.purpose,
        "digest": held.digest.hex(),
        "decision": held.decision or "waits for you: plan approve / plan refuse",
        "against it": "; ".join(policy_conflicts(policy, plan, spending)) or "nothing, by the policy of this site",
        "network": f"{plan.architecture}, {plan.manifest.size:,} numbers in {len(plan.manifest.tensors)} tensors",
        "what moves": _moving(plan),
        "rounds": f"{plan.rounds} of training and one of evaluation",
        "training": _training(plan),
        "cohort": f"{plan.cohort.minimum} to {plan.cohort.maximum} hospitals in a sum, {plan.cohort.target} wanted",
        "leaves this site": _leaves(plan),
        "metrics in the sum": ", ".join(plan.metrics) or "none",
        "gate": _gate(plan),
        "models": _models(plan),
        "deadlines": _deadlines(plan.deadlines),
        **_privacy(plan, plan.privacy),
    }
    return "\n".join(f"{name:<20}{value}" for name, value in facts.items())


def _moving(plan: TrainingPlan) -> str:
    layout = Layout.of(plan, plan.moving.size)
    return (
        f"{_MOVING[plan.training.trainable]}: {plan.moving.size:,} numbers in "
        f"{len(plan.moving_tensors) or len(plan.manifest.tensors)} tensors; {layout.bytes:,} bytes leave a round, "
        f"{layout.sum_bytes_for(plan.cohort.target):,} come back"
    )


def _training(plan: TrainingPlan) -> str:
    if plan.privacy is None:
        return f"{plan.training.epochs} passes a round, at least {plan.training.studies_min} studies"
    return (
        f"one step a round, of about {plan.privacy.sampling_rate:.3g} of the patients, each drawn anew by chance; at "
        f"least {plan.training.studies_min} studies, counted before the first round only"
    )


def _leaves(plan: TrainingPlan) -> str:
    if plan.privacy is None:
        return (
            f"one masked update a round, clipped to norm {plan.encoding.clip_norm:g}, "
            f"{plan.encoding.bits} bits a number; the aggregator decodes only the sum over the cohort"
        )
    return (
        f"one masked sum a round of gradients, each patient's clipped to norm {plan.privacy.clip_norm:g}, with noise; "
        "the aggregator decodes only the sum over the cohort"
    )


def _gate(plan: TrainingPlan) -> str:
    if plan.gate is None:
        return "none: every model is built upon"
    return (
        "each model is compared with the one before, on validation patients, and not built upon when it is worse; the "
        f"sum holds the number of patients, at most {plan.gate.patients_max} a hospital and in size classes, the sum "
        "of the differences of the two losses, and that of their squares"
    )


def _models(plan: TrainingPlan) -> str:
    if plan.release is None:
        return "in the clear on this machine; under TLS on the way"
    sealed = "sealed on disks and on the way, opened in memory; "
    if plan.release.level is ReleaseLevel.NONE:
        return f"{sealed}this site gets each model's key for its sealing key, and shows nothing for it"
    packing = "bundles of them may be packed" if plan.release.packing else "no bundle of them may be packed"
    return (
        f"{sealed}each key only after this machine has shown that it is one of {len(plan.release.measurements)} named "
        f"images on AMD SEV-SNP, which tells the coordinator the processor's identifier and firmware; {packing}"
    )


def _privacy(plan: TrainingPlan, privacy: Privacy | None) -> dict[str, str]:
    if privacy is None:
        return {"privacy": "the sum is not noised: no bound on what it tells about one patient"}
    spent = [train_spent(plan, math.ceil(plan.rounds * tenth / TENTHS)) for tenth in range(1, TENTHS + 1)]
    noises = [cohort_noise(plan, members) for members in sorted({plan.cohort.minimum, plan.cohort.target})]
    facts = {
        "privacy": f"of a patient: whether any one was there changes every outcome's odds by exp(epsilon) at most, but "
        f"for a chance of {privacy.delta:g}",
        "epsilon, training": f"{spent[-1]:.2f} of a budget of {privacy.epsilon_train:g}; after each tenth of the run "
        + ", ".join(f"{epsilon:.2f}" for epsilon in spent),
        "epsilon, validation": "none: no histograms",
        "noise over signal": "; ".join(
            f"{noise.over_signal:.2f} with {noise.members} hospitals ({noise_words(noise.over_signal)})"
            for noise in noises
        ),
    }
    if Metric.HISTOGRAMS in plan.metrics:
        count = evaluations(privacy, plan.rounds)
        facts["epsilon, validation"] = (
            f"{validation_spent(plan, count):.2f} of a budget of {privacy.epsilon_validation:g}, of the patients who "
            f"validate: {count} evaluations with histograms of patients"
        )
    return facts


def _deadlines(deadlines: Deadlines) -> str:
    words = f"{deadlines.training_s} s to train, {deadlines.phase_s} s a masking phase"
    return words + (f"; a site silent for {deadlines.grace_s} s is not waited for" if deadlines.grace_s else "")
