"""The convolutional parts of the architectures: MONAI's networks with GroupNorm, cut before their classifiers.

Each constructor gives the module and the number of its features.
"""

from typing import Final

import torch
from monai.networks.nets import DenseNet, DenseNet121, ResNet
from monai.networks.nets.resnet import ResNetBottleneck
from torch import Tensor, nn

_RELU: Final = ("relu", {"inplace": False})


def densenet(kind: type[DenseNet], channels: int) -> tuple[nn.Module, int]:
    net = kind(spatial_dims=2, in_channels=channels, out_channels=1, norm=("group", {"num_groups": 8}), act=_RELU)
    return Pooled(net.features), net.class_layers.out.in_features


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
