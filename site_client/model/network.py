"""The hemorrhage network: one 2D backbone on every slice, a recurrence along the head, two heads.

    x[B,T,C,H,W] -> backbone -> [B,T,F] -> project [B,T,E] -> + deltas, geometry -> recurrence [B,T,R]
                                              |                                        |
                                        slice head  ------------ + ----------- recurrent head  -> slice_logits [B,T,6]
                                                                                       |
                     attention pooling of [B,T,R]  +  log-mean-exp of slice_logits      -> study_logits [B,6]

after Srivastava, Singh, Sree Kumar (arXiv 2005.08644), with deltas, geometry and the study head added.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from site_client.model.labels import ANY, LABELS
from site_client.model.recurrence import Recurrence, RecurrenceName

CHANNELS: Final = 5  # brain z-1, z, z+1; subdural z; bone z
GEOMETRY: Final = 4  # log spacing to both neighbours, relative position, thickness: see model.inputs

# Starting log-odds of the heads: near RSNA's slice prevalences, with the rarest raised so that the bias of epidural
# need not travel for hundreds of steps before its weights learn anything.
_PRIOR_SLICE: Final = (0.02, 0.05, 0.05, 0.05, 0.05, 0.15)
_PRIOR_STUDY: Final = (0.05, 0.15, 0.12, 0.15, 0.15, 0.4)
_SHARPNESS: Final = 4.0  # of the log-mean-exp: 0 is the mean over slices, infinity the maximum


class Verdict(NamedTuple):
    slice_logits: Tensor  # [B,T,6], zero where masked
    study_logits: Tensor  # [B,6]
    embedding: Tensor  # [B,T,F], the backbone's pooled features, zero where masked


class SequenceNet(nn.Module):
    """A study's slices in, log-odds of six labels per slice and per study out.

    backbone: [N,C,H,W] -> [N,features]. `width` is E of the drawing, `hidden` half of R (both directions). Without a
    recurrence the arm is slice-wise: R = E, and no slice sees its neighbours' features.
    `chunk`: slices per pass through the backbone, which bounds memory and changes no result beyond rounding;
    `recompute` drops the backbone's activations and computes them again in the backward pass: about a third more time
    for memory of one chunk instead of a whole study.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        *,
        width: int,
        hidden: int,
        layers: int,
        recurrence: RecurrenceName | None,
        dropout: float,
        chunk: int = 16,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = features
        self.chunk = chunk
        self.recompute = recompute
        self.project = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.sequence = Sequence(recurrence, width, hidden, layers) if recurrence is not None else None
        context = width if self.sequence is None else self.sequence.out_features
        self.slice_head = nn.Linear(width, len(LABELS))
        self.attention = nn.Linear(context, len(LABELS))
        self.study_head = nn.Parameter(torch.zeros(len(LABELS), context))
        self.study_bias = nn.Parameter(torch.zeros(len(LABELS)))
        _start_at_the_prior(self)

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Verdict:
        """x f32[B,T,C,H,W] in [-1,1]; mask bool[B,T], true for slices, all of them before any padding; geom f32[B,T,4].

        Every study has at least one slice. What stands under a false mask is never read.
        """
        embedding = self._embed(x, mask)
        projected = self.project(embedding) * mask.unsqueeze(-1)
        states, slice_logits = projected, self.slice_head(projected)
        if self.sequence is not None:
            states, correction = self.sequence(projected, mask, geom)
            slice_logits = slice_logits + correction
        slice_logits = slice_logits * mask.unsqueeze(-1)
        return Verdict(slice_logits, self._study_logits(states, slice_logits, mask), embedding)

    def _embed(self, x: Tensor, mask: Tensor) -> Tensor:
        slices = x[mask]  # [N,C,H,W]: padding never reaches the backbone
        parts = [self._run_backbone(part) for part in torch.split(slices, self.chunk)]
        embedding = torch.cat(parts)
        return embedding.new_zeros(*mask.shape, self.features).masked_scatter(mask.unsqueeze(-1), embedding)

    def _run_backbone(self, part: Tensor) -> Tensor:
        part = part.contiguous(memory_format=torch.channels_last)
        if self.recompute and self.training and torch.is_grad_enabled():
            # The backbone draws no random numbers, so there is no state to preserve.
            recomputed: Tensor = checkpoint(self.backbone, part, use_reentrant=False, preserve_rng_state=False)
            return recomputed.float()
        features: Tensor = self.backbone(part)
        return features.float()

    def _study_logits(self, states: Tensor, slice_logits: Tensor, mask: Tensor) -> Tensor:
        padding = ~mask.unsqueeze(-1)
        attention = self.attention(states).masked_fill(padding, -math.inf).softmax(dim=1)  # [B,T,6], own for each label
        pooled = torch.einsum("btk,btr->bkr", attention, states)
        attended = (pooled * self.study_head).sum(dim=-1) + self.study_bias
        return attended + _log_mean_exp(slice_logits, mask)


