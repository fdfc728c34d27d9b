"""The hemorrhage network: one 2D backbone on every slice, a recurrence along the head, two heads.

    x[B,T,C,H,W] -> backbone -> [B,T,F] -> project [B,T,E] -> + deltas, geometry -> recurrence [B,T,R]
                                   |                                                   |
                              slice head  ------------------- + --------------- recurrent head  -> slice_logits [B,T,6]
                                                                                       |
                     attention pooling of [B,T,R]  +  log-mean-exp of slice_logits      -> study_logits [B,6]

The backbone learns from what its own slice head says alone, never through the recurrence or the study head: both find
out sooner who a patient is than where the blood is, and leave the backbone nothing to learn (docs/MODEL.md).

after Srivastava, Singh, Sree Kumar (arXiv 2005.08644), with deltas, geometry and the study head added.
"""

import math
from typing import Final, NamedTuple

import torch
from federation.labels import ANY, LABELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from site_client.model.recurrence import Recurrence, RecurrenceName

CHANNELS: Final = 5  # brain z-1, z, z+1; subdural z; bone z
GEOMETRY: Final = 4  # log spacing to both neighbours, relative position, thickness: see model.inputs

# Starting log-odds of the heads: near RSNA's slice prevalences, with the rarest raised so that the bias of epidural
# need not travel for hundreds of steps before its weights learn anything.
_PRIOR_SLICE: Final = (0.02, 0.05, 0.05, 0.05, 0.05, 0.15)
PRIOR_STUDY: Final = (0.05, 0.15, 0.12, 0.15, 0.15, 0.4)
_SHARPNESS: Final = 4.0  # of the log-mean-exp: 0 is the mean over slices, infinity the maximum


class SliceOutput(NamedTuple):
    """What the slices say without their neighbours: the only answer through which a backbone is taught."""

    slice_logits: Tensor  # [B,T,6], zero where masked
    study_logits: Tensor  # [B,6], their smooth maximum


class Output(NamedTuple):
    slice_logits: Tensor  # [B,T,6], zero where masked; [B,0,6] of a network that answers for studies only
    study_logits: Tensor  # [B,6]
    embedding: Tensor  # [B,T,F], the backbone's pooled features, zero where masked; [B,1,F] of a whole volume
    alone: SliceOutput | None = None  # None of a network that is taught by the answers above


class Network(nn.Module):
    """What every architecture is: x f32[B,T,C,H,W] in [-1,1], mask bool[B,T], geom f32[B,T,4] -> Verdict.

    mask is true for slices, all of them before any padding; every study has at least one. What stands under a false
    mask is never read.
    """

    has_slice_outputs = True


