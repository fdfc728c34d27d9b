"""The states of a site, a run, a round and a seat, and which may follow which. Pure tables: no I/O, no clock.

`docs/DATA_MODEL.md` has the same as prose and diagrams; a test compares. `store` turns every transition into an UPDATE
guarded by the old state, so that of two drivers only one can make it.
"""

from enum import StrEnum


class SiteStanding(StrEnum):
    """The standing of a hospital in the consortium. No column holds it: it follows from the times in the row."""

    PENDING = "pending"  # joined with its token; six words are still to be compared
    APPROVED = "approved"  # in the roster
    SUSPENDED = "suspended"  # the same, but no new round takes it until the coordinator resumes it
    REVOKED = "revoked"  # shut out by the coordinator
    LEFT = "left"  # for good, at its own request


class Role(StrEnum):
    """A person's rights. `commands.base` and `dashboard.app` enforce it."""

    VIEWER = "viewer"  # sees runs and sites
    AUDITOR = "auditor"  # also the audit trail, and the evidence of faults
    OPERATOR = "operator"  # the same, and acts on runs, sites and rosters
    ADMIN = "admin"  # the same, and says who may do what


class RunState(StrEnum):
    """A run: one signed plan, carried out round by round."""

    QUEUED = "queued"  # begins when no other run is running or paused
    RUNNING = "running"
    PAUSED = "paused"  # by the coordinator: the round in progress ends, no new one begins
    COMPLETED = "completed"
    ABORTED = "aborted"


class RoundState(StrEnum):
    """One round of a run, from the offer to train to the published model."""

    TRAINING = "training"  # sites train for as long as it takes; those done are ready
    KEYS = "keys"  # the cohort is frozen; each member advertises fresh keys
    SHARES = "shares"  # members share their secrets with each other
    UPLOAD = "upload"  # masked words arrive
    CONFIRM = "confirm"  # members sign whose words arrived
    REVEAL = "reveal"  # members reveal the shares that unmask the sum, and no others
    AGGREGATING = "aggregating"  # the driver recovers masks, decodes the sum, computes the next model
    PUBLISHED = "published"
    ABANDONED = "abandoned"  # no sum was decoded; `reason` says why


class SeatState(StrEnum):
    """One site in one round. Cohort members climb from READY to REVEALED; all others stop before."""

    OFFERED = "offered"
    DECLINED = "declined"  # by the site, with a reason from the closed list
    READY = "ready"  # holds a trained update
    JOINED = "joined"  # frozen into the cohort of the current attempt (U0)
    KEYED = "keyed"  # keys arrived (U1)
    SHARED = "shared"  # shares arrived (U2)
    UPLOADED = "uploaded"  # masked words arrived (U3)
    CONFIRMED = "confirmed"  # signed U3 (U4)
    REVEALED = "revealed"  # revealed its shares (U5)
    MISSED = "missed"  # was in the cohort and missed a phase
    LEFT_OUT = "left_out"  # the cohort was frozen without it, or goes on without it


class ModelStanding(StrEnum):
    """A model of a run whose plan has a gate. Models of other runs have none, unless a rollback passed them."""

    CANDIDATE = "candidate"  # the sum of the next round has not judged it yet
    ACCEPTED = "accepted"
    REFUSED = "refused"  # worse than its predecessor; no round starts from it any more
    ROLLED_BACK = "rolled_back"  # the custodian has signed that the run goes on from an earlier model


class FaultKind(StrEnum):
    """The faults for which a site sits out rounds: `runs.faults`."""

    SILENT = "silent"  # a member that missed a phase
    BAD_SHARES = "bad_shares"  # dealt no shares, by the signed word of more members than may lie
    BAD_DEALING = "bad_dealing"  # dealt shares of no secret; they were put together
    SPOILED_SUM = "spoiled_sum"  # the one member of every sum that led to no model, and the others published without it


SITE_TRANSITIONS: dict[SiteStanding, frozenset[SiteStanding]] = {
    SiteStanding.PENDING: frozenset({SiteStanding.APPROVED, SiteStanding.REVOKED}),
    SiteStanding.APPROVED: frozenset({SiteStanding.SUSPENDED, SiteStanding.REVOKED, SiteStanding.LEFT}),
    SiteStanding.SUSPENDED: frozenset({SiteStanding.APPROVED, SiteStanding.REVOKED, SiteStanding.LEFT}),
    # Back to PENDING: invited anew, and joined with that token.
    SiteStanding.REVOKED: frozenset({SiteStanding.PENDING}),
    SiteStanding.LEFT: frozenset({SiteStanding.PENDING}),
}

RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.ABORTED}),
    RunState.RUNNING: frozenset({RunState.PAUSED, RunState.COMPLETED, RunState.ABORTED}),
    RunState.PAUSED: frozenset({RunState.RUNNING, RunState.ABORTED}),
    RunState.COMPLETED: frozenset(),
    RunState.ABORTED: frozenset(),
}

_MASKING = (RoundState.KEYS, RoundState.SHARES, RoundState.UPLOAD, RoundState.CONFIRM)

ROUND_TRANSITIONS: dict[RoundState, frozenset[RoundState]] = {
    RoundState.TRAINING: frozenset({RoundState.KEYS, RoundState.ABANDONED}),
    # Back to TRAINING: the attempt failed before anything was revealed; those still ready try again with fresh keys.
    RoundState.KEYS: frozenset({RoundState.SHARES, RoundState.TRAINING, RoundState.ABANDONED}),
    RoundState.SHARES: frozenset({RoundState.UPLOAD, RoundState.TRAINING, RoundState.ABANDONED}),
    RoundState.UPLOAD: frozenset({RoundState.CONFIRM, RoundState.TRAINING, RoundState.ABANDONED}),
    RoundState.CONFIRM: frozenset({RoundState.REVEAL, RoundState.TRAINING, RoundState.ABANDONED}),
    # From here on no second attempt: an update whose shares were revealed must not enter another sum.
    RoundState.REVEAL: frozenset({RoundState.AGGREGATING, RoundState.ABANDONED}),
    RoundState.AGGREGATING: frozenset({RoundState.PUBLISHED, RoundState.ABANDONED}),
    RoundState.PUBLISHED: frozenset(),
    RoundState.ABANDONED: frozenset(),
}

MASKING_PHASES: tuple[RoundState, ...] = (*_MASKING, RoundState.REVEAL)

# The seat a member must hold to act in a phase, and the one it holds afterwards.
PHASE_SEATS: dict[RoundState, tuple[SeatState, SeatState]] = {
    RoundState.KEYS: (SeatState.JOINED, SeatState.KEYED),
    RoundState.SHARES: (SeatState.KEYED, SeatState.SHARED),
    RoundState.UPLOAD: (SeatState.SHARED, SeatState.UPLOADED),
    RoundState.CONFIRM: (SeatState.UPLOADED, SeatState.CONFIRMED),
    RoundState.REVEAL: (SeatState.CONFIRMED, SeatState.REVEALED),
}

SEAT_TRANSITIONS: dict[SeatState, frozenset[SeatState]] = {
    SeatState.OFFERED: frozenset({SeatState.READY, SeatState.DECLINED, SeatState.LEFT_OUT}),
    SeatState.DECLINED: frozenset(),
    SeatState.READY: frozenset({SeatState.JOINED, SeatState.DECLINED, SeatState.LEFT_OUT}),
    # Back to READY: the attempt failed and the round went back to TRAINING.
    SeatState.JOINED: frozenset({SeatState.KEYED, SeatState.MISSED, SeatState.READY}),
    SeatState.KEYED: frozenset({SeatState.SHARED, SeatState.MISSED, SeatState.READY}),
    # LEFT_OUT: what it dealt were no shares by the word of enough members, or it did not open them.
    SeatState.SHARED: frozenset({SeatState.UPLOADED, SeatState.MISSED, SeatState.READY, SeatState.LEFT_OUT}),
    SeatState.UPLOADED: frozenset({SeatState.CONFIRMED, SeatState.MISSED, SeatState.READY, SeatState.LEFT_OUT}),
    SeatState.CONFIRMED: frozenset({SeatState.REVEALED, SeatState.MISSED, SeatState.READY}),
    SeatState.REVEALED: frozenset(),
    # A member that missed a phase of a failed attempt still holds its update and may be ready for the next one.
    SeatState.MISSED: frozenset({SeatState.READY}),
    SeatState.LEFT_OUT: frozenset(),
}
