"""Layers without batch statistics: convolutions with standardized kernels, and affine layers in place of BatchNorm.

BatchNorm keeps statistics of patients, so no architecture may have it. GroupNorm over published kernels is no
substitute. The input of a convolution behind a ReLU is positive on average, so a kernel whose weights do not sum to
zero adds a constant to its channel. BatchNorm removes that constant, GroupNorm only its mean over a group of channels.
After 120 layers 93 % of the features' length is the same for every slice (docs/decisions/0016). Standardized kernels
add no constant.
"""

import math
from collections.abc import Iterator
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Normalization = Literal["group", "affine"]

GROUPS: Final = 8  # of GroupNorm: Wu and He, ECCV 2018, find 8 to 32 equal
_VARIANCE_FLOOR: Final = 1e-4  # of a kernel, whose n weights have a summed variance near 1: keeps equal weights finite
_START_FLOOR: Final = 1e-3  # of a channel's variance: a channel that is silent at the start is not blown up


class StandardizedConv2d(nn.Conv2d):
    """A 2D convolution whose kernels have mean 0 and variance gain^2 / fan-in: f32[N,C,H,W] -> f32[N,out,H',W'].

    Source: Qiao et al., arXiv 1903.10520. The gain of an output channel: Brock et al., ICLR 2021, section 4.2.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of nn.Conv2d."""
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with standardized kernels: f32[N,C,H,W] -> f32[N,out,H',W']."""
        out: Tensor = self._conv_forward(x, _standardized(self.weight, self.gain), self.bias)
        return out

    @torch.no_grad()
    def plain(self) -> nn.Conv2d:
        """Return a convolution that has the present standardized kernels as its weights: for inference only."""
        has_bias = self.bias is not None
        sizes: tuple[Any, ...] = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, has_bias)
        plain = nn.Conv2d(self.in_channels, self.out_channels, *sizes)
        plain.weight.copy_(_standardized(self.weight, self.gain))
        # made with a bias exactly where this one has one
        if plain.bias is not None and self.bias is not None:
            plain.bias.copy_(self.bias)
        return plain


class StandardizedConv3d(nn.Conv3d):
    """A 3D convolution with kernels as those of `StandardizedConv2d`: f32[N,C,T,H,W] -> f32[N,out,T',H',W']."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of nn.Conv3d."""
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1, 1))
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with standardized kernels: f32[N,C,T,H,W] -> f32[N,out,T',H',W']."""
        out: Tensor = self._conv_forward(x, _standardized(self.weight, self.gain), self.bias)
        return out


class Affine(nn.Module):
    """A factor and a summand for each channel: f32[N,C,...] -> f32[N,C,...].

    This is BatchNorm in eval mode with its statistics folded in. An exporter folds it into a convolution.
    """

    def __init__(self, channels: int) -> None:
        """Start as the identity."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add: f32[N,C,...] -> f32[N,C,...]."""
        # Cost: this is one fused kernel in each direction; `x * weight + bias` takes a fifth longer for a whole step.
        mean, variance = torch.zeros_like(self.weight), torch.ones_like(self.weight)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, training=False, eps=0.0)

    @torch.no_grad()
    def start(self, x: Tensor) -> Tensor:
        """Set both so that each channel of x f32[N,C,...] gets mean 0 and variance 1, and return the output."""
        variance, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())])
        self.weight.copy_((variance + _START_FLOOR).rsqrt())
        self.bias.copy_(-mean * self.weight)
        return self.forward(x)


def without_batch_norm(trunk: nn.Module, normalization: Normalization, *, standardized: bool) -> nn.Module:
    """Replace every BatchNorm of a trunk, and its convolutions by standardized ones if wanted, in place.

    No convolution has a bias afterwards: each is followed by a layer that adds one.

    Args:
        trunk: A 2D or 3D network with BatchNorm behind or before each convolution.
        normalization: "group": GroupNorm of 8 groups; "affine": `Affine`.
        standardized: Whether kernels are standardized. Their weights are drawn anew then.

    Returns:
        The trunk.
    """
    for parent, name, child in list(_children(trunk)):
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            channels = child.num_features
            setattr(parent, name, nn.GroupNorm(GROUPS, channels) if normalization == "group" else Affine(channels))
        elif isinstance(child, nn.Conv2d | nn.Conv3d):
            # Left as it is where it has no bias and keeps its kernels: its weights are the published ones or fresh.
            if standardized:
                kind = StandardizedConv2d if isinstance(child, nn.Conv2d) else StandardizedConv3d
                sizes = child.kernel_size, child.stride, child.padding, child.dilation, child.groups
                setattr(parent, name, kind(child.in_channels, child.out_channels, *sizes, bias=False))
            else:
                child.bias = None
    return trunk


def with_plain_convolutions(trunk: nn.Module) -> nn.Module:
    """Replace every `StandardizedConv2d` of a trunk by a plain convolution of the same output, in place."""
    for parent, name, child in list(_children(trunk)):
        if isinstance(child, StandardizedConv2d):
            setattr(parent, name, child.plain())
    return trunk


@torch.no_grad()
def start_affine_layers(net: nn.Module, x: Tensor) -> None:
    """Set every `Affine` of `net` once, in forward order, on an input that shows no patient.

    This is the data-dependent start of Mishkin and Matas, ICLR 2016, with the affine layers in place of the weights.

    Args:
        net: The network, which runs once in its present mode.
        x: Input of `net`, f32[N,5,H,W] in [-1,1].
    """
    layers = [module for module in net.modules() if isinstance(module, Affine)]
    hooks = [layer.register_forward_hook(lambda module, inputs, output: module.start(*inputs)) for layer in layers]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yields every layer below `module` with its parent and its name there."""
    for name, child in module.named_children():
        yield module, name, child
        yield from _children(child)


def _start(convolution: nn.Conv2d | nn.Conv3d) -> None:
    nn.init.normal_(convolution.weight, std=convolution.weight[0].numel() ** -0.5)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def _standardized(weight: Tensor, gain: Tensor) -> Tensor:
    """(weight - mean) gain / sqrt(n variance + floor) over the n weights of each kernel [out,in,...]."""
    n = weight[0].numel()
    # Cost: F.batch_norm over kernels is one fused pass; var_mean and a product take a sixth longer for a whole step. It
    # takes the biased variance, which is the unbiased one times (n - 1) / n.
    rows = weight.reshape(1, len(weight), n)
    factor, floor = math.sqrt(n - 1) / n, _VARIANCE_FLOOR * (n - 1) / n**2
    kernels = F.batch_norm(rows, None, None, gain.flatten() * factor, None, training=True, eps=floor).view_as(weight)
    return kernels.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else kernels
