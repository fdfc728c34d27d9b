"""The convolutional part of `lite`: eight layers without normalization, the first two at full resolution.

Sources: Brock et al., ICLR 2021 and arXiv 2102.06171 (standardized kernels, a ReLU that keeps the variance); Hu et al.,
CVPR 2018 (squeeze-excitation); Zhou et al., arXiv 2410.02006 (both in federated networks). GroupNorm removes most
of the difference between the features of two slices, and BatchNorm keeps statistics of patients (docs/decisions/0009).
"""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from site_client.model.layers import StandardizedConv2d

WIDTHS: Final = (16, 32, 64, 96)  # channels of the stages; max pooling halves the image between two of them
# The ReLU of a standard normal variable has variance (1 - 1/pi) / 2 (Brock et al., ICLR 2021, sec. 4.1).
_RELU_GAIN: Final = math.sqrt(2 / (1 - 1 / math.pi))


def compact(channels: int) -> tuple[nn.Module, int]:
    """Return the trunk f32[N,channels,H,W] -> f32[N,F,H/8,W/8], without negative values, and F."""
    stages: list[nn.Module] = []
    for before, width in zip((channels, *WIDTHS), WIDTHS, strict=False):
        if stages:
            stages.append(nn.MaxPool2d(2))
        stages.append(_Stage(before, width))
    return nn.Sequential(*stages), WIDTHS[-1]


class _Stage(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.first = StandardizedConv2d(before, width, kernel_size=3, padding=1)
        self.second = StandardizedConv2d(width, width, kernel_size=3, padding=1)
        self.excitation = _Excitation(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.excitation(_scaled_relu(self.second(_scaled_relu(self.first(x)))))
        return out


class _Excitation(nn.Module):
    """Squeeze-excitation: each channel is multiplied by 0 to 2, a function of the means of all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, width // 4)
        self.excite = nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * (2 * gate)[:, :, None, None]


def _scaled_relu(x: Tensor) -> Tensor:
    return F.relu(x) * _RELU_GAIN
