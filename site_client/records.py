"""What the two processes of a site tell each other, and the JSON it travels in.

Every record has exactly the keys of its dataclass: an unknown key, a missing one or a value out of range is refused.
Nothing here can hold a name, an identifier of a patient, or a path of an image.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar

import numpy as np
from federation.v1 import rounds_pb2
from numpy.typing import NDArray

from site_client.errors import SpoolRefused

RunId = NewType("RunId", bytes)
_R = TypeVar("_R", bound="Job | Update | Status")
Outcome = Literal["trained", "evaluated", "declined"]
Histograms = tuple[tuple[tuple[int, ...], ...], ...]

LABELS, SIDES, BINS = 6, 2, 64  # histograms[label][0 negative, 1 positive][bin], as in federation.encoding.Header
NO_HISTOGRAMS: Histograms = (((0,) * BINS,) * SIDES,) * LABELS

SITE_STATES = frozenset(rounds_pb2.SiteState.keys()) - {"SITE_STATE_UNSPECIFIED"}
STATE_REASONS = frozenset(rounds_pb2.StateReason.keys()) - {"STATE_REASON_UNSPECIFIED"}


@dataclass(frozen=True)
class Job:
    """One round to train or to judge. The agent has verified the plan's signature; `folder` is filled in by readers."""

    run_id: RunId  # 16 bytes
    round: int
    evaluation_only: bool
    base_model_digest: bytes  # 32 bytes
    plan_digest: bytes  # 32 bytes
    folder: Path = Path()

    @property
    def plan_file(self) -> Path:
        """The serialized SignedPlan."""
        return self.folder / "plan.bin"

    @property
    def base_file(self) -> Path:
        """The base model, safetensors."""
        return self.folder / "base.safetensors"


@dataclass(frozen=True)
class Update:
    """What came of a job. Sums are over this site only: they leave it under masks or not at all."""

    run_id: RunId
    round: int
    base_model_digest: bytes
    outcome: Outcome
    reason: str | None  # a StateReason name, with "declined" only
    studies: int  # training studies, the weight
    loss_sum: float  # of the training loss over example_count examples
    example_count: int
    clipped: bool  # by training itself; the agent clips again
    histograms: Histograms = NO_HISTOGRAMS
    delta_sha256: bytes | None = None  # of delta.f32; with "trained" only


@dataclass(frozen=True)
class Status:
    """What the trainer is doing. `loss` is for the hospital's own eyes: the agent must never forward it."""

    written_at: datetime  # aware UTC
    state: str  # a SiteState name
    reasons: tuple[str, ...] = ()  # StateReason names
    run_id: RunId | None = None
    round: int | None = None
    progress_percent: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    eta_s: int | None = None
    studies_ready: int = 0


def histograms_of(counts: NDArray[np.int64]) -> Histograms:
    """int[6, 2, 64] -> the nested tuples a record holds."""
    if counts.shape != (LABELS, SIDES, BINS):
        raise SpoolRefused(f"expected histograms of shape {(LABELS, SIDES, BINS)}, got {counts.shape}")
    return tuple(tuple(tuple(int(n) for n in side) for side in label) for label in counts)


def to_json(record: Job | Update | Status) -> bytes:
    """Canonical JSON of a record; refused when it would be refused on reading."""
    checks = _CHECKS[type(record)]
    table = {key: _plain(getattr(record, key)) for key in checks}
    data = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    from_json(type(record), data)
    return data


def from_json(kind: type[_R], data: bytes) -> _R:
    """Reads a record of this kind."""
    what = kind.__name__.lower()
    try:
        table = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpoolRefused(f"a {what} record in the spool is not JSON; remove it") from error
    if not isinstance(table, dict):
        raise SpoolRefused(f"a {what} record in the spool is not a JSON object; remove it")
    record = kind(**_checked(what, table, _CHECKS[kind]))
    if isinstance(record, Update) and (record.reason is not None) != (record.outcome == "declined"):
        raise SpoolRefused('an update record in the spool: a reason goes with "declined" and with nothing else')
    return record


# One table of checks a record; nothing passes that is not in it.

_Check = Callable[[Any], Any]


def _checked(what: str, record: Mapping[str, Any], checks: Mapping[str, _Check]) -> dict[str, Any]:
    odd = sorted(set(record) ^ set(checks))
    if odd:
        raise SpoolRefused(
            f"a {what} record in the spool: the key {odd[0][:40]!r} is unknown or missing; both sides same version?"
        )
    values = {}
    for key, check in checks.items():
        try:
            values[key] = check(record[key])
        except (ValueError, TypeError) as error:
            raise SpoolRefused(f"a {what} record in the spool: {key} is out of range") from error
    return values


def _hex(size: int) -> _Check:
    def check(value: Any) -> bytes:
        data = bytes.fromhex(value)
        return data if len(data) == size else _bad()

    return check


def _int(low: int, high: int) -> _Check:
    return lambda value: value if type(value) is int and low <= value <= high else _bad()


def _one_of(names: frozenset[str]) -> _Check:
    return lambda value: value if value in names else _bad()


def _optional(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


def _bool(value: Any) -> bool:
    return value if type(value) is bool else _bad()


def _finite(value: Any) -> float:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else _bad()


def _time(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment if moment.utcoffset() is not None else _bad()


def _reasons(value: Any) -> tuple[str, ...]:
    known = _one_of(STATE_REASONS)
    return tuple(known(name) for name in value) if isinstance(value, list) and len(value) <= 32 else _bad()


def _histograms(value: Any) -> Histograms:
    count = _int(0, 2**40)
    nested = tuple(tuple(tuple(count(n) for n in side) for side in label) for label in value)
    fits = len(nested) == LABELS and all(len(label) == SIDES and all(len(s) == BINS for s in label) for label in nested)
    return nested if fits else _bad()


def _bad() -> Any:
    raise ValueError


_ROUND = _int(1, 2**31)
_COUNT = _int(0, 2**40)

_JOB_CHECKS: dict[str, _Check] = {
    "run_id": _hex(16),
    "round": _ROUND,
    "evaluation_only": _bool,
    "base_model_digest": _hex(32),
    "plan_digest": _hex(32),
}
_UPDATE_CHECKS: dict[str, _Check] = {
    "run_id": _hex(16),
    "round": _ROUND,
    "base_model_digest": _hex(32),
    "outcome": _one_of(frozenset({"trained", "evaluated", "declined"})),
    "reason": _optional(_one_of(STATE_REASONS)),
    "studies": _COUNT,
    "loss_sum": _finite,
    "example_count": _COUNT,
    "clipped": _bool,
    "histograms": _histograms,
    "delta_sha256": _optional(_hex(32)),
}
_STATUS_CHECKS: dict[str, _Check] = {
    "written_at": _time,
    "state": _one_of(SITE_STATES),
    "reasons": _reasons,
    "run_id": _optional(_hex(16)),
    "round": _optional(_ROUND),
    "progress_percent": _int(0, 100),
    "step": _COUNT,
    "steps": _COUNT,
    "loss": _optional(_finite),
    "eta_s": _optional(_COUNT),
    "studies_ready": _COUNT,
}


_CHECKS: dict[type[Any], dict[str, _Check]] = {Job: _JOB_CHECKS, Update: _UPDATE_CHECKS, Status: _STATUS_CHECKS}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return list(value) if isinstance(value, tuple) else value