class SequenceNet(Network):
    """A study's slices in, log-odds of six labels per slice and per study out.

    backbone: [N,C,H,W] -> [N,features]; `reader` takes it from there. `chunk`: slices per pass through the backbone,
    which bounds memory and changes no result beyond rounding; `recompute` drops the activations of what needs several
    passes and computes them again in the backward pass: about a third more time for memory of one chunk instead of all.
    """

    def __init__(
        self, backbone: nn.Module, reader: "SequenceHead", *, chunk: int = 16, recompute: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.reader = reader
        self.chunk = chunk
        self.recompute = recompute

    def slicewise(self) -> "SequenceNet":
        """This network without its recurrence, on the same weights: training one trains what both have."""
        return SequenceNet(self.backbone, self.reader.slicewise(), chunk=self.chunk, recompute=self.recompute)

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        verdict: Output = self.reader(self.embed(x, mask), mask, geom)
        return verdict

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        """f32[B,T,F]: the backbone's features of every slice, whatever the neighbours; zero where masked."""
        slices = x[mask]  # [N,C,H,W]: padding never reaches the backbone
        parts = torch.split(slices, self.chunk)
        again = self.recompute and len(parts) > 1 and self.training and torch.is_grad_enabled()
        embedding = torch.cat([self._run_backbone(part, again) for part in parts])
        return embedding.new_zeros(*mask.shape, embedding.shape[1]).masked_scatter(mask.unsqueeze(-1), embedding)

    def _run_backbone(self, part: Tensor, again: bool) -> Tensor:
        part = part.contiguous(memory_format=torch.channels_last)
        if again:
            # The backbone draws no random numbers, so there is no state to preserve.
            recomputed: Tensor = checkpoint(self.backbone, part, use_reentrant=False, preserve_rng_state=False)
            return recomputed.float()
        features: Tensor = self.backbone(part)
        return features.float()


class SequenceHead(Network):
    """Everything behind the backbone: x is f32[B,T,F], its features. It can be trained alone on features kept on disk.

    `width` is E of the drawing, `hidden` half of R (both directions). Without a recurrence R = E, and no slice sees its
    neighbours' features.
    """

    def __init__(
        self, features: int, width: int, hidden: int, layers: int, recurrence: RecurrenceName | None, dropout: float
    ) -> None:
        super().__init__()
        self._shape = (features, width, hidden, layers)
        self._dropout = dropout
        self.project = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.sequence = Sequence(recurrence, width, hidden, layers) if recurrence is not None else None
        context = width if self.sequence is None else self.sequence.out_features
        self.slice_head = nn.Linear(features, len(LABELS))
        self.attention = nn.Linear(context, len(LABELS))
        self.study_head = nn.Parameter(torch.zeros(len(LABELS), context))
        self.study_bias = nn.Parameter(torch.zeros(len(LABELS)))
        self._start_at_the_prior()

    def slicewise(self) -> "SequenceHead":
        """A reader without a recurrence that shares projection and slice head with this one."""
        twin = SequenceHead(*self._shape, None, self._dropout)
        twin.project, twin.slice_head = self.project, self.slice_head
        return twin

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        own = self.slice_head(x) * mask.unsqueeze(-1)
        alone = SliceOutput(own, _log_mean_exp(own, mask) + self.study_bias.detach())
        states, slice_logits = self.project(x.detach()) * mask.unsqueeze(-1), own.detach()
        if self.sequence is not None:
            states, correction = self.sequence(states, mask, geom)
            slice_logits = slice_logits + correction * mask.unsqueeze(-1)
        return Output(slice_logits, self._study_logits(states, slice_logits, mask), x, alone)

    def _study_logits(self, states: Tensor, slice_logits: Tensor, mask: Tensor) -> Tensor:
        padding = ~mask.unsqueeze(-1)
        attention = self.attention(states).masked_fill(padding, -math.inf).softmax(dim=1)  # [B,T,6], own for each label
        pooled = torch.einsum("btk,btr->bkr", attention, states)
        attended = (pooled * self.study_head).sum(dim=-1) + self.study_bias
        return attended + _log_mean_exp(slice_logits, mask)

    def _start_at_the_prior(self) -> None:
        """Small head weights: every answer starts at the prior, and the first steps move features, not offsets."""
        with torch.no_grad():
            nn.init.normal_(self.slice_head.weight, std=0.01)
            nn.init.zeros_(self.attention.weight)
            nn.init.zeros_(self.attention.bias)
            slice_prior = torch.logit(torch.tensor(_PRIOR_SLICE))
            self.slice_head.bias.copy_(slice_prior)
            if self.sequence is not None:
                last = self.sequence.last_layer
                nn.init.normal_(last.weight, std=0.01)
                nn.init.zeros_(last.bias)
            self.study_bias.copy_(torch.logit(torch.tensor(PRIOR_STUDY)) - slice_prior)


class Sequence(nn.Module):
    """What the neighbours say about a slice: states of the recurrence [B,T,R] and corrections to its logits [B,T,6]."""

    def __init__(self, recurrence: RecurrenceName, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.recurrence = Recurrence(recurrence, 3 * width + GEOMETRY, hidden, layers)
        self.out_features = self.recurrence.out_features
        self.head = _head(recurrence, self.out_features, hidden)

    @property
    def last_layer(self) -> nn.Linear:
        last = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
        # _head ends in a linear layer, whatever the recurrence
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, projected: Tensor, mask: Tensor, geom: Tensor) -> tuple[Tensor, Tensor]:
        states = self.recurrence(_with_neighbours(projected, mask, geom), mask)
        return states, self.head(states)


def _head(recurrence: RecurrenceName, features: int, hidden: int) -> nn.Module:
    if recurrence == "gru-sep":
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, len(LABELS)))
    return nn.Linear(features, len(LABELS))


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
