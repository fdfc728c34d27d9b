"""May training run now? One pure function of signals, policy, its own memory, and the time.

| sample | decision |
|---|---|
| a known busy signal, or an order | training pauses with this very sample |
| nothing busy for `calm_s` (after the start: `start_delay_s`), and no order | training runs |
| a signal is unknown for up to UNKNOWN_GRACE_S | its last value holds |
| a signal is unknown for longer | the two signals in `rules.denials` deny training; any other is ignored, and shown |
| paused and still busy after `release_s`, or others need memory or GPU | the worker ends and frees its memory |

So a pause begins at once and ends late: however signals jump, training resumes at most once in `calm_s`. Orders
(operator, hours) leave the calm alone: it counts on while they last.
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
    """Modes of the worker. Only `decide` changes the mode."""

    RUN = "run"
    HOLD = "hold"  # suspended; the worker keeps its memory
    RELEASE = "release"  # ended after a checkpoint; its memory is free


@dataclass(frozen=True)
class GateState:
    """The memory of `decide` from one sample to the next."""

    mode: Mode = Mode.RELEASE  # no worker runs before the first decision
    paused_at_s: float = 0.0
    calm_since_s: float | None = None  # None: the last sample was busy, or there is none yet
    starting: bool = True  # no busy sample since the start: `start_delay_s` is enough
    known: Mapping[str, tuple[Any, float]] = field(default_factory=dict)  # last value of every signal, and its time


@dataclass(frozen=True)
class IdleDecision:
    """The gate's state after a sample, and the reasons to pause; without a reason training runs."""

    gate: GateState
    pause_reasons: tuple[PauseReason, ...]

    @property
    def mode(self) -> Mode:
        """The worker's mode from now on."""
        return self.gate.mode

    @property
    def reasons(self) -> tuple[StateReason, ...]:
        """The reasons, sorted, each once."""
        return tuple(sorted({pause.reason for pause in self.pause_reasons}))


def decide(
    signals: Signals, policy: IdleSettings, gate: GateState, now: Moment, *, job_at_hand: bool = False
) -> IdleDecision:
    """Decides about one sample.

    Args:
        signals: Of this sample.
        policy: [idle] of site.toml.
        gate: The state after the sample before; `GateState()` for the first.
        now: Of this sample.
        job_at_hand: A job is in progress; an operator's pause "after this round" lets it end.

    Returns:
        The next state with the reasons to pause.
    """
    signals, known = _settled(signals, gate, now)
    needs = needs_of_others(signals, policy)
    busy = (*needs, *denials(signals, policy))
    ordered = orders(signals, policy, now, job_at_hand=job_at_hand)
    gate = replace(gate, known=known, starting=gate.starting and not needs, calm_since_s=_calm_since(gate, busy, now))
    # Waiting for calm is a reason of its own only if nothing else is: the status then says when training resumes.
    pause_reasons = (*busy, *ordered) or _waiting(gate, policy, now)
    if not pause_reasons:
        return IdleDecision(replace(gate, mode=Mode.RUN), ())
    if gate.mode is Mode.RUN:
        gate = replace(gate, mode=Mode.HOLD, paused_at_s=now.elapsed_s)
    if gate.mode is Mode.HOLD and _gives_memory_back(gate, (*busy, *ordered), policy, now):
        gate = replace(gate, mode=Mode.RELEASE)
    return IdleDecision(gate, pause_reasons)


def _settled(signals: Signals, gate: GateState, now: Moment) -> tuple[Signals, Mapping[str, tuple[Any, float]]]:
    """Fills in the last value of a signal that is unknown only now; gives the values to remember too."""
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


def _gives_memory_back(gate: GateState, reasons: tuple[PauseReason, ...], policy: IdleSettings, now: Moment) -> bool:
    if any(pause.reason in FREES_MEMORY_AT_ONCE for pause in reasons):
        return True
    # Not while it only waits for calm: training is about to resume.
    return bool(reasons) and now.elapsed_s - gate.paused_at_s >= policy.release_s
