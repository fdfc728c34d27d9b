"""The recurrences along the slices of a study: GRU, LSTM, minGRU, and a GRU trained one step at a time.

Each maps f32[B,T,I] to f32[B,T,R], zero where masked. The mask bool[B,T] is true for slices and false for the padding
behind them. Padding does not change the output of a study.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

RecurrenceName = Literal["gru", "lstm", "mingru", "gru-sep"]


class Recurrence(nn.Module):
    """A bidirectional recurrence: f32[B,T,in_features], bool[B,T] -> f32[B,T,2*hidden].

    Attributes:
        out_features: Twice `hidden`.
    """

    def __init__(self, name: RecurrenceName, in_features: int, hidden: int, layers: int) -> None:
        """Build `layers` layers of `hidden` states in each direction."""
        super().__init__()
        self.out_features = 2 * hidden
        self.layers = _layers(name, in_features, hidden, layers)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Run along the slices: x f32[B,T,in_features], mask bool[B,T] -> f32[B,T,2*hidden], 0 where masked."""
        if isinstance(self.layers, nn.RNNBase):
            return _run_packed(self.layers, x, mask)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def _run_packed(rnn: nn.RNNBase, x: Tensor, mask: Tensor) -> Tensor:
    # An exported graph takes one study and no padding.
    if torch.onnx.is_in_onnx_export():
        whole: Tensor = rnn(x)[0]
        return whole
    # pack_padded_sequence wants the lengths on the CPU. On a GPU this waits for the mask.
    packed = pack_padded_sequence(x, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
    padded, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=x.shape[1])
    return padded


def _layers(name: RecurrenceName, in_features: int, hidden: int, layers: int) -> nn.RNNBase | nn.ModuleList:
    if name == "gru":
        return nn.GRU(in_features, hidden, layers, batch_first=True, bidirectional=True)
    if name == "lstm":
        return nn.LSTM(in_features, hidden, layers, batch_first=True, bidirectional=True)
    layer = _SeparatedGRU if name == "gru-sep" else _BidirectionalMinGRU
    widths = [in_features] + [2 * hidden] * (layers - 1)
    return nn.ModuleList(layer(width, hidden) for width in widths)


class _SeparatedGRU(nn.Module):
    """A bidirectional GRU layer in which no gradient passes from one step to another.

    Source: Wen Yu, Xiaoou Li, Jesús González, "Fast Training of Deep LSTM Networks", ISNN 2019, LNCS 11554. The paper
    trains feed-forward and recurrent parts separately, with a multilayer perceptron on top. Only its abstract was read.
    The rule here is ours and may differ from the authors' algorithm: the state before a step is a constant in the
    step's gradient.

    The library's GRU first computes all states without gradients. Then all steps are computed once more, in parallel,
    each from its known predecessor. Outputs equal those of a GRU with the same weights. Gradients equal those of
    back-propagation truncated to one step.
    """

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(in_features, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            up, down = _run_packed(self.gru, x, mask).chunk(2, dim=-1)
        # States are zero where masked, so the last slice of a shorter study also gets a zero state from above.
        start = torch.zeros_like(up[:, :1])
        before = torch.cat([start, up[:, :-1]], dim=1)
        above = torch.cat([down[:, 1:], start], dim=1)
        steps = [self._step(x, before, "l0"), self._step(x, above, "l0_reverse")]
        return torch.cat(steps, dim=-1) * mask.unsqueeze(-1)

    def _step(self, x: Tensor, state: Tensor, direction: str) -> Tensor:
        """Take one step: x [B,T,I], states [B,T,H] -> states [B,T,H], as nn.GRU does (Cho et al., EMNLP 2014)."""
        weights = dict(self.gru.named_parameters())
        new = F.linear(x, weights[f"weight_ih_{direction}"], weights[f"bias_ih_{direction}"]).chunk(3, dim=-1)
        old = F.linear(state, weights[f"weight_hh_{direction}"], weights[f"bias_hh_{direction}"]).chunk(3, dim=-1)
        reset, keep = torch.sigmoid(new[0] + old[0]), torch.sigmoid(new[1] + old[1])
        candidate = torch.tanh(new[2] + reset * old[2])
        return candidate + keep * (state - candidate)


class _BidirectionalMinGRU(nn.Module):
    """A bidirectional minGRU layer (Feng et al., "Were RNNs All We Needed?", arXiv 2410.01201, appendix B).

    h_t = (1 - z_t) h_(t-1) + z_t g(candidate_t). Gate z and candidate depend on x_t alone, so one cumulative sum in log
    space computes all T steps.
    """

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.forwards = nn.Linear(in_features, 2 * hidden)
        self.backwards = nn.Linear(in_features, 2 * hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        up = _scan(self.forwards(x), mask)
        down = _scan(self.backwards(x).flip(1), mask.flip(1)).flip(1)
        return torch.cat([up, down], dim=-1) * mask.unsqueeze(-1)


def _scan(gates: Tensor, mask: Tensor) -> Tensor:
    """[B,T,2H] -> h [B,T,H], from h_0 = 0. A masked step keeps the state (z = 0); padding may come first, too."""
    gate, candidate = gates.chunk(2, dim=-1)
    real = mask.unsqueeze(-1)
    log_keep = torch.where(real, -F.softplus(gate), 0.0)
    log_take = torch.where(real, -F.softplus(-gate) + _log_g(candidate), _LOG_OF_NOTHING)
    kept = log_keep.cumsum(dim=1)
    return (kept + (log_take - kept).logcumsumexp(dim=1)).exp()


_LOG_OF_NOTHING = -60.0  # e^-60 adds nothing in float32; -inf would make gradients NaN


def _log_g(x: Tensor) -> Tensor:
    """Return log g(x), with g(x) = x + 1/2 for x >= 0 and sigmoid(x) below (arXiv 2410.01201, appendix B.2.1)."""
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))
