"""What runs along the slices of a study: GRU, LSTM, minGRU, or a GRU whose states are trained one step at a time.

Each takes [B,T,I] with a mask that is true for slices and false for the padding behind them, and gives [B,T,R] with
zeros where masked. A padded study comes out as it would alone.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

RecurrenceName = Literal["gru", "lstm", "mingru", "gru-sep"]


class Recurrence(nn.Module):
    """Bidirectional; out_features is twice `hidden`."""

    def __init__(self, name: RecurrenceName, in_features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.out_features = 2 * hidden
        self.layers = _layers(name, in_features, hidden, layers)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if isinstance(self.layers, nn.RNNBase):
            return _run_packed(self.layers, x, mask)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def _run_packed(rnn: nn.RNNBase, x: Tensor, mask: Tensor) -> Tensor:
    # Lengths must lie on the CPU whatever the device of x.
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

    After Wen Yu, Xiaoou Li, Jesús González, "Fast Training of Deep LSTM Networks" (ISNN 2019, LNCS 11554), which trains
    the feed-forward and the recurrent parts separately, with a multilayer perceptron on top. Only its abstract was
    read: the rule here, the state before a step taken as a constant in the step's gradient, is our reading of it, not
    the authors' algorithm.

    All states are first computed without gradients by the library's GRU; then every step is taken once more from its
    known predecessor, all of them at once. Answers are those of a GRU with the same weights; gradients are those of
    back-propagation truncated to one step.
    """

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(in_features, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            up, down = _run_packed(self.gru, x, mask).chunk(2, dim=-1)
        start = torch.zeros_like(up[:, :1])  # where masked, states are zero too: a start for those running down
        before = torch.cat([start, up[:, :-1]], dim=1)
        above = torch.cat([down[:, 1:], start], dim=1)
        steps = [self._step(x, before, "l0"), self._step(x, above, "l0_reverse")]
        return torch.cat(steps, dim=-1) * mask.unsqueeze(-1)

    def _step(self, x: Tensor, state: Tensor, which: str) -> Tensor:
        """Cho et al. 2014 in PyTorch's variant (nn.GRU): x [B,T,I] and the states before [B,T,H] -> states [B,T,H]."""
        weights = dict(self.gru.named_parameters())
        new = F.linear(x, weights[f"weight_ih_{which}"], weights[f"bias_ih_{which}"]).chunk(3, dim=-1)
        old = F.linear(state, weights[f"weight_hh_{which}"], weights[f"bias_hh_{which}"]).chunk(3, dim=-1)
        reset, keep = torch.sigmoid(new[0] + old[0]), torch.sigmoid(new[1] + old[1])
        candidate = torch.tanh(new[2] + reset * old[2])
        return candidate + keep * (state - candidate)


class _BidirectionalMinGRU(nn.Module):
    """minGRU of Feng et al., "Were RNNs All We Needed?" (arXiv 2410.01201), appendix B: scanned in log space.

    h_t = (1 - z_t) h_(t-1) + z_t g(candidate_t), with z and the candidate functions of x_t alone, so that all T steps
    are one cumulative sum.
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
    """[B,T,2H] -> h [B,T,H], from h_0 = 0. Masked steps keep the state (z = 0), wherever they stand."""
    gate, candidate = gates.chunk(2, dim=-1)
    shown = mask.unsqueeze(-1)
    log_keep = torch.where(shown, -F.softplus(gate), 0.0)
    log_take = torch.where(shown, -F.softplus(-gate) + _log_g(candidate), _NOTHING)
    kept = log_keep.cumsum(dim=1)
    return (kept + (log_take - kept).logcumsumexp(dim=1)).exp()


_NOTHING = -60.0  # e^-60 adds nothing in float32, and unlike -inf it leaves gradients finite


def _log_g(x: Tensor) -> Tensor:
    """log of g(x) = x + 1/2 for x >= 0, sigmoid(x) below: positive and continuous."""
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))
