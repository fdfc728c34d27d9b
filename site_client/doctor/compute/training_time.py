"""Times one training step on this machine, and says whether a round fits the hours allowed and the plan's deadline.

The step is a real one: the plan's network at the plan's sizes, on the device and with the threads of site.toml, in a
process of the trainer's user without a network socket. Its study is synthetic, because the time of a step does not
depend on what an image shows. The machine is taken as free: the time that other programs take now is left out.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import torch
import torch.nn.functional as F
from federation.plan import Deadlines, Inputs, LocalTraining, TrainingPlan

from site_client.check_result import CheckResult, amber, green, grey, red
from site_client.config import IdleSettings, SiteSettings
from site_client.errors import SpoolRefused, UnknownArchitecture
from site_client.ingest.catalog.catalog import open_catalog
from site_client.model.network import GEOMETRY, Network
from site_client.model.registry import build
from site_client.model.synthetic import SLICES, synthetic_slices
from site_client.spool import AgentSide
from site_client.trainer.idle.rules import is_in_hours
from site_client.training.compute import Compute, choose
from site_client.training.data import Sample, split_patients
from site_client.training.loss import training_loss
from site_client.training.state import TrainingState

_LOOK: Final = timedelta(minutes=5)  # between two looks at the hours allowed
_USUAL_SHARE: Final = 0.5  # of the hours allowed, for which others leave a machine free
_FIX: Final = (
    "Allow more hours (idle.windows), take a machine with a GPU, or ask the coordinator for a longer training_s"
)


@dataclass(frozen=True)
class RoundShape:
    """The facts of a plan that decide how long a round takes. Without a plan: the defaults of plan.toml."""

    name: str = ""
    architecture: str = "densenet121-gru"
    inputs: Inputs = field(default_factory=Inputs)
    training: LocalTraining = field(default_factory=LocalTraining)
    deadlines: Deadlines = field(default_factory=Deadlines)

    @classmethod
    def of(cls, plan: TrainingPlan) -> "RoundShape":
        """Take the facts of a plan."""
        return cls(plan.name, plan.architecture, plan.inputs, plan.training, plan.deadlines)


@dataclass(frozen=True)
class StudyTimes:
    """Seconds for one study of the plan's size, and the kind of compute that was timed."""

    trained_s: float
    evaluated_s: float
    kind: str


def check_training_time(settings: SiteSettings, plan: TrainingPlan | None, now: datetime) -> Iterator[CheckResult]:
    """Time a step and compare a round with its time.

    Args:
        settings: Of this site.
        plan: The newest one; None: the defaults of plan.toml.
        now: Aware, in the zone whose wall clock counts for the hours allowed.
    """
    try:
        status = AgentSide.peek(settings.folders.spool)
    except SpoolRefused:
        status = None
    if status is not None and status.eta_s is not None:
        yield grey("round time", f"a round is in training and says itself that it needs {_hours(status.eta_s)} more")
        return
    if plan is not None and plan.privacy is not None:
        yield grey("round time", "a private plan computes each patient's gradient by itself, which is not timed here")
        return
    shape = RoundShape() if plan is None else RoundShape.of(plan)
    try:
        times = time_a_study(settings, shape)
    except UnknownArchitecture as error:
        yield red("round time", str(error), "Update hemofed, or tell the coordinator")
        return
    allowed_s = allowed_within(settings.idle, now, shape.deadlines.training_s)
    yield verdict(shape, times, _studies(settings), allowed_s)


def time_a_study(settings: SiteSettings, shape: RoundShape) -> StudyTimes:
    """Train and evaluate 16 synthetic slices once, after a step that is not timed, and scale to the plan's slices.

    Raises:
        UnknownArchitecture: This version does not have the plan's network.
    """
    training = settings.training
    compute = choose(training.device, training.threads, shape.inputs.image_size_px)
    net = compute.place(build(shape.architecture, seed=0))
    state, sample = TrainingState(net, shape.training), _sample(shape.inputs.image_size_px, compute)
    net.train()
    # The first step chooses kernels and allocates.
    _train(state, net, _shortened(sample, 1), compute)
    trained_s = _timed(lambda: _train(state, net, sample, compute), compute)
    net.eval()
    with compute.inference():
        evaluated_s = _timed(lambda: float(net(sample.x, sample.mask, sample.geometry).study_logits.sum()), compute)
    slices = shape.inputs.slices_max
    a_study = min(shape.training.slices_per_study or slices, slices)
    return StudyTimes(trained_s * a_study / SLICES, evaluated_s * slices / SLICES, compute.kind)