class Sequence(nn.Module):
    """What the neighbours say about a slice: states of the recurrence [B,T,R] and corrections to its logits [B,T,6]."""

    def __init__(self, recurrence: RecurrenceName, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.recurrence = Recurrence(recurrence, 3 * width + GEOMETRY, hidden, layers)
        self.out_features = self.recurrence.out_features
        self.head = nn.Linear(self.out_features, len(LABELS))

    def forward(self, projected: Tensor, mask: Tensor, geom: Tensor) -> tuple[Tensor, Tensor]:
        states = self.recurrence(_with_neighbours(projected, mask, geom), mask)
        return states, self.head(states)


def clamp_any(logits: Tensor) -> Tensor:
    """[...,6] log-odds with `any` raised to the highest subtype: p(any) >= max p(subtype). Comes after calibration."""
    subtypes, any_ = logits[..., :ANY], logits[..., ANY:]
    return torch.cat([subtypes, torch.maximum(any_, subtypes.amax(dim=-1, keepdim=True))], dim=-1)


def _with_neighbours(e: Tensor, mask: Tensor, geom: Tensor) -> Tensor:
    """[B,T,E] -> [B,T,3E+4]: the slice, its change from the slice below and to the slice above (0 at the ends)."""
    step = (e[:, 1:] - e[:, :-1]) * mask[:, 1:].unsqueeze(-1)
    end = torch.zeros_like(e[:, :1])
    below, above = torch.cat([end, step], dim=1), torch.cat([step, end], dim=1)
    return torch.cat([e, below, above, geom * mask.unsqueeze(-1)], dim=-1)


def _log_mean_exp(slice_logits: Tensor, mask: Tensor) -> Tensor:
    """[B,T,6] -> [B,6], (1/r) log mean exp(r s): a smooth maximum (Pinheiro & Collobert, CVPR 2015, eq. 6)."""
    scaled = (slice_logits * _SHARPNESS).masked_fill(~mask.unsqueeze(-1), -math.inf)
    count = mask.sum(dim=1, keepdim=True)
    pooled: Tensor = (scaled.logsumexp(dim=1) - count.log()) / _SHARPNESS
    return pooled


def _start_at_the_prior(net: SequenceNet) -> None:
    """Small head weights, so that every answer starts at the prior and the first steps move features, not offsets."""
    with torch.no_grad():
        nn.init.normal_(net.slice_head.weight, std=0.01)
        nn.init.zeros_(net.attention.weight)
        nn.init.zeros_(net.attention.bias)
        slice_prior = torch.logit(torch.tensor(_PRIOR_SLICE))
        net.slice_head.bias.copy_(slice_prior)
        if net.sequence is not None:
            nn.init.normal_(net.sequence.head.weight, std=0.01)
            nn.init.zeros_(net.sequence.head.bias)
        net.study_bias.copy_(torch.logit(torch.tensor(_PRIOR_STUDY)) - slice_prior)
