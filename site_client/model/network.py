"""The hemorrhage network: a 2D backbone on every slice, a recurrence along the head, a slice head and a study head.

    x[B,T,C,H,W] -> backbone -> [B,T,F] -> project [B,T,E] -> + deltas, geometry -> recurrence [B,T,R]
                                   |                                                   |
                              slice head  ------------------- + --------------- recurrent head  -> slice_logits [B,T,6]
                                                                                       |
                     attention pooling of [B,T,R]  +  log-mean-exp of slice_logits      -> study_logits [B,6]

The gradient of the recurrence and of the study head stops at the backbone. Only the backbone's own slice head trains
it: the other two learn patient identity as a shortcut before they learn the lesion (docs/decisions/0007).

Source: Srivastava, Singh, Sree Kumar, arXiv 2005.08644. Deltas, geometry and study head are additions.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from federation.labels import ANY, LABELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from site_client.model.recurrence import Recurrence, RecurrenceName

CHANNELS: Final = 5  # brain z-1, z, z+1; subdural z; bone z
GEOMETRY: Final = 4  # log spacing to both neighbours, relative position, thickness: see model.inputs

# Initial probabilities of the heads by label. They are near RSNA's slice prevalences (.0042 to .143), except that the
# rarest one is raised: otherwise the bias of epidural travels for hundreds of steps before its weights learn.
PRIOR_SLICE: Final[Mapping[str, float]] = MappingProxyType(
    {
        "epidural": 0.02,
        "intraparenchymal": 0.05,
        "intraventricular": 0.05,
        "subarachnoid": 0.05,
        "subdural": 0.05,
        "any": 0.15,
    }
)
PRIOR_STUDY: Final[Mapping[str, float]] = MappingProxyType(
    {
        "epidural": 0.05,
        "intraparenchymal": 0.15,
        "intraventricular": 0.12,
        "subarachnoid": 0.15,
        "subdural": 0.15,
        "any": 0.4,
    }
)
_SHARPNESS: Final = 4.0  # of the log-mean-exp: 0 gives the mean over slices, infinity the maximum


class SliceOutput(NamedTuple):
    """Log-odds of every slice without its neighbours: the only output whose loss trains the backbone.

    Attributes:
        slice_logits: f32[B,T,6], 0 where masked.
        study_logits: f32[B,6], the smooth maximum of the slice logits.
    """

    slice_logits: Tensor
    study_logits: Tensor


class Output(NamedTuple):
    """The output of a `Network`.

    Attributes:
        slice_logits: f32[B,T,6], 0 where masked; f32[B,0,6] from a network without slice outputs.
        study_logits: f32[B,6].
        embedding: f32[B,T,F], the backbone's pooled features, 0 where masked; f32[B,1,F] of a whole volume.
        by_slice: The slice head's own output; None from a network whose backbone the logits above train.
    """

    slice_logits: Tensor
    study_logits: Tensor
    embedding: Tensor
    by_slice: SliceOutput | None = None


class Network(nn.Module):
    """The interface of every architecture: x f32[B,T,C,H,W] in [-1,1], mask bool[B,T], geom f32[B,T,4] -> `Output`.

    The mask is true for slices, and all slices of a study come before its padding. Every study has a slice or more. No
    output depends on values under a false mask.
    """

    has_slice_outputs = True


class SequenceNet(Network):
    """A backbone on every slice, and a `SequenceHead` on the features of all slices of a study.

    Source: Srivastava, Singh, Sree Kumar, arXiv 2005.08644.

    Attributes:
        chunk: Slices in one pass through the backbone. It bounds memory; outputs change by rounding only.
        recompute: Whether activations are dropped and computed again in the backward pass when a step needs several
            passes. This takes about a third more time and the memory of one chunk.
    """

    def __init__(
        self, backbone: nn.Module, reader: "SequenceHead", *, chunk: int = 16, recompute: bool = False
    ) -> None:
        """Join a backbone f32[N,C,H,W] -> f32[N,features] and a head for as many features."""
        super().__init__()
        self.backbone = backbone
        self.reader = reader  # the attribute's name is part of the tensor names in every model file
        self.chunk = chunk
        self.recompute = recompute

    def slicewise(self) -> "SequenceNet":
        """Return this network without its recurrence. Both share the backbone, the projection and the slice head."""
        return SequenceNet(self.backbone, self.reader.slicewise(), chunk=self.chunk, recompute=self.recompute)

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        """Map x f32[B,T,5,H,W] in [-1,1], mask bool[B,T], geom f32[B,T,4] to an `Output`; see `Network`."""
        output: Output = self.reader(self.embed(x, mask), mask, geom)
        return output

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the backbone's features of every slice: f32[B,T,C,H,W] -> f32[B,T,F], 0 where masked."""
        slices = x[mask]  # [N,C,H,W]; cost: padding never reaches the backbone
        chunks = torch.split(slices, self.chunk)
        recompute = self.recompute and len(chunks) > 1 and self.training and torch.is_grad_enabled()
        embedding = torch.cat([self._run_backbone(chunk, recompute) for chunk in chunks])
        return embedding.new_zeros(*mask.shape, embedding.shape[1]).masked_scatter(mask.unsqueeze(-1), embedding)

    def _run_backbone(self, chunk: Tensor, recompute: bool) -> Tensor:
        chunk = chunk.contiguous(memory_format=torch.channels_last)
        if recompute:
            # Cost: the backbone draws no random numbers, so no generator's state is saved for the second pass.
            recomputed: Tensor = checkpoint(self.backbone, chunk, use_reentrant=False, preserve_rng_state=False)
            return recomputed.float()
        features: Tensor = self.backbone(chunk)
        return features.float()


