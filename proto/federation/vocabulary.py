"""The closed lists that a site and the aggregator share: states, reasons, outcomes, metrics.

Values are the enumerators' names in rounds.proto and plan.proto. Databases, spool records and status files hold the
same names. No list has room for free text, so no patient value can travel in one.
"""

from enum import StrEnum
from typing import Final

from federation.v1 import plan_pb2, rounds_pb2


class SiteState(StrEnum):
    """A site's report about itself; rounds.proto explains each."""

    IDLE = "SITE_IDLE"
    AWAITING_APPROVAL = "SITE_AWAITING_APPROVAL"
    PREPARING = "SITE_PREPARING"
    TRAINING = "SITE_TRAINING"
    PAUSED = "SITE_PAUSED"
    READY = "SITE_READY"
    MASKING = "SITE_MASKING"
    ATTENTION = "SITE_ATTENTION"

    @property
    def number(self) -> rounds_pb2.SiteState.ValueType:
        """The enumerator on the wire."""
        return rounds_pb2.SiteState.Value(self.value)


class StateReason(StrEnum):
    """The reasons for which a site is paused, needs attention, or declines."""

    OPERATOR = "OPERATOR"
    WINDOW = "WINDOW"
    BLACKOUT = "BLACKOUT"
    FOREIGN_CPU = "FOREIGN_CPU"
    MEMORY = "MEMORY"
    IO = "IO"
    GPU_BUSY = "GPU_BUSY"
    USER_ACTIVE = "USER_ACTIVE"
    REMOTE_SESSION = "REMOTE_SESSION"
    BATTERY = "BATTERY"
    UPS = "UPS"
    THERMAL = "THERMAL"
    DISK = "DISK"
    EXCLUSIVE_APP = "EXCLUSIVE_APP"
    SHUTDOWN = "SHUTDOWN"
    UNKNOWN_SIGNAL = "UNKNOWN_SIGNAL"
    START_DELAY = "START_DELAY"
    HOLD = "HOLD"
    METERED = "METERED"
    NET_DOWN = "NET_DOWN"
    QUOTA = "QUOTA"
    NET_WINDOW = "NET_WINDOW"
    PROXY = "PROXY"
    TRAINER_SILENT = "TRAINER_SILENT"
    TOO_FEW_STUDIES = "TOO_FEW_STUDIES"
    NO_LABELS = "NO_LABELS"
    TRAINING_FAILED = "TRAINING_FAILED"
    PLAN_REFUSED = "PLAN_REFUSED"
    POLICY = "POLICY"
    MODEL_MISMATCH = "MODEL_MISMATCH"
    MODEL_DAMAGED = "MODEL_DAMAGED"
    ATTESTATION = "ATTESTATION"

    @property
    def number(self) -> rounds_pb2.StateReason.ValueType:
        """The enumerator on the wire."""
        return rounds_pb2.StateReason.Value(self.value)


# Reasons with which a site may decline a round.
DECLINE_REASONS: Final = frozenset(
    {
        StateReason.PLAN_REFUSED,
        StateReason.POLICY,
        StateReason.TOO_FEW_STUDIES,
        StateReason.NO_LABELS,
        StateReason.TRAINING_FAILED,
    }
)


class EvidenceRefusal(StrEnum):
    """The reasons for which evidence does not suffice for a content key; rounds.proto explains each."""

    STALE = "STALE"
    FORM = "FORM"
    CHAIN = "CHAIN"
    SIGNATURE = "SIGNATURE"
    BINDING = "BINDING"
    MEASUREMENT = "MEASUREMENT"
    TCB = "TCB"
    DEBUG = "DEBUG"
    VMPL = "VMPL"

    @property
    def number(self) -> rounds_pb2.EvidenceRefusal.ValueType:
        """The enumerator on the wire."""
        return rounds_pb2.EvidenceRefusal.Value(self.value)


class Outcome(StrEnum):
    """The end of a job at the trainer."""

    TRAINED = "trained"
    EVALUATED = "evaluated"
    DECLINED = "declined"


class Metric(StrEnum):
    """The figures in the header words of an upload, beside the weight. plan.toml and site.toml use these names."""

    LOSS = "loss"  # sum of the training loss, and the number of examples it is over
    HISTOGRAMS = "histograms"  # score histograms of the base model on validation patients

    @property
    def number(self) -> plan_pb2.Metric.ValueType:
        """The enumerator on the wire; metrics of a plan are sorted by it."""
        return plan_pb2.Metric.Value(self.name)
