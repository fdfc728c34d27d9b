"""The state of a training: weights, their average, the optimizer, the best weights so far; in memory and on disk."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from federation.plan import LocalTraining
from torch import Tensor

from site_client.model.network import Network
from site_client.model.parts import is_trainable, parts_of, rate_of
from site_client.training.checkpoint import Checkpoints

FINAL_SHARE: Final = 0.1  # of the learning rate, at the end of the cosine
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a parameter; absent before its first step


@dataclass(frozen=True)
class TrainingPosition:
    """The position of a training between two steps.

    Attributes:
        epoch: From 0.
        position: Studies of the epoch that are done.
        step: Steps done, of all epochs.
        stale: Epochs since the lowest loss on tuning patients.
        finished: 1 when the network holds the result, else 0.
        loss_sum: Sum of the reported losses of the epoch's studies so far, in nats.
        best_loss: Lowest loss on tuning patients so far, in nats.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    stale: int = 0
    finished: int = 0
    loss_sum: float = 0.0
    best_loss: float = math.inf


class TrainingState:
    """All tensors of a training. It trains the parts of `net` that the plan names, and moves no other tensor.

    Attributes:
        net: The network in training.
        averaged: The network with the moving average of the weights; `net` itself if the plan has no `ema_decay`.
    """

    def __init__(self, net: Network, plan: LocalTraining) -> None:
        """Begin with the weights of `net`, which is on its device."""
        self.net = net
        self._plan = plan
        # Copies: the optimizer changes parameters in place.
        self._base = [parameter.detach().clone() for parameter in net.parameters()]
        self._best: dict[str, Tensor] = {}
        by_rate: dict[float, list[torch.nn.Parameter]] = {}
        for part, parameter in zip(parts_of(net).values(), net.parameters(), strict=True):
            # Autograd then skips what lies below the lowest trainable part: a frozen backbone costs its forward pass.
            parameter.requires_grad_(is_trainable(part, plan.trainable))
            if parameter.requires_grad:
                by_rate.setdefault(rate_of(part, plan), []).append(parameter)
        groups = [{"params": parameters, "lr": rate, "rate": rate} for rate, parameters in by_rate.items()]
        # Cost: fused, a step over the 390 tensors of densenet121-gru takes a quarter of the time.
        self._optimizer = torch.optim.AdamW(groups, weight_decay=plan.weight_decay, fused=True)
        self.averaged = copy.deepcopy(net).requires_grad_(False) if plan.ema_decay else net

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self._optimizer.zero_grad()

    def step(self, number: int, steps: int) -> None:
        """Take step `number` (from 0) of `steps`, from the float32 gradients of `net`.

        AdamW (Loshchilov and Hutter, ICLR 2019) after clipping to L2 norm `gradient_norm_max`.
        """
        # Order: the proximal term is part of the gradient, so it is added before the gradient is clipped.
        self._pull_towards_base()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self._plan.gradient_norm_max)
        share = _rate_share(number, steps, self._plan.warm_up_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * share
        self._optimizer.step()
        if self._plan.ema_decay:
            # The first steps count less: an average over the whole decay would still hold the initial weights.
            decay = min(self._plan.ema_decay, (1 + number) / (10 + number))
            with torch.no_grad():
                for mean, value in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)

    def keep_as_best(self) -> None:
        """Remember the averaged weights as the best so far."""
        self._best = {name: value.detach().clone() for name, value in self.averaged.named_parameters()}

    def finish(self) -> None:
        """Give `net` the result: the best weights if some were kept, else the averaged ones."""
        # Under an early stop the result has the weights of the best epoch, not those of the last.
        result = self._best or dict(self.averaged.named_parameters())
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                parameter.copy_(result[name])
        self.net.requires_grad_(True)

    def _pull_towards_base(self) -> None:
        """Add the gradient of mu/2 ||w - w_base||^2 (FedProx: Li et al., MLSys 2020, eq. 2)."""
        if self._plan.proximal_mu == 0:
            return
        for parameter, start in zip(self.net.parameters(), self._base, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self._plan.proximal_mu)

    # --- checkpoints ---

    def save(self, checkpoints: Checkpoints, at: TrainingPosition, random: Tensor) -> None:
        """Write a checkpoint. `random` uint8[n] is the state of torch's generator from which the training resumes."""
        tensors = {
            "random": random,
            "loss_sum": torch.tensor(at.loss_sum, dtype=torch.float64),
            "best_loss": torch.tensor(at.best_loss, dtype=torch.float64),
        }
        tensors |= {f"weight.{name}": parameter for name, parameter in self.net.named_parameters()}
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        if self.averaged is not self.net:
            tensors |= {f"averaged.{name}": value for name, value in self.averaged.named_parameters()}
        if not at.finished:  # the result needs no optimizer
            for name, parameter in self.net.named_parameters():
                tensors |= {f"{moment}.{name}": value for moment, value in self._optimizer.state[parameter].items()}
        numbers = {name: getattr(at, name) for name in ("epoch", "position", "step", "stale", "finished")}
        checkpoints.save(at.step, numbers, tensors)

    def resume(self, checkpoints: Checkpoints) -> TrainingPosition:
        """Take everything from the last checkpoint; without one begin at the beginning.

        Raises:
            CheckpointRefused: See `Checkpoints.load`.
        """
        saved = checkpoints.load()
        if saved is None:
            return TrainingPosition()
        tensors = saved.tensors
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                for moment in _MOMENTS:
                    value = tensors.get(f"{moment}.{name}")
                    if value is not None:
                        # In the parameter's layout and on its device, as Adam makes it; its step counter is a scalar.
                        in_layout = value if moment == "step" else torch.empty_like(parameter).copy_(value)
                        self._optimizer.state[parameter][moment] = in_layout
            if self.averaged is not self.net:
                for name, mean in self.averaged.named_parameters():
                    mean.copy_(tensors[f"averaged.{name}"])
        best = {name: tensors.get(f"best.{name}") for name, _ in self.net.named_parameters()}
        device = next(self.net.parameters()).device
        self._best = {name: value.to(device) for name, value in best.items() if value is not None}
        # Last: nothing above may draw, so dropout goes on with the number that comes next.
        torch.set_rng_state(tensors["random"])
        at = TrainingPosition(**saved.numbers)
        return replace(at, loss_sum=tensors["loss_sum"].item(), best_loss=tensors["best_loss"].item())


def _rate_share(step: int, steps: int, warm_up_steps: int) -> float:
    """The share of the learning rate: a linear warm-up, while Adam's second moments are inexact, then half a cosine."""
    warm = min(1.0, (step + 1) / max(1, warm_up_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)