class SequenceHead(Network):
    """All layers behind the backbone. Its x is f32[B,T,F], the backbone's features.

    It can be trained alone on cached features. Without a recurrence R = E in the drawing above, and the output of a
    slice does not depend on its neighbours' features.
    """

    def __init__(
        self, features: int, width: int, hidden: int, layers: int, recurrence: RecurrenceName | None, dropout: float
    ) -> None:
        """Build the head.

        Args:
            features: F, of the backbone.
            width: E, of the projection.
            hidden: Half of R: each of both directions has as many states.
            layers: Layers of the recurrence.
            recurrence: Its kind; None leaves it out.
            dropout: Probability behind the projection.
        """
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
        """Return a head without a recurrence that shares the projection and the slice head with this one."""
        twin = SequenceHead(*self._shape, None, self._dropout)
        twin.project, twin.slice_head = self.project, self.slice_head
        return twin

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        """Map x f32[B,T,F], mask bool[B,T], geom f32[B,T,4] to an `Output`; see `Network`."""
        own_logits = self.slice_head(x) * mask.unsqueeze(-1)
        by_slice = SliceOutput(own_logits, _log_mean_exp(own_logits, mask) + self.study_bias.detach())
        # Danger: without these two detach calls the backbone learns whose slices it sees (docs/decisions/0007).
        states, slice_logits = self.project(x.detach()) * mask.unsqueeze(-1), own_logits.detach()
        if self.sequence is not None:
            states, correction = self.sequence(states, mask, geom)
            slice_logits = slice_logits + correction * mask.unsqueeze(-1)
        return Output(slice_logits, self._study_logits(states, slice_logits, mask), x, by_slice)

    def _study_logits(self, states: Tensor, slice_logits: Tensor, mask: Tensor) -> Tensor:
        padding = ~mask.unsqueeze(-1)
        attention = self.attention(states).masked_fill(padding, -math.inf).softmax(dim=1)  # [B,T,6], own for each label
        pooled = torch.einsum("btk,btr->bkr", attention, states)
        attended = (pooled * self.study_head).sum(dim=-1) + self.study_bias
        return attended + _log_mean_exp(slice_logits, mask)

    def _start_at_the_prior(self) -> None:
        """Small weights: every output starts at the prior, so the first steps move features and not offsets."""
        with torch.no_grad():
            nn.init.normal_(self.slice_head.weight, std=0.01)
            nn.init.zeros_(self.attention.weight)
            nn.init.zeros_(self.attention.bias)
            self.slice_head.bias.copy_(prior_logits(PRIOR_SLICE))
            if self.sequence is not None:
                last = self.sequence.last_layer
                nn.init.normal_(last.weight, std=0.01)
                nn.init.zeros_(last.bias)
            # The smooth maximum of equal slice logits is the slice prior; the bias adds the rest.
            self.study_bias.copy_(prior_logits(PRIOR_STUDY) - prior_logits(PRIOR_SLICE))


