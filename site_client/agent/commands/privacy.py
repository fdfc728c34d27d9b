"""`hemofed-site privacy show | verify`: what this hospital's patients have given up, as text and as JSON."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from site_client.agent.privacy.costs import CostKind
from site_client.agent.privacy.ledger import FILE, Charge, SpentPrivacy, read, spending_of
from site_client.agent.rounds.rollback import read_rollback
from site_client.config import PolicySettings, SiteSettings


@dataclass(frozen=True)
class _RunTotals:
    """The charges of one run."""

    run: str  # hex
    training_rounds: int
    evaluations: int
    epsilon_train: float
    epsilon_validation: float
    is_unbounded: bool


def show(settings: SiteSettings, *, as_json: bool) -> str:
    """Show what was spent, by run and kind of patient, and what is left under the policy.

    Raises:
        LedgerBroken: A line of the privacy ledger does not verify.
        StateRefused: rolled_back.json is damaged.
    """
    spending, policy = spending_of(settings), settings.policy
    runs = [_totals(spending, run, policy.delta) for run in dict.fromkeys(charge.run for charge in spending.charges)]
    spent = spending.epsilon(policy.delta)
    loss = read_rollback(settings.folders.agent)
    if as_json:
        facts = {
            "epsilon": _finite(spent),
            "epsilon_train": _finite(spending.epsilon(policy.delta, [CostKind.TRAIN])),
            "epsilon_validation": _finite(spending.epsilon(policy.delta, [CostKind.VALIDATION])),
            "delta": policy.delta,
            "epsilon_max": policy.epsilon_max or None,
            "is_unbounded": spending.is_unbounded,
            "split_has_changed": spending.has_moved,
            "rolled_back_at": None if loss is None else loss.noticed_at.isoformat(),
            "runs": [{name: _finite(value) for name, value in vars(run).items()} for run in runs],
        }
        return json.dumps(facts, indent=2)
    lines = [_of_patient(spending, policy, spent), _left(policy, spent)]
    if spending.is_unbounded:
        lines.append(
            "These patients have taken part in runs without a bound: no figure limits what those tell of one patient."
        )
    if spending.has_moved:
        lines.append(
            "training.validation_fraction has changed since the first charge, so a patient may have been in training "
            "and in validation: both kinds of cost are added up."
        )
    if loss is not None:
        lines.append(
            f"The state folder was put back to an earlier day, noticed on {loss.noticed_at:%Y-%m-%d}: charges of the "
            "time between are missing here, and more was spent than this says."
        )
    return "\n".join([*lines, *map(_line, runs)])


def verify(settings: SiteSettings, exported: Path | None, *, as_json: bool) -> str:
    """Verify every line, link and signature of the privacy ledger.

    Args:
        settings: Of this site.
        exported: A copy of a ledger instead of this site's own.
        as_json: JSON instead of text.

    Raises:
        LedgerBroken: A line does not verify; the error names the first.
    """
    charges = list(read(settings.folders.agent / FILE if exported is None else exported))
    keys: dict[str, int] = {}
    for charge in charges:
        keys.setdefault(charge.key.hex(), charge.seq)
    head = charges[-1].hash if charges else None
    if as_json:
        return json.dumps({"entries": len(charges), "head": head, "keys": keys}, indent=2)
    signed_by = ", ".join(f"{key} from entry {seq}" for key, seq in keys.items()) or "-"
    facts = {
        "verdict": "unbroken, every line signed",
        "entries": len(charges),
        "head": head or "-",
        "keys": signed_by,
    }
    return "\n".join(f"{name:<18}{value}" for name, value in facts.items())


def _totals(spending: SpentPrivacy, run: bytes, delta: float) -> _RunTotals:
    charges = [charge for charge in spending.charges if charge.run == run]
    return _RunTotals(
        run=run.hex(),
        training_rounds=_count(charges, CostKind.TRAIN),
        evaluations=_count(charges, CostKind.VALIDATION),
        epsilon_train=spending.epsilon(delta, [CostKind.TRAIN], run),
        epsilon_validation=spending.epsilon(delta, [CostKind.VALIDATION], run),
        is_unbounded=_count(charges, CostKind.UNBOUNDED) > 0,
    )


def _count(charges: list[Charge], kind: CostKind) -> int:
    return sum(charge.cost.kind is kind for charge in charges)


def _of_patient(spending: SpentPrivacy, policy: PolicySettings, spent: float) -> str:
    if not spending.charges:
        return "Nothing was charged yet: no sum with this hospital's patients has left."
    by_kind = {
        word: spending.epsilon(policy.delta, [kind])
        for word, kind in (("training", CostKind.TRAIN), ("validation", CostKind.VALIDATION))
    }
    split = ", ".join(f"{epsilon:.2f} of a patient in {word}" for word, epsilon in by_kind.items())
    return f"Spent over all runs, at delta {policy.delta:g}: epsilon {_number(spent)} ({split} in runs with a bound)."


def _left(policy: PolicySettings, spent: float) -> str:
    if policy.epsilon_max == 0:
        return "policy.epsilon_max is 0: this hospital sets no limit."
    left = max(0.0, policy.epsilon_max - spent)
    return f"policy.epsilon_max is {policy.epsilon_max:g}: {left:.2f} are left."


def _line(run: _RunTotals) -> str:
    if run.is_unbounded:
        return f"run {run.run[:16]}  without a bound"
    return (
        f"run {run.run[:16]}  training: epsilon {run.epsilon_train:.2f} in {run.training_rounds} rounds; validation: "
        f"epsilon {run.epsilon_validation:.2f} in {run.evaluations} evaluations"
    )


def _number(value: float) -> str:
    return "without a bound" if math.isinf(value) else f"{value:.2f}"


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold: null for infinity."""
    return None if isinstance(value, float) and math.isinf(value) else value
