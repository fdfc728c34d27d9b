"""A request in words, for the person who decides whether to sign it. Pure.

A roster is compared with the one that this custodian signed last, not with what the aggregator says about it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from federation.forecast import objections
from federation.manifest import Manifest
from federation.plan import TrainingPlan
from federation.rollback import RunRollback
from federation.roster import ROSTER_DAYS, Roster, RosterEntry

from aggregator.runs.forecast_words import forecast_words
from aggregator.signing_requests import RosterChange

_SHOWN_DIGITS = 16  # of a fingerprint; `hemofed-site roster show` writes as many


def next_roster(proposed: Roster, newest: Roster | None, now: datetime) -> Roster:
    """Give the proposed sites their epoch and their dates. The aggregator's own values are ignored.

    Args:
        proposed: From the request.
        newest: The newest roster signed so far.
        now: Aware UTC, of this machine.
    """
    began_at, ends_at = int(now.timestamp()), int((now + timedelta(days=ROSTER_DAYS)).timestamp())
    epoch = 1 if newest is None else newest.epoch + 1
    return replace(proposed, epoch=epoch, created_at_s=began_at, expires_at_s=ends_at)


def roster_words(after: Roster, before: Roster | None) -> str:
    """Describe a roster: who is added, who is removed, whose keys are others, who stays, and for how long."""
    change = RosterChange.between(() if before is None else before.entries, after.entries)
    dates = f"from {_day(after.created_at_s)} to {_day(after.expires_at_s)}"
    lines = [f"Roster of epoch {after.epoch}, {dates}"]
    lines += [f"  compared with epoch {before.epoch}" if before is not None else "  the first of this custodian"]
    lines += [f"  adds        {_entry(entry)}" for entry in change.added]
    lines += [f"  removes     {_entry(entry)}" for entry in change.removed]
    lines += [f"  other keys  {_entry(new)}, before {_keys(old)}" for old, new in change.renewed]
    lines += [f"  stays       {_entry(entry)}" for entry in change.unchanged]
    if not change:
        lines.append("  nothing changes but the dates")
    return "\n".join(lines)


def plan_words(after: TrainingPlan, before: TrainingPlan | None) -> str:
    """Describe a plan: every value, beside it the value of the plan before where that was another, and its figures."""
    values, old = dict(_values(after)), {} if before is None else dict(_values(before))
    lines = [f"Plan {after.digest.hex()}"]
    lines += [
        f"  compared with {before.name}, {before.digest.hex()[:16]}" if before is not None else "  the first plan"
    ]
    for name, value in values.items():
        was = f"   (before: {old[name]})" if name in old and old[name] != value else ""
        lines.append(f"  {name:<28}{value}{was}")
    lines += ["", *(f"  {line}" for line in forecast_words(after))]
    lines += [f"  warning: {objection}" for objection in objections(after)]
    return "\n".join(lines)


def rollback_words(rollback: RunRollback, plan: TrainingPlan, passed: Sequence[str]) -> str:
    """Describe a rollback: the run, the model that it goes on from, and the models that it leaves.

    The custodian's machine knows no model. That a round has led to this digest is the aggregator's word.
    """
    model = f"the model of round {rollback.model_round}" if rollback.model_round else "the initial model"
    lines = [f"Rollback {rollback.number} of run {plan.run_id.hex()} ({plan.name})"]
    lines += [f"  plan        {plan.digest.hex()}"]
    lines += [f"  after       round {rollback.after_round}: the next round begins from"]
    lines += [f"  model       {rollback.model_digest.hex()}, by the aggregator's word {model}"]
    lines += [f"  leaves      {line}" for line in passed]
    return "\n".join(lines)


def _values(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in fields(value):
        name, inner = f"{prefix}{field.name}", getattr(value, field.name)
        if isinstance(inner, Manifest):
            yield name, f"{inner.size:,} numbers in {len(inner.tensors)} tensors, {inner.digest.hex()[:16]}"
        elif is_dataclass(inner):
            yield from _values(inner, f"{name}.")
        elif isinstance(inner, bytes):
            yield name, inner.hex()
        elif name == "moving_tensors":
            yield name, f"{len(inner)} tensors: {', '.join(map(str, inner))}" if inner else "all"
        elif isinstance(inner, tuple):
            yield name, ", ".join(map(str, inner)) or "-"
        else:
            yield name, str(inner)


def _entry(entry: RosterEntry) -> str:
    return f"{entry.site:<33}keys {_keys(entry)}"


def _keys(entry: RosterEntry) -> str:
    return entry.fingerprint.hex()[:_SHOWN_DIGITS]


def _day(unix_s: int) -> str:
    return f"{datetime.fromtimestamp(unix_s).astimezone():%Y-%m-%d}"
