"""The closed lists of states and reasons in words that an administrator reads. A test asks for words for every entry.

Keys are the enums' members. Rows hold the same names as text, which equals the member, so either finds its words. A
row that a newer version wrote may hold a name that is not here; pages then show the name.
"""

from collections.abc import Mapping
from typing import Final

from federation.vocabulary import SiteState, StateReason

from aggregator.states import FaultKind, RoundState, RunState, SeatState, SiteStanding

SITE_STATES: Final[Mapping[str, str]] = {
    SiteState.IDLE: "idle",
    SiteState.AWAITING_APPROVAL: "waiting for the hospital's approval of the plan",
    SiteState.PREPARING: "preparing data and model",
    SiteState.TRAINING: "training",
    SiteState.PAUSED: "paused",
    SiteState.READY: "ready, holds an update",
    SiteState.MASKING: "masking",
    SiteState.ATTENTION: "needs attention at the hospital",
}
SITE_TONES: Final[Mapping[str, str]] = {
    SiteState.IDLE: "calm",
    SiteState.PREPARING: "calm",
    SiteState.TRAINING: "calm",
    # Paused is healthy: a hospital's machine trains only while it is idle.
    SiteState.PAUSED: "calm",
    SiteState.READY: "good",
    SiteState.MASKING: "calm",
    SiteState.ATTENTION: "bad",
    SiteState.AWAITING_APPROVAL: "warn",
}

REASONS: Final[Mapping[str, str]] = {
    # The trainer's idle gate: the machine belongs to its users first.
    StateReason.OPERATOR: "paused by the operator",
    StateReason.WINDOW: "outside the hours set for training",
    StateReason.BLACKOUT: "a date on which nothing runs",
    StateReason.FOREIGN_CPU: "the machine is busy",
    StateReason.MEMORY: "memory is short",
    StateReason.IO: "the disk is busy",
    StateReason.GPU_BUSY: "the GPU is in use",
    StateReason.USER_ACTIVE: "workstation in use",
    StateReason.REMOTE_SESSION: "a remote session is active",
    StateReason.BATTERY: "on battery",
    StateReason.UPS: "on emergency power",
    StateReason.THERMAL: "the machine is hot",
    StateReason.DISK: "the disk is full",
    StateReason.EXCLUSIVE_APP: "a program that goes first is running",
    StateReason.SHUTDOWN: "the machine is shutting down",
    StateReason.UNKNOWN_SIGNAL: "a signal it must know is unknown",
    StateReason.START_DELAY: "waiting after start",
    StateReason.HOLD: "waiting for lasting calm",
    # The agent's network and the hospital's limits on it.
    StateReason.METERED: "the network is metered",
    StateReason.NET_DOWN: "the network is down",
    StateReason.QUOTA: "the day's transfer quota is used up",
    StateReason.NET_WINDOW: "outside the hours set for transfers",
    StateReason.PROXY: "the proxy refuses",
    # Training and plan; a site declines a round with some of these.
    StateReason.TRAINER_SILENT: "the trainer has not reported for a while",
    StateReason.TOO_FEW_STUDIES: "too few studies",
    StateReason.NO_LABELS: "no labels",
    StateReason.TRAINING_FAILED: "training failed",
    StateReason.PLAN_REFUSED: "the hospital refused the plan",
    StateReason.POLICY: "the hospital's policy forbids the plan",
    StateReason.MODEL_MISMATCH: "a published model did not verify",
    StateReason.MODEL_DAMAGED: "a model or sum is damaged, on the way or on a disk; it is fetched again",
    StateReason.ATTESTATION: "its machine cannot show what the plan asks for before a model is released to it",
}

ROUND_STATES: Final[Mapping[str, str]] = {
    RoundState.TRAINING: "training at the sites",
    RoundState.KEYS: "masking: exchanging keys",
    RoundState.SHARES: "masking: sharing secrets",
    RoundState.UPLOAD: "masking: uploading",
    RoundState.CONFIRM: "masking: confirming the uploads",
    RoundState.REVEAL: "masking: revealing the shares that unmask the sum",
    RoundState.AGGREGATING: "aggregating the sum",
    RoundState.PUBLISHED: "published",
    RoundState.ABANDONED: "abandoned",
}
SEAT_STATES: Final[Mapping[str, str]] = {
    SeatState.OFFERED: "has not answered yet",
    SeatState.DECLINED: "takes no part",
    SeatState.READY: "ready",
    SeatState.JOINED: "in the cohort",
    SeatState.KEYED: "sent keys",
    SeatState.SHARED: "sent shares",
    SeatState.UPLOADED: "uploaded",
    SeatState.CONFIRMED: "confirmed",
    SeatState.REVEALED: "done",
    SeatState.MISSED: "missed a phase",
    SeatState.LEFT_OUT: "came too late",
}
# Of runs, rounds, seats and standings. States that are not here have no color.
FAULTS: Final[Mapping[FaultKind, str]] = {
    FaultKind.SILENT: "ready, then silent",
    FaultKind.BAD_SHARES: "dealt no shares",
    FaultKind.BAD_DEALING: "dealt shares of no secret",
    FaultKind.SPOILED_SUM: "in every refused sum",
}
TONES: Final[Mapping[str, str]] = {
    RunState.RUNNING: "calm",
    RunState.COMPLETED: "good",
    RunState.PAUSED: "warn",
    RunState.ABORTED: "bad",
    RoundState.PUBLISHED: "good",
    RoundState.ABANDONED: "bad",
    SeatState.DECLINED: "warn",
    SeatState.LEFT_OUT: "warn",
    SeatState.MISSED: "bad",
    SiteStanding.PENDING: "warn",
    SiteStanding.APPROVED: "good",
    SiteStanding.SUSPENDED: "warn",
    SiteStanding.REVOKED: "bad",
}
