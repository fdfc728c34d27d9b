"""Local training: from the base model to this site's model. Read `train` from top to bottom."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from federation.plan import LocalTraining
from torch import Tensor

from site_client.errors import TrainingFailed
from site_client.ingest.records import StudyRecord
from site_client.model.network import Network
from site_client.training.checkpoint import Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Sample, Source, passes
from site_client.training.loss import reported_loss, training_loss
from site_client.training.ranks import Ranks
from site_client.training.sampling import epoch_order
from site_client.training.streams import RandomStreams

WARM_UP_STEPS: Final = 5
FINAL_SHARE: Final = 0.1  # of the learning rate, at the end of the cosine
GRADIENT_NORM_MAX: Final = 1.0


class Stopped(Exception):
    """Training was asked to stop and has written its checkpoint."""


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training after a step.

    Attributes:
        step: Steps done, of all epochs.
        steps: Steps of the whole training.
        loss: Mean reported loss over the studies of this epoch so far.
    """

    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class TrainingPosition:
    """The position of a training between two steps.

    Attributes:
        epoch: From 0.
        position: Studies of the epoch that are done.
        step: Steps done, of all epochs.
        loss_sum: Sum of the reported losses of the epoch's studies so far.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    loss_sum: float = 0.0


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
) -> TrainingPosition:
    """Train `net` in place.

    The gradient of a step is the mean over its studies, accumulated study by study. So memory holds one study, and a
    stop waits for one study; on a GPU, for the studies of one pass. A training that was stopped resumes from its last
    checkpoint, bit-identical to an undisturbed one on a CPU with as many threads. From the checkpoint of its end it
    only loads the weights.

    Several processes (`compute.ranks`) with equal arguments train as one process does, but for rounding and for the
    draws of dropout. The leading process writes and reports. If one of them is told to stop, all stop at the same step.

    Args:
        net: Holds the base model on entry, on the device of `compute`.
        plan: Epochs, learning rate and so on.
        studies: The training studies.
        source: Of their samples.
        streams: Of all random numbers.
        compute: Device, precision, processes.
        checkpoints: Of this training.
        report: Called after every step.
        stopping: Whether to stop; asked before every study.

    Returns:
        The position at the end of the last epoch.

    Raises:
        Stopped: `stopping` returned true; a checkpoint is written.
        TrainingFailed: The loss is not finite.
    """
    ranks = compute.ranks
    base = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = torch.optim.AdamW(net.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    at = _resume(checkpoints, net, optimizer)
    ranks.meet(at.step, len(studies))
    steps = plan.epochs * math.ceil(len(studies) / plan.studies_per_step)
    net.train()
    for epoch in range(at.epoch, plan.epochs):
        order = epoch_order(studies, streams.generator("order", epoch))
        if at.epoch < epoch:
            at = TrainingPosition(epoch=epoch, step=at.step)
        if at.position == 0:
            torch.manual_seed(streams.seed("dropout", epoch))
        while at.position < len(order):
            random_before = torch.get_rng_state()
            batch = range(at.position, min(at.position + plan.studies_per_step, len(order)))
            samples = (
                _draw(studies[order[position]], source, streams, ranks, epoch, position)
                for position in _until(stopping, ranks.share(batch))
            )
            optimizer.zero_grad()
            try:
                losses = _add_gradients(net, samples, compute, len(batch))
                stop = ranks.world > 1 and stopping()  # asked again: this process may have no study in this step
            except Stopped:
                losses, stop = [], True
            # Cost: `.item()` waits for the GPU. Here, after all passes are queued, it waits once a step.
            loss_sum, stops = ranks.add_up(net, sum(loss.item() for loss in losses), stop)
            if stops:
                # The step is not taken: its studies are drawn again after the resume, with the same random numbers.
                _save_together(ranks, checkpoints, at, net, optimizer, random_before)
                raise Stopped
            _pull_towards(base, net, plan.proximal_mu)
            torch.nn.utils.clip_grad_norm_(net.parameters(), GRADIENT_NORM_MAX)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * _rate(at.step, steps)
            optimizer.step()
            at = replace(
                at,
                position=at.position + len(batch),
                step=at.step + 1,
                loss_sum=at.loss_sum + loss_sum,
            )
            if not math.isfinite(at.loss_sum):
                raise TrainingFailed(f"expected a finite loss, got {at.loss_sum} at step {at.step} of {steps}")
            if ranks.leads:
                if checkpoints.due():
                    _save(checkpoints, at, net, optimizer, torch.get_rng_state())
                report(TrainingProgress(at.step, steps, at.loss_sum / at.position))
    _save_together(ranks, checkpoints, at, net, optimizer, torch.get_rng_state())
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


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate: a warm-up, while Adam's second moments are inexact, then half a cosine."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def _pull_towards(base: list[Tensor], net: Network, mu: float) -> None:
    """Add the gradient of mu/2 ||w - w_base||^2 (FedProx: Li et al., MLSys 2020, eq. 2)."""
    if mu == 0:
        return
    for parameter, start in zip(net.parameters(), base, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=mu)


# --- checkpoints --------------------------------------------------------------------------------------------------

_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a parameter; absent before its first step


def _save(
    checkpoints: Checkpoints, at: TrainingPosition, net: Network, adam: torch.optim.AdamW, random: Tensor
) -> None:
    tensors = {"random": random, "loss_sum": torch.tensor(at.loss_sum, dtype=torch.float64)}
    for name, parameter in net.named_parameters():
        tensors[f"weight.{name}"] = parameter
        for moment, value in adam.state[parameter].items():
            tensors[f"{moment}.{name}"] = value
    checkpoints.save(at.step, {"epoch": at.epoch, "position": at.position, "step": at.step}, tensors)


def _save_together(
    ranks: Ranks, checkpoints: Checkpoints, at: TrainingPosition, net: Network, adam: torch.optim.AdamW, random: Tensor
) -> None:
    """Save once. It is durable for all processes when this returns."""
    if ranks.leads:
        _save(checkpoints, at, net, adam, random)
    ranks.meet(at.step)


def _resume(checkpoints: Checkpoints, net: Network, adam: torch.optim.AdamW) -> TrainingPosition:
    saved = checkpoints.load()
    if saved is None:
        return TrainingPosition()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(saved.tensors[f"weight.{name}"])
            for moment in _MOMENTS:
                value = saved.tensors.get(f"{moment}.{name}")
                if value is not None:
                    # In the parameter's layout and on its device, as Adam makes it; its step counter is a scalar.
                    in_layout = value if moment == "step" else torch.empty_like(parameter).copy_(value)
                    adam.state[parameter][moment] = in_layout
    torch.set_rng_state(saved.tensors["random"])
    return TrainingPosition(**saved.numbers, loss_sum=saved.tensors["loss_sum"].item())
