"""`hemofed-site status`: the newest values of agent and trainer, and the age of each."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from federation.roster import ROSTER_WARNING_DAYS

from site_client.agent.status_file import clock_in_words, read_status
from site_client.config import NOT_CONFIGURED, SiteSettings
from site_client.errors import SpoolRefused, StateRefused, StateUnreadable
from site_client.spool import AgentSide
from site_client.trainer.idle.watch import read_record

SUSPENDED = "by the coordinator: no new round takes this site; ask the coordinator why"
Value: TypeAlias = "str | int | float | list[str] | None"


@dataclass(frozen=True)
class Fact:
    """One value and its age. `age_s` None: there was none yet."""

    name: str
    value: Value
    age_s: float | None


def gather(settings: SiteSettings, now: datetime | None = None) -> list[Fact]:
    """Gather every value, in the order of a person's questions.

    A file that cannot be used is a value of its own, and hides no other.
    """
    now = now or datetime.now(UTC)
    if settings.is_example:
        return [Fact("state", NOT_CONFIGURED, None)]
    facts = [*_of_agent(settings, now), *_of_trainer(settings, now)]
    if settings.policy.dry_run:
        facts.insert(0, Fact("dry_run", "yes: no update leaves (policy.dry_run)", 0.0))
    return facts


def render_json(facts: list[Fact]) -> str:
    """Return {name: {"value": ..., "age_s": ...}, ...}."""
    return json.dumps({fact.name: {"value": fact.value, "age_s": fact.age_s} for fact in facts}, indent=2)


def render_text(facts: list[Fact]) -> str:
    """Return one line for each value."""
    return "\n".join(f"{fact.name:<22}{_words(fact.value):<44}{_age(fact.age_s)}" for fact in facts)


def _of_agent(settings: SiteSettings, now: datetime) -> list[Fact]:
    try:
        status = read_status(settings.folders.agent)
    except StateRefused as error:
        return [Fact("state", f"unknown: {error}", None)]
    if status is None:
        return [Fact("state", "not started yet, or not enrolled: hemofed-site join, then agent", None)]
    age_s = (now - status.written_at).total_seconds()
    expires_at = status.certificate_expires_at
    days_left = None if expires_at is None else round((expires_at - now).total_seconds() / 86_400, 1)
    contact_s = None if status.last_contact_at is None else (now - status.last_contact_at).total_seconds()
    return [
        Fact("state", status.state, age_s),
        Fact("reasons", list(status.reasons), age_s),
        *([Fact("suspended", SUSPENDED, age_s)] if status.suspended else []),
        Fact("run", status.run_id, age_s),
        Fact("round", status.round, age_s),
        *([Fact("rolled_back", status.rolled_back, age_s)] if status.rolled_back else []),
        Fact("model_digest", status.model_digest, age_s),
        Fact("roster_epoch", status.roster_epoch, age_s),
        Fact("roster", list(status.roster), age_s),
        Fact("roster_waiting", list(status.roster_waiting), age_s),
        Fact("roster_end", _roster_end(status.roster_expires_at, now), 0.0),
        Fact("certificate_days_left", days_left, 0.0),
        Fact("aggregator_reached", "yes" if contact_s is not None else "not since the agent started", contact_s),
        Fact("clock", None if status.clock_ahead_s is None else clock_in_words(status.clock_ahead_s), contact_s),
        Fact("last_error", status.last_error or None, age_s),
        Fact("set_aside", list(status.set_aside), age_s),
        Fact("ledger_entries", status.ledger_entries, age_s),
    ]


def _roster_end(expires_at: datetime | None, now: datetime) -> str | None:
    if expires_at is None:
        return None
    days = (expires_at - now).total_seconds() / 86_400
    if days <= 0:
        return f"ended on {expires_at:%Y-%m-%d}: ask the coordinator for a new one"
    warning = ": ask the coordinator for a new one" if days < ROSTER_WARNING_DAYS else ""
    return f"{expires_at:%Y-%m-%d}, in {days:.0f} days{warning}"


def _of_trainer(settings: SiteSettings, now: datetime) -> list[Fact]:
    try:
        status = AgentSide.peek(settings.folders.spool)
    except SpoolRefused as error:
        return [Fact("trainer_state", f"unknown: {error}", None)]
    if status is None:
        return [Fact("trainer_state", "not started yet", None)]
    age_s = (now - status.written_at).total_seconds()
    return [
        Fact("trainer_state", status.state, age_s),
        Fact("trainer_reasons", list(status.reasons), age_s),
        *_of_gate(settings, now),
        Fact("progress_percent", status.progress_percent, age_s),
        Fact("step", status.step, age_s),
        Fact("steps", status.steps, age_s),
        Fact("loss", status.loss, age_s),
        Fact("eta_s", status.eta_s, age_s),
        Fact("studies_ready", status.studies_ready, age_s),
    ]


def _of_gate(settings: SiteSettings, now: datetime) -> list[Fact]:
    """Return the reasons why training is paused, in words, for users who may read the trainer's folder."""
    try:
        record = read_record(settings.folders.trainer)
    # The trainer's folder is closed to all but its user; the other facts are shown all the same.
    except StateUnreadable:
        return []
    except StateRefused as error:
        return [Fact("held_back_by", f"unknown: {error}", None)]
    if record is None:
        return []
    age_s = (now - record.written_at).total_seconds()
    return [Fact("held_back_by", list(record.words), age_s), Fact("signals_unknown", list(record.unknown), age_s)]


def _words(value: Value) -> str:
    if value is None or value == []:
        return "-"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _age(age_s: float | None) -> str:
    if age_s is None:
        return "never"
    for size_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if age_s >= size_s:
            return f"{age_s / size_s:.0f} {unit} ago"
    return f"{max(0.0, age_s):.0f} s ago"
