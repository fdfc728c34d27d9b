"""The records that agent and trainer exchange through the spool.

Every record holds exactly the keys of its dataclass. Types and bounds stand beside the fields; an unknown key, a
missing one or a value out of range is refused. No field has room for a name, a patient's identifier or an image's path.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, TypeAlias, TypeVar

import numpy as np
from federation.labels import BINS, LABELS, SIDES
from federation.limits import REASONS_MAX
from federation.sealed_model import model_name
from federation.sealing import SealedName
from federation.vocabulary import Outcome, SiteState, StateReason
from msgspec import Meta
from numpy.typing import NDArray

from site_client.errors import SpoolRefused
from site_client.typed_json import LATER, LOCAL, Digest, HexBytes, decode, encode

RECORD_BYTES_MAX: Final = 64 * 1024  # an update has 12 KiB, of which its histograms are most
_R = TypeVar("_R", bound="Job | Update | Status")


class RunId(HexBytes):
    """A run."""

    LENGTH = 16


ROUND_MAX: Final = 2**31
RoundNumber: TypeAlias = Annotated[int, Meta(ge=1, le=ROUND_MAX)]
RunHex: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]  # a run as a key of JSON
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**40)]
AwareTime: TypeAlias = Annotated[datetime, Meta(tz=True)]
Reasons: TypeAlias = Annotated[tuple[StateReason, ...], Meta(max_length=REASONS_MAX)]
_Bins: TypeAlias = Annotated[tuple[Count, ...], Meta(min_length=BINS, max_length=BINS)]
_Sides: TypeAlias = Annotated[tuple[_Bins, ...], Meta(min_length=len(SIDES), max_length=len(SIDES))]
# histograms[label][0 negative, 1 positive][bin], as in federation.encoding.SiteHeader
Histograms: TypeAlias = Annotated[tuple[_Sides, ...], Meta(min_length=len(LABELS), max_length=len(LABELS))]
HISTOGRAMS_SHAPE: Final = (len(LABELS), len(SIDES), BINS)
NO_HISTOGRAMS: Final[Histograms] = (((0,) * BINS,) * len(SIDES),) * len(LABELS)


@dataclass(frozen=True)
class Job:
    """One round to train or to evaluate. The agent has verified the plan's signature."""

    run_id: RunId
    round: RoundNumber
    evaluation_only: bool
    base_model_digest: Digest
    plan_digest: Digest
    folder: Path = field(default=Path(), metadata=LOCAL)  # the reader fills it in

    @property
    def plan_file(self) -> Path:
        """The serialized SignedPlan."""
        return self.folder / "plan.bin"

    @property
    def base_file(self) -> Path:
        """The base model, safetensors; under a plan with a release level there is `sealed_file` instead."""
        return self.folder / "base.safetensors"

    @property
    def sealed_file(self) -> Path:
        """The base model as a sealed file."""
        return self.folder / "base.sealed"

    @property
    def is_sealed(self) -> bool:
        """Whether the base model is a sealed file."""
        return self.sealed_file.exists()

    @property
    def sealed_name(self) -> SealedName:
        """Names the base model as a sealed file."""
        return model_name(self.plan_digest, self.base_model_digest)


@dataclass(frozen=True)
class AucLoss:
    """The AUC of a label that a round's base model loses against an earlier one, and this label's positive slices."""

    auc: Annotated[float, Meta(ge=-1, le=1)] = 0.0
    positives: Count = 0


@dataclass(frozen=True)
class PredecessorComparison:
    """A round's base model and an earlier one on the same validation patients of this site.

    Attributes:
        earlier_digest: Of the earlier model.
        difference_sum: Base model's minus earlier one's loss of a patient, clipped to the plan's gate.clip, summed.
        square_sum: Of these differences.
        patients: Patients with both losses.
        labels: In the order of LABELS. A label with too few positives or negatives of these patients has none.
    """

    earlier_digest: Digest
    difference_sum: float
    square_sum: Annotated[float, Meta(ge=0)]
    patients: Count
    labels: Annotated[tuple[AucLoss, ...], Meta(min_length=len(LABELS), max_length=len(LABELS))] = (AucLoss(),) * len(
        LABELS
    )


@dataclass(frozen=True)
class Update:
    """The result of a job. Sums are over this site only: they leave it under masks or not at all."""

    run_id: RunId
    round: RoundNumber
    base_model_digest: Digest
    outcome: Outcome
    reason: StateReason | None  # with DECLINED only
    studies: Count  # training studies, the weight
    loss_sum: float  # of the training loss over example_count examples
    example_count: Count
    clipped: bool  # by training itself; the agent clips again
    histograms: Histograms = NO_HISTOGRAMS
    # Under a plan with a gate, once an earlier model was evaluated here.
    comparison: PredecessorComparison | None = field(default=None, metadata=LATER)
    delta_sha256: Digest | None = None  # of delta.f32; with TRAINED only


@dataclass(frozen=True)
class Status:
    """The trainer's state. `loss` is for the hospital's own eyes: the agent must never forward it."""

    written_at: AwareTime
    state: SiteState
    reasons: Reasons = ()
    run_id: RunId | None = None
    round: RoundNumber | None = None
    progress_percent: Annotated[int, Meta(ge=0, le=100)] = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    eta_s: Count | None = None
    studies_ready: Count = 0


def histograms_of(counts: NDArray[np.int64]) -> Histograms:
    """Convert int64[6, 2, 64] to the nested tuples that a record holds.

    Raises:
        SpoolRefused: Another shape.
    """
    if counts.shape != HISTOGRAMS_SHAPE:
        raise SpoolRefused(f"expected histograms of shape {HISTOGRAMS_SHAPE}, got {counts.shape}")
    return tuple(tuple(tuple(int(count) for count in side) for side in label) for label in counts)


def to_json(record: Job | Update | Status) -> bytes:
    """Return the canonical JSON of a record.

    Raises:
        SpoolRefused: `from_json` would refuse it.
    """
    try:
        data = encode(record)
    except ValueError:
        raise SpoolRefused(f"a {type(record).__name__.lower()} record holds a number that is not finite") from None
    from_json(type(record), data)  # so that a mistake is refused where it is made, not at the other process
    return data


def from_json(kind: type[_R], data: bytes) -> _R:
    """Read a record of this kind.

    Raises:
        SpoolRefused: `data` is no such record. The message never repeats a value.
    """
    name = kind.__name__.lower()
    try:
        record = decode(kind, data, whole=True, size_max=RECORD_BYTES_MAX)
    except ValueError as error:
        raise SpoolRefused(f"a {name} record in the spool: {error}; have both processes the same version?") from None
    if isinstance(record, Update) and (record.reason is not None) != (record.outcome == Outcome.DECLINED):
        raise SpoolRefused('an update record in the spool: a reason goes with "declined" and with nothing else')
    return record
