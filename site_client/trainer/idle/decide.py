"""May training run now? One pure function of signals, policy, what it remembers, and the time.

| now | then |
|---|---|
| a known busy signal, or an order | paused by this very sample |
| nothing busy for `calm_s` (after the start: `start_delay_s`), and no order | runs |
| a signal is unknown for up to UNKNOWN_GRACE_S | its last value holds |
| unknown for longer | denies, for the two kinds in `rules.denials`; any other is left out, and shown |
| paused and still busy after `release_s`, or memory or GPU are wanted | the worker gives its memory back |

So a pause comes at once and an end of it late: however signals jump, training cannot begin more often than once in
`calm_s`. Orders (operator, hours) do not touch the calm: it counts on while they last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Final

from federation.vocabulary import StateReason

from site_client.config import IdleSettings
from site_client.trainer.idle.readings import Moment, PauseReason, Signals, Unknown
from site_client.trainer.idle.rules import FREES_MEMORY_AT_ONCE, denials, needs_of_others, orders

UNKNOWN_GRACE_S: Final = 30.0


class Mode(StrEnum):
    """What the worker may do."""

    RUN = "run"
    HOLD = "hold"  # stopped where it is, its memory kept
    RELEASE = "release"  # ended after a checkpoint, its memory given back


@dataclass(frozen=True)
class GateState:
    """What `decide` remembers from one sample to the next."""

    mode: Mode = Mode.RELEASE  # nothing runs before the first decision
    paused_at_s: float = 0.0
    calm_since_s: float | None = None  # None: the last sample was busy, or there was none
    starting: bool = True  # no busy sample since the start: `start_delay_s` is enough
    known: Mapping[str, tuple[Any, float]] = field(default_factory=dict)  # last value of every signal, and when


@dataclass(frozen=True)
class IdleDecision:
    """The gate after a sample, and why it is not open (nothing when it is)."""

    gate: GateState
    findings: tuple[PauseReason, ...]

    @property
    def mode(self) -> Mode:
        return self.gate.mode

    @property
    def reasons(self) -> tuple[StateReason, ...]:
        """The reasons, sorted, each once."""
        return tuple(sorted({finding.reason for finding in self.findings}))


def decide(
    signals: Signals, policy: IdleSettings, gate: GateState, now: Moment, *, job_at_hand: bool = False
) -> IdleDecision:
    """The next gate. `job_at_hand`: a job has been begun, which "pause after this round" lets end."""
    signals, known = _settled(signals, gate, now)
    needs = needs_of_others(signals, policy)
    busy = (*needs, *denials(signals, policy))
    ordered = orders(signals, policy, now, job_at_hand=job_at_hand)
    gate = replace(gate, known=known, starting=gate.starting and not needs, calm_since_s=_calm_since(gate, busy, now))
    findings = (*busy, *ordered) or _waiting(gate, policy, now)
    if not findings:
        return IdleDecision(replace(gate, mode=Mode.RUN), ())
    if gate.mode is Mode.RUN:
        gate = replace(gate, mode=Mode.HOLD, paused_at_s=now.elapsed_s)
    if gate.mode is Mode.HOLD and _gives_memory_back(gate, (*busy, *ordered), policy, now):
        gate = replace(gate, mode=Mode.RELEASE)
    return IdleDecision(gate, findings)


def _settled(signals: Signals, gate: GateState, now: Moment) -> tuple[Signals, Mapping[str, tuple[Any, float]]]:
    """Signals with a recent value in place of what could not be read just now; and the values to remember."""
    known = dict(gate.known)
    filled = {}
    for item in fields(signals):
        value = getattr(signals, item.name)
        if not isinstance(value, Unknown):
            known[item.name] = (value, now.elapsed_s)
        elif item.name in known and now.elapsed_s - known[item.name][1] <= UNKNOWN_GRACE_S:
            filled[item.name] = known[item.name][0]
    return replace(signals, **filled), known


def _calm_since(gate: GateState, busy: tuple[PauseReason, ...], now: Moment) -> float | None:
    if busy:
        return None
    return now.elapsed_s if gate.calm_since_s is None else gate.calm_since_s


def _waiting(gate: GateState, policy: IdleSettings, now: Moment) -> tuple[PauseReason, ...]:
    # Nothing was busy, or we would not be here: `_calm_since` has set it.
    assert gate.calm_since_s is not None
    calm_s = now.elapsed_s - gate.calm_since_s
    needed_s = policy.start_delay_s if gate.starting else policy.calm_s
    if gate.mode is Mode.RUN or calm_s >= needed_s:
        return ()
    reason = StateReason.START_DELAY if gate.starting else StateReason.HOLD
    return (PauseReason(reason, f"calm for {calm_s:.0f} s, training goes on after {needed_s:.0f} s"),)


def _gives_memory_back(gate: GateState, against: tuple[PauseReason, ...], policy: IdleSettings, now: Moment) -> bool:
    if any(finding.reason in FREES_MEMORY_AT_ONCE for finding in against):
        return True
    return bool(against) and now.elapsed_s - gate.paused_at_s >= policy.release_s
