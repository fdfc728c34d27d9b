"""EfficientNet-Lite0: a small network for int8 arithmetic, without squeeze-excitation and with ReLU6.

Sources: Tan and Le, ICML 2019 (EfficientNet-B0), and the "lite" variants of Google's TPU repository: stem and head are
not scaled, swish is ReLU6, squeeze-excitation is left out. 3.4 million parameters without the classifier. Modules have
the names of the published PyTorch weights.
"""

from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES: Final = 1280
EPSILON: Final = 1e-3  # of its published BatchNorm
# Blocks, kernel, stride, expansion, output channels of each stage: Tan and Le, table 1.
_STAGES: Final = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM: Final = 32


def efficientnet_lite0(channels: int) -> tuple[nn.Module, int]:
    """Return the trunk f32[N,channels,H,W] -> maps f32[N,1280,H/32,W/32], and 1280. It has BatchNorm."""
    return _EfficientNetLite0(channels), FEATURES


class SamePadConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "SAME": the odd pixel goes to the right and to the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """f32[N,C,H,W] -> f32[N,out,ceil(H/stride),ceil(W/stride)]."""
        (rows, columns), (kernel, _), (stride, _) = x.shape[-2:], self.kernel_size, self.stride
        down, across = ((-(-size // stride) - 1) * stride + kernel - size for size in (rows, columns))
        down, across = max(down, 0), max(across, 0)
        padded = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        out: Tensor = self._conv_forward(padded, self.weight, self.bias)
        return out


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> SamePadConv2d:
    return SamePadConv2d(before, after, kernel, stride, groups=groups, bias=False)


class _EfficientNetLite0(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self._conv_stem = _convolution(channels, _STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_STEM, EPSILON)
        blocks: list[nn.Module] = []
        width = _STEM
        for count, kernel, stride, expansion, after in _STAGES:
            for number in range(count):
                blocks.append(_Block(width, after, kernel, stride if number == 0 else 1, expansion))
                width = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _convolution(width, FEATURES, 1)
        self._bn1 = nn.BatchNorm2d(FEATURES, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))


class _Block(nn.Module):
    """An inverted bottleneck (Sandler et al., CVPR 2018): expand, convolve each channel, project."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self._expand = expansion > 1
        if self._expand:
            self._expand_conv = _convolution(before, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, EPSILON)
        self._depthwise_conv = _convolution(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, EPSILON)
        self._project_conv = _convolution(wide, after, 1)
        self._bn2 = nn.BatchNorm2d(after, EPSILON)
        self._residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self._expand else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        out: Tensor = self._bn2(self._project_conv(wide))
        return out + x if self._residual else out
