"""Local training: from the base model to this site's model, one function to be read from top to bottom."""

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
from site_client.training.checkpoint import Checkpoints, Saved
from site_client.training.compute import Compute
from site_client.training.data import Sample, Source, epoch_order, passes
from site_client.training.loss import reported_loss, training_loss
from site_client.training.ranks import Ranks
from site_client.training.streams import RandomStreams

WARM_UP_STEPS: Final = 5
FINAL_SHARE: Final = 0.1  # of the learning rate, at the end of the cosine
GRADIENT_NORM_MAX: Final = 1.0


class Stopped(Exception):
    """Training was asked to stop and has written its checkpoint."""


@dataclass(frozen=True)
class TrainingProgress:
    """`loss`: mean over the studies of the epoch so far."""

    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class TrainingPosition:
    """Between two steps: `position` studies of `epoch` are done, with this sum of losses; `step` counts all epochs'."""

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
    """Trains `net`, which holds the base model on entry, in place; gives the last epoch's place at its end.

    The gradient of a step is the mean over its studies, computed study by study: memory holds one study, and a stop
    waits for one study at most; on a GPU, for those that go through it together. Raises Stopped after a checkpoint when
    `stopping` says so, TrainingFailed when the loss is not finite. Going on from a checkpoint is bit-identical to not
    having stopped (CPU, same number of threads); from that of its end it does nothing but load it.

    Several processes (`compute.ranks`), each with the same arguments, train as one does but for rounding and for what
    dropout draws. The leading one writes and reports; if any is told to stop, all do, at the same step.
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
            drawn = (
                _draw(studies[order[place]], source, streams, ranks, epoch, place)
                for place in _unless(stopping, ranks.share(batch))
            )
            optimizer.zero_grad()
            try:
                losses = _add_gradients(net, drawn, compute, len(batch))
                stop = ranks.world > 1 and stopping()  # also where nothing was to be done
            except Stopped:
                losses, stop = [], True
            # Not read before: a GPU works on one study while the next is prepared.
            loss_sum, stops = ranks.add_up(net, sum(loss.item() for loss in losses), stop)
            if stops:
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


def _unless(stopping: Callable[[], bool], places: Iterable[int]) -> Iterator[int]:
    """The same places. Raises Stopped instead of the next when `stopping` says so."""
    for place in places:
        if stopping():
            raise Stopped
        yield place


def _draw(study: StudyRecord, source: Source, streams: RandomStreams, ranks: Ranks, epoch: int, place: int) -> Sample:
    if ranks.world > 1:  # the same for a study whoever computes it
        torch.manual_seed(streams.seed("dropout", epoch, place))
    return source.sample(study, streams.generator("augmentation", epoch, place, study.study_key))


def _add_gradients(net: Network, samples: Iterable[Sample], compute: Compute, studies: int) -> list[Tensor]:
    """Backward passes over all samples, each study's share of the gradient one of `studies`; their losses, scalars."""
    losses = []
    for sample in passes(samples, compute.slices_a_pass):
        with compute.autocast():
            verdict = net(sample.x, sample.mask, sample.geometry)
        loss = reported_loss(verdict, sample)
        lesson = (loss + training_loss(verdict, sample)).sum() / studies
        lesson.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        losses.append(loss.detach().sum())
    return losses


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: a few steps up, while Adam's second moments are still guesses, then half a cosine."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def _pull_towards(base: list[Tensor], net: Network, mu: float) -> None:
    """Adds the gradient of mu/2 ||w - w_base||^2 (FedProx: Li et al., MLSys 2020, eq. 2)."""
    if mu == 0:
        return
    for parameter, start in zip(net.parameters(), base, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=mu)


# --- checkpoints --------------------------------------------------------------------------------------------------

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


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
    """For all of them it is durable when this returns."""
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
            adam.state[parameter] = _moments(saved, name, parameter)
    torch.set_rng_state(saved.tensors["random"])
    return TrainingPosition(**saved.numbers, loss_sum=saved.tensors["loss_sum"].item())


def _moments(saved: Saved, name: str, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's memory of one parameter, laid out as the parameter is; none before the first step."""
    found = {moment: saved.tensors.get(f"{moment}.{name}") for moment in _MOMENTS}
    return {
        moment: value if moment == "step" else torch.empty_like(parameter).copy_(value)
        for moment, value in found.items()
        if value is not None
    }