def allowed_within(policy: IdleSettings, now: datetime, seconds: float) -> float:
    """Return the seconds of the next `seconds` that the hours and days of site.toml leave for training."""
    looks = math.ceil(seconds / _LOOK.total_seconds())
    return seconds / looks * sum(is_in_hours(policy, now + number * _LOOK) for number in range(looks))


def verdict(shape: RoundShape, times: StudyTimes, studies: tuple[int, int] | None, allowed_s: float) -> CheckResult:
    """Say whether a round fits.

    Args:
        shape: Of the round.
        times: Of one study.
        studies: For training and for validation; None before the first scan: the plan's minimum.
        allowed_s: Until the plan's deadline, in the hours allowed.
    """
    trained, evaluated = (shape.training.studies_min, 0) if studies is None else studies
    needed_s = trained * shape.training.epochs * times.trained_s + evaluated * times.evaluated_s
    plan = f"the plan {shape.name!r}" if shape.name else "a plan with the default values"
    least = "" if studies is not None else " (the least; nothing was scanned yet)"
    words = (
        f"training on one study takes {times.trained_s:.1f} s here ({shape.architecture}, {times.kind}); a round of "
        f"{plan} with {trained + evaluated} studies{least} needs {_hours(needed_s)}; of its "
        f"{_hours(shape.deadlines.training_s)} the hours allowed here leave {_hours(allowed_s)}"
    )
    if needed_s > allowed_s:
        return red("round time", f"{words}: it does not fit", _FIX)
    if needed_s > _USUAL_SHARE * allowed_s:
        return amber("round time", f"{words}: it fits only if others leave the machine free most of that time", _FIX)
    return green("round time", f"{words}: it fits")


def _studies(settings: SiteSettings) -> tuple[int, int] | None:
    if not (settings.folders.trainer / "catalog.sqlite").exists():
        return None
    with closing(open_catalog(settings)) as catalog:
        split = split_patients(catalog.dataset().studies, settings.training.validation_fraction)
    return len(split.training), len(split.validation)


def _sample(image_size_px: int, compute: Compute) -> Sample:
    slices = F.interpolate(synthetic_slices(torch.Generator().manual_seed(0)), image_size_px, mode="bilinear")
    ones = torch.ones(1, SLICES, device=compute.device)
    return Sample(
        x=slices.unsqueeze(0).to(compute.device),
        mask=ones.bool(),
        geometry=torch.zeros(1, SLICES, GEOMETRY, device=compute.device),
        slice_labels=torch.zeros(1, SLICES, 6, device=compute.device),
        study_labels=torch.zeros(1, 6, device=compute.device),
        anchored=ones[:, 0].bool(),
    )


def _shortened(sample: Sample, slices: int) -> Sample:
    return replace(
        sample,
        x=sample.x[:, :slices],
        mask=sample.mask[:, :slices],
        geometry=sample.geometry[:, :slices],
        slice_labels=sample.slice_labels[:, :slices],
    )


def _train(state: TrainingState, net: Network, sample: Sample, compute: Compute) -> float:
    state.zero_grad()
    with compute.autocast():
        output = net(sample.x, sample.mask, sample.geometry)
    loss = training_loss(output, sample).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    state.step(0, 1)
    return float(loss.detach())  # waits for a GPU


def _timed(work: Callable[[], object], compute: Compute) -> float:
    # On a CPU the leading thread takes part in all work and spins at its end: its processor time is the time that the
    # work takes when nobody else wants the machine, as in training.
    clock = time.thread_time if compute.device.type == "cpu" else time.monotonic
    began = clock()
    work()
    return clock() - began


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