class Sequence(nn.Module):
    """The recurrence along a study and its head, which corrects the slice logits.

    Attributes:
        out_features: R, the features of a state: f32[B,T,R].
    """

    def __init__(self, recurrence: RecurrenceName, width: int, hidden: int, layers: int) -> None:
        """Build it for projected features of `width`; see `SequenceHead`."""
        super().__init__()
        self.recurrence = Recurrence(recurrence, 3 * width + GEOMETRY, hidden, layers)
        self.out_features = self.recurrence.out_features
        self.head: nn.Linear | nn.Sequential
        if recurrence == "gru-sep":  # the method trains the recurrence one step at a time, under a perceptron
            self.head = nn.Sequential(nn.Linear(self.out_features, hidden), nn.ReLU(), nn.Linear(hidden, len(LABELS)))
        else:
            self.head = nn.Linear(self.out_features, len(LABELS))

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer whose output f32[B,T,6] corrects the slice logits."""
        last = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
        # __init__ ends both kinds of head in a linear layer
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, projected: Tensor, mask: Tensor, geom: Tensor) -> tuple[Tensor, Tensor]:
        """f32[B,T,E], bool[B,T], f32[B,T,4] -> states f32[B,T,R], corrections f32[B,T,6]."""
        states = self.recurrence(_with_neighbours(projected, mask, geom), mask)
        return states, self.head(states)


def prior_logits(probabilities: Mapping[str, float]) -> Tensor:
    """Return f32[6], log-odds in the order of LABELS, of probabilities by label name."""
    return torch.logit(torch.tensor([probabilities[label] for label in LABELS]))


def clamp_any(logits: Tensor) -> Tensor:
    """Raise `any` to the highest subtype, so that p(any) >= max p(subtype). Apply it after calibration.

    Args:
        logits: f32[...,6], log-odds in the order of LABELS.

    Returns:
        f32[...,6]; the subtypes are unchanged.
    """
    subtypes, any_ = logits[..., :ANY], logits[..., ANY:]
    return torch.cat([subtypes, torch.maximum(any_, subtypes.amax(dim=-1, keepdim=True))], dim=-1)


def _with_neighbours(embedding: Tensor, mask: Tensor, geom: Tensor) -> Tensor:
    """[B,T,E] -> [B,T,3E+4]: the slice, its change from the slice below and to the slice above (0 at the ends)."""
    step = (embedding[:, 1:] - embedding[:, :-1]) * mask[:, 1:].unsqueeze(-1)
    end = torch.zeros_like(embedding[:, :1])
    below, above = torch.cat([end, step], dim=1), torch.cat([step, end], dim=1)
    return torch.cat([embedding, below, above, geom * mask.unsqueeze(-1)], dim=-1)


def _log_mean_exp(slice_logits: Tensor, mask: Tensor) -> Tensor:
    """[B,T,6] -> [B,6], (1/r) log mean exp(r s): a smooth maximum (Pinheiro & Collobert, CVPR 2015, eq. 6)."""
    scaled = (slice_logits * _SHARPNESS).masked_fill(~mask.unsqueeze(-1), -math.inf)
    count = mask.sum(dim=1, keepdim=True).to(scaled.dtype)  # ONNX has no logarithm of whole numbers
    pooled: Tensor = (scaled.logsumexp(dim=1) - count.log()) / _SHARPNESS
    return pooled
