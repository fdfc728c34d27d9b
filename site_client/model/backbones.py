"""The convolutional parts of the architectures: MONAI's networks with GroupNorm, without their classifiers.

Each constructor returns the module and the number of its features.
"""

from typing import Final

import torch
from monai.networks.nets import DenseNet, DenseNet121, ResNet
from monai.networks.nets.resnet import ResNetBottleneck
from torch import Tensor, nn

_RELU: Final = ("relu", {"inplace": False})


def densenet(kind: type[DenseNet], channels: int) -> tuple[nn.Module, int]:
    """Return a 2D DenseNet f32[N,channels,H,W] -> f32[N,F] (Huang et al., CVPR 2017) and F."""
    net = kind(spatial_dims=2, in_channels=channels, out_channels=1, norm=("group", {"num_groups": 8}), act=_RELU)
    return Pooled(net.features), net.class_layers.out.in_features


def densenet121_3d(channels: int) -> tuple[nn.Module, int]:
    """Return a 3D DenseNet121 f32[N,channels,T,H,W] -> f32[N,F] and F.

    The stem halves rows and columns only: a head has a few tens of slices and hundreds of rows.
    """
    net = DenseNet121(
        spatial_dims=3, in_channels=channels, out_channels=1, norm=("group", {"num_groups": 8}), act=_RELU
    )
    net.features.conv0.stride = (1, 2, 2)
    return Pooled(net.features), net.class_layers.out.in_features


def resnet(layers: tuple[int, int, int, int], channels: int) -> tuple[nn.Module, int]:
    """Return a bottleneck ResNet f32[N,channels,H,W] -> f32[N,F] (He et al., CVPR 2016) and F.

    Args:
        layers: Blocks of each of the four stages: (3, 4, 6, 3) for ResNet50, (3, 4, 23, 3) for ResNet101.
        channels: Of the input.
    """
    net = ResNet(
        ResNetBottleneck,
        layers,
        [64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=channels,
        conv1_t_stride=2,  # as published; MONAI's default of 1 costs four times as much
        norm=("group", {"num_groups": 8}),
        act=_RELU,
        num_classes=1,
    )
    _replace_batch_norm(net)
    return Pooled(_ResNetTrunk(net)), net.fc.in_features


class Pooled(nn.Module):
    """A convolutional trunk, ReLU, and the mean over the image: f32[N,C,H,W] or f32[N,C,T,H,W] -> f32[N,F].

    With `peaks` the output is f32[N,2F], the maxima over the image behind the means: a bleed of a few pixels hardly
    changes a mean.
    """

    def __init__(self, trunk: nn.Module, peaks: bool = False) -> None:
        """Take a trunk whose output has the image's dimensions behind batch and channels."""
        super().__init__()
        self.trunk = trunk
        self.peaks = peaks

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        maps = torch.relu(self.trunk(x))
        image = tuple(range(2, maps.dim()))
        mean = maps.mean(dim=image)
        return torch.cat([mean, maps.amax(dim=image)], dim=1) if self.peaks else mean


class _ResNetTrunk(nn.Module):
    """MONAI's ResNet without its classifier. MONAI lists these layers in order in its forward pass only."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act, net.maxpool)
        self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(self.stem(x))
        return out


def _replace_batch_norm(module: nn.Module) -> None:
    """Replace BatchNorm in the blocks: MONAI's ResNet passes `norm` to its stem only (monai 1.6.1, _make_layer)."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        else:
            _replace_batch_norm(child)
