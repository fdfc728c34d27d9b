"""Can a run of this plan begin, and what will a round cost? From the plan, its model, and the rows of earlier rounds.

`plan check` and `run start --dry-run` show it; `plan export` and `run start` refuse by it.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Final

import numpy as np
from federation.architectures import tensors_objection
from federation.description import ModelDescription
from federation.forecast import traffic
from federation.manifest import Model
from federation.plan import ServerKind, TrainingPlan
from sqlalchemy.orm import Session

from aggregator.sites.roster import eligible, in_force
from aggregator.states import MASKING_PHASES, RoundState
from aggregator.store import round_rows, run_rows, site_rows
from aggregator.units import duration, size

F32_ROUNDING: Final = 2.0**-24  # largest relative error of a number that float32 rounds
ROUNDS_MEASURED: Final = 20  # the newest ones: lines and machines change


@dataclass(frozen=True)
class Participation:
    """The hospitals of the moment.

    Attributes:
        able: They may take part in a round that begins now, by name.
        unlisted: Approved, but no roster of the custodian's holds their keys.
        roster_ends: The end of the roster in force, aware UTC; None without one, or for one without an end.
        roster_ended: No site takes part in anything before a new roster.
        active_run: Name of the run that has to end first, if any.
    """

    able: tuple[str, ...]
    unlisted: tuple[str, ...]
    roster_ends: datetime | None
    roster_ended: bool
    active_run: str | None


@dataclass(frozen=True)
class MeasuredRounds:
    """Times of published rounds, of all runs.

    Attributes:
        rounds: How many are measured.
        training_s: Shortest, median and longest training of a round, s.
        masking_s: Median of the five phases together, s.
        line: Bytes a second of the slowest upload, from its bytes and the time of its phase; it may have been faster.
            None where no upload was counted.
    """

    rounds: int
    training_s: tuple[float, float, float]
    masking_s: float
    line: float | None


def participation(session: Session, now: datetime) -> Participation:
    """Read who may take part; `now` is aware UTC."""
    roster, able = in_force(session), eligible(session)
    active = run_rows.active(session)
    ended = roster is not None and roster.has_expired(now)
    return Participation(
        able=() if ended else tuple(able),
        unlisted=tuple(site.name for site in site_rows.active(session) if site.name not in able),
        roster_ends=None if roster is None else roster.expires_at,
        roster_ended=ended,
        active_run=None if active is None else active.name,
    )


def measured_rounds(session: Session) -> MeasuredRounds | None:
    """Read the times of the newest published rounds that trained; None before the first."""
    training, masking, lines = [], [], []
    for row in round_rows.newest_published(session, ROUNDS_MEASURED):
        seconds: dict[RoundState, float] = {}
        for phase in round_rows.phase_times(session, row.id):
            seconds[phase.state] = seconds.get(phase.state, 0.0) + phase.seconds
        training.append(seconds.get(RoundState.TRAINING, 0.0))
        masking.append(sum(seconds.get(phase, 0.0) for phase in MASKING_PHASES))
        most_bytes = max((seat.bytes_up for seat in round_rows.seats(session, row.id)), default=0)
        if most_bytes and seconds.get(RoundState.UPLOAD):
            lines.append(most_bytes / seconds[RoundState.UPLOAD])
    if not training:
        return None
    return MeasuredRounds(
        rounds=len(training),
        training_s=(min(training), median(training), max(training)),
        masking_s=median(masking),
        line=min(lines, default=None),
    )


def model_objections(plan: TrainingPlan, model: Model, description: ModelDescription | None) -> list[str]:
    """Say why the plan and its initial model lead to nothing, one sentence each."""
    objections = []
    tensors = tensors_objection(plan.architecture, model.manifest)
    if tensors is not None:
        objections.append(tensors)
    elif description is not None and description.architecture != plan.architecture:
        # Two names may share their tensors and differ in what they compute.
        objections.append(
            f"expected an initial model of {plan.architecture}, the file says that it is of {description.architecture}"
        )
    length = float(np.linalg.norm(model.weights.astype(np.float64)))
    if plan.privacy is None and 0 < _longest_step(plan) < F32_ROUNDING * length:
        objections.append(
            f"a round moves the model by {_longest_step(plan):.0e} at most, and float32 rounds a model of length "
            f"{length:.0e} to {F32_ROUNDING * length:.0e}: nothing would be learned; raise encoding.clip_norm "
            f"(now {plan.encoding.clip_norm:g}) or server.learning_rate (now {plan.server.learning_rate:g})"
        )
    return objections


def start_objections(
    plan: TrainingPlan, sites: Participation, measured: MeasuredRounds | None, *, queue: bool = False
) -> list[str]:
    """Say why a run of the plan could not begin, or could not end a round, one sentence each.

    Args:
        plan: The plan.
        sites: Of the moment.
        measured: Earlier rounds, if any.
        queue: Whether the run may wait for another one to end.
    """
    objections = []
    if sites.active_run is not None and not queue:
        objections.append(f"one run at a time: {sites.active_run} has to end first; `run start --queue` waits for that")
    if sites.roster_ended:
        objections.append("the roster has ended and no site takes part: roster export, sign, roster import")
    elif len(sites.able) < plan.cohort.minimum:
        objections.append(
            f"expected at least {plan.cohort.minimum} hospitals (cohort.minimum), {len(sites.able)} may take part: "
            "lower it, or let more join"
        )
    upload_s = _upload_s(plan, measured)
    if upload_s is not None and upload_s > plan.deadlines.phase_s:
        objections.append(
            f"an upload would take {duration(upload_s)} on the slowest line measured, and deadlines.phase_s allows "
            f"{duration(plan.deadlines.phase_s)}; raise it to twice the upload"
        )
    return objections


def start_words(plan: TrainingPlan, sites: Participation, measured: MeasuredRounds | None) -> list[str]:
    """Describe the hospitals that may take part, and the times of earlier rounds, one line each."""
    able, cohort = len(sites.able), plan.cohort
    lines = [f"may take part   {able} of {cohort.minimum} needed: {', '.join(sites.able) or 'none'}"]
    if sites.unlisted:
        lines.append(f"                not in the roster in force, so not yet: {', '.join(sites.unlisted)}")
    if cohort.minimum <= able < cohort.target:
        lines.append(f"                {cohort.target} are wanted, so a round waits for all of them or its deadline")
    if able > cohort.maximum:
        lines.append(f"                a round takes {cohort.maximum} at most, the others by turns")
    if sites.roster_ends is not None:
        lines.append(f"roster          ends on {sites.roster_ends:%Y-%m-%d}")
    if measured is None:
        return [*lines, "measured        nothing yet: no round has been published here"]
    shortest, middle, longest = map(duration, measured.training_s)
    lines.append(
        f"measured        {measured.rounds} published rounds: training {shortest} to {longest}, median {middle}; the "
        f"five phases of masking {duration(measured.masking_s)}"
    )
    upload_s = _upload_s(plan, measured)
    if upload_s is not None and measured.line is not None:
        lines.append(
            f"                the slowest upload ran at {size(round(measured.line))} a second or more; "
            f"{size(traffic(plan).up_round)} take {duration(upload_s)} at that"
        )
    return lines


def _upload_s(plan: TrainingPlan, measured: MeasuredRounds | None) -> float | None:
    if measured is None or measured.line is None:
        return None
    return math.ceil(traffic(plan).up_round / measured.line)


def _longest_step(plan: TrainingPlan) -> float:
    """The length of the longest step that one mean update of length clip_norm can make of the model."""
    server = plan.server
    step = server.learning_rate * plan.encoding.clip_norm
    # FedAdam and FedYogi divide by sqrt(v) + tau, v >= 0 (Reddi et al. 2021, algorithm 2).
    if server.kind in (ServerKind.FEDADAM, ServerKind.FEDYOGI):
        return step / server.tau
    # Of equal updates momentum adds up to a geometric series.
    return step / (1 - server.beta1)
