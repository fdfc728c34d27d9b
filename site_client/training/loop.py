"""Local training: from the base model to this site's model. Read `train` from top to bottom."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from federation.plan import LocalTraining
from torch import Tensor

from site_client.errors import TrainingFailed
from site_client.ingest.records import StudyRecord
from site_client.model.network import Network
from site_client.training.checkpoint import Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Sample, Source, passes
from site_client.training.early_stop import EarlyStop
from site_client.training.loss import reported_loss, training_loss
from site_client.training.ranks import Ranks
from site_client.training.sampling import epoch_order
from site_client.training.state import TrainingPosition, TrainingState
from site_client.training.streams import RandomStreams


class Stopped(Exception):
    """Training was asked to stop and has written its checkpoint."""


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training after a step.

    Attributes:
        step: Steps done, of all epochs.
        steps: Steps of the whole training; an early stop skips the last epochs.
        loss: Mean reported loss over the studies of this epoch so far, in nats.
        net: The network that would be the result now: with averaged weights if the plan has `ema_decay`. It may be
            evaluated, and its weights must stay.
    """

    step: int
    steps: int
    loss: float
    net: Network


def train(
    net: Network,
    plan: LocalTraining,
    studies: Sequence[StudyRecord],
    source: Source,
    streams: RandomStreams,
    compute: Compute,
    checkpoints: Checkpoints,
    report: Callable[[TrainingProgress], None],
    stopping: Callable[[], bool],
    early_stop: EarlyStop | None = None,
) -> TrainingPosition:
    """Train `net` in place.

    The gradient of a step is the mean over its studies, accumulated pass by pass: memory holds the studies of one pass,
    and a stop waits for one pass. A training that was stopped resumes from its last checkpoint, bit-identical to an
    undisturbed one on a CPU with as many threads. From the checkpoint of its end it only loads the result.

    Several processes (`compute.ranks`) with equal arguments train as one process does, but for rounding and for the
    draws of dropout. The leading process writes and reports. If one of them is told to stop, all stop at the same step.

    Args:
        net: Holds the base model on entry, on the device of `compute`.
        plan: Epochs, learning rates, trainable parts and so on.
        studies: The training studies.
        source: Of their samples.
        streams: Of all random numbers.
        compute: Device, precision, processes.
        checkpoints: Of this training.
        report: Called after every step.
        stopping: Whether to stop; asked before every study.
        early_stop: Ends the training early, with the best weights. None of its patients is in `studies`.

    Returns:
        The position at the end of the last epoch.

    Raises:
        Stopped: `stopping` returned true; a checkpoint is written.
        TrainingFailed: The loss is not finite.
    """
    ranks = compute.ranks
    state = TrainingState(net, plan)
    at = state.resume(checkpoints)
    ranks.meet(at.step, len(studies))
    if at.finished:
        return at
    steps = plan.epochs * math.ceil(len(studies) / plan.studies_per_step)
    net.train()
    for epoch in range(at.epoch, plan.epochs):
        order = epoch_order(studies, streams.generator("order", epoch))
        if at.epoch < epoch:
            at = replace(at, epoch=epoch, position=0, loss_sum=0.0)
        if at.position == 0:
            torch.manual_seed(streams.seed("dropout", epoch))
        while at.position < len(order):
            random_before = torch.get_rng_state()
            batch = range(at.position, min(at.position + plan.studies_per_step, len(order)))
            samples = (
                _draw(studies[order[position]], source, streams, ranks, epoch, position)
                for position in _until(stopping, ranks.share(batch))
            )
            state.zero_grad()
            try:
                losses = _add_gradients(net, samples, compute, len(batch))
                stop = ranks.world > 1 and stopping()  # asked again: this process may have no study in this step
            except Stopped:
                losses, stop = [], True
            # Cost: `.item()` waits for the GPU. Here, after all passes are queued, it waits once a step.
            loss_sum, stops = ranks.add_up(net, sum(loss.item() for loss in losses), stop)
            if stops:
                # The step is not taken: its studies are drawn again after the resume, with the same random numbers.
                _save_together(ranks, state, checkpoints, at, random_before)
                raise Stopped
            state.step(at.step, steps)
            at = replace(at, position=at.position + len(batch), step=at.step + 1, loss_sum=at.loss_sum + loss_sum)
            if not math.isfinite(at.loss_sum):
                raise TrainingFailed(f"expected a finite loss, got {at.loss_sum} at step {at.step} of {steps}")
            if ranks.leads:
                if checkpoints.due():
                    state.save(checkpoints, at, torch.get_rng_state())
                report(TrainingProgress(at.step, steps, at.loss_sum / at.position, state.averaged))
                net.train()  # the report may have evaluated it
        if early_stop is not None:
            # Order: after the epoch's last checkpoint, so that a stop in between evaluates again instead of never.
            loss = ranks.first(partial(early_stop.loss, state.averaged))
            net.train()
            at = replace(at, stale=at.stale + 1)
            if loss < at.best_loss:
                state.keep_as_best()
                at = replace(at, stale=0, best_loss=loss)
            if at.stale >= early_stop.patience:
                break
    state.finish()
    at = replace(at, finished=1)
    _save_together(ranks, state, checkpoints, at, torch.get_rng_state())
    return at


def _until(stopping: Callable[[], bool], positions: Iterable[int]) -> Iterator[int]:
    """Yield the positions. Raises Stopped instead of the next one when `stopping` returns true."""
    for position in positions:
        if stopping():
            raise Stopped
        yield position


def _draw(
    study: StudyRecord, source: Source, streams: RandomStreams, ranks: Ranks, epoch: int, position: int
) -> Sample:
    if ranks.world > 1:
        # Dropout is seeded for each study, so that it does not depend on the process that computes it.
        torch.manual_seed(streams.seed("dropout", epoch, position))
    return source.sample(study, streams.generator("augmentation", epoch, position, study.study_key))


def _add_gradients(net: Network, samples: Iterable[Sample], compute: Compute, studies: int) -> list[Tensor]:
    """Run backward passes over all samples, each study with weight 1/studies. Returns reported losses, scalars."""
    losses = []
    for sample in passes(samples, compute.slices_a_pass):
        with compute.autocast():
            output = net(sample.x, sample.mask, sample.geometry)
        loss = training_loss(output, sample).sum() / studies
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        with torch.no_grad():
            losses.append(reported_loss(output, sample).sum())
    return losses


def _save_together(
    ranks: Ranks, state: TrainingState, checkpoints: Checkpoints, at: TrainingPosition, random: Tensor
) -> None:
    """Save once. It is durable for all processes when this returns."""
    if ranks.leads:
        state.save(checkpoints, at, random)
    ranks.meet(at.step)
