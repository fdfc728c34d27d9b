"""The convolutional parts of the arms: MONAI's networks with GroupNorm, cut before their classifiers.

Each constructor gives the module and the number of its features.
"""

from typing import Final

import torch
from monai.networks.nets import DenseNet, DenseNet121, ResNet
from monai.networks.nets.resnet import ResNetBottleneck
from torch import Tensor, nn

_RELU: Final = ("relu", {"inplace": False})


def densenet(
    kind: type[DenseNet], channels: int, groups: int, *, peaks: bool = False, **shape: object
) -> tuple[nn.Module, int]:
    net = kind(
        spatial_dims=2, in_channels=channels, out_channels=1, norm=("group", {"num_groups": groups}), act=_RELU, **shape
    )
    return Pooled(net.features, peaks), net.class_layers.out.in_features


def densenet121_3d(channels: int) -> tuple[nn.Module, int]:
    """[N,C,T,H,W] -> [N,F]. The stem halves the image only: a head has a few tens of slices, and hundreds of rows."""
    net = DenseNet121(
        spatial_dims=3, in_channels=channels, out_channels=1, norm=("group", {"num_groups": 8}), act=_RELU
    )
    net.features.conv0.stride = (1, 2, 2)
    return Pooled(net.features), net.class_layers.out.in_features


def resnet(layers: tuple[int, int, int, int], channels: int) -> tuple[nn.Module, int]:
    net = ResNet(
        ResNetBottleneck,
        layers,
        [64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=channels,
        conv1_t_stride=2,  # MONAI's default of 1 costs four times the work of the published networks
        norm=("group", {"num_groups": 8}),
        act=_RELU,
        num_classes=1,
    )
    _replace_batch_norm(net)
    return Pooled(_ResNetTrunk(net)), net.fc.in_features


def standardize(module: nn.Module) -> None:
    """Every convolution below `module` becomes a standardized one with the same initial weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            size = (child.kernel_size[0], child.kernel_size[1])
            stride = (child.stride[0], child.stride[1])
            padding = child.padding if isinstance(child.padding, str) else (child.padding[0], child.padding[1])
            own = _StandardizedConv2d(child.in_channels, child.out_channels, size, stride, padding, bias=False)
            own.weight = child.weight
            setattr(module, name, own)
        else:
            standardize(child)


class Pooled(nn.Module):
    """A convolutional trunk followed by ReLU and the mean over the image: [N,C,H,W] -> [N,F], or [N,C,T,H,W] -> [N,F].

    With `peaks` the maximum over the image comes beside the mean, [N,2F]: a bleed of a few pixels moves no mean.
    """

    def __init__(self, trunk: nn.Module, peaks: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.peaks = peaks

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.trunk(x))
        everywhere = tuple(range(2, maps.dim()))
        mean = maps.mean(dim=everywhere)
        return torch.cat([mean, maps.amax(dim=everywhere)], dim=1) if self.peaks else mean


class _StandardizedConv2d(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1/fan-in (Qiao et al., arXiv 1903.10520).

    GroupNorm alone leaves every slice's features almost the same vector, because the mean that ReLU adds in each layer
    is taken away by nothing; with kernels of mean 0 it cannot build up (Brock et al., ICLR 2021). BatchNorm would do
    it too, at the price of statistics of patients.
    """

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        fan_in = self.weight[0].numel()
        kernels = (self.weight - mean) * torch.rsqrt(variance * fan_in + 1e-6)
        out: Tensor = self._conv_forward(x, kernels, self.bias)
        return out


class _ResNetTrunk(nn.Module):
    """MONAI's ResNet without its classifier, whose forward pass is the only place that names these layers in order."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act, net.maxpool)
        self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(self.stem(x))
        return out


def _replace_batch_norm(module: nn.Module) -> None:
    """MONAI's ResNet hands `norm` to its stem only and keeps BatchNorm in its blocks (1.6.1, _make_layer)."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        else:
            _replace_batch_norm(child)
