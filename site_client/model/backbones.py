"""The convolutional parts of the full-size architectures: MONAI's networks without classifiers and without BatchNorm.

Each constructor returns the module and the number of its features. `standardized` trunks are for training from scratch;
`affine` trunks keep the published convolutions, so that published weights can be loaded (see `published`).

MONAI is imported where a network is made of its parts: that takes longer than importing PyTorch, and each training
process of a plan with `lite` would pay for it.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from site_client.model.layers import Affine, start_affine_layers, without_batch_norm
from site_client.model.synthetic import synthetic_slices

if TYPE_CHECKING:
    from monai.networks.nets import DenseNet, ResNet

Trunk = tuple[nn.Module, int]

DENSENET121: Final = (6, 12, 24, 16)
DENSENET169: Final = (6, 12, 32, 32)
_RELU: Final = ("relu", {"inplace": False})
_START_SEED: Final = 1  # of the slices on which affine layers start: the same for all seeds of weights


def densenet(layers: tuple[int, int, int, int], channels: int) -> Trunk:
    """Return a 2D DenseNet f32[N,channels,H,W] -> maps f32[N,F,H',W'] (Huang et al., CVPR 2017) and F.

    Args:
        layers: Of each of the four dense blocks: DENSENET121 or DENSENET169.
        channels: Of the input.
    """
    net = _monai_densenet(2, layers, channels)
    return net.features, net.class_layers.out.in_features


def resnet(layers: tuple[int, int, int, int], channels: int) -> Trunk:
    """Return a bottleneck ResNet f32[N,channels,H,W] -> maps f32[N,F,H',W'] (He et al., CVPR 2016) and F.

    Args:
        layers: Blocks of each of the four stages: (3, 4, 6, 3) for ResNet50, (3, 4, 23, 3) for ResNet101.
        channels: Of the input.
    """
    from monai.networks.nets.resnet import ResNet, ResNetBottleneck

    net = ResNet(
        ResNetBottleneck,
        layers,
        [64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=channels,
        conv1_t_stride=2,  # as published; MONAI's default of 1 costs four times as much
        norm="batch",
        act=_RELU,
        num_classes=1,
    )
    return _ResNetTrunk(net), net.fc.in_features


def densenet121_3d(channels: int) -> Trunk:
    """Return a standardized 3D DenseNet121 f32[N,channels,T,H,W] -> f32[N,F] and F.

    The stem halves rows and columns only: a head has a few tens of slices and hundreds of rows.
    """
    net = _monai_densenet(3, DENSENET121, channels)
    net.features.conv0.stride = (1, 2, 2)
    trunk = without_batch_norm(net.features, "group", standardized=True)
    return Pooled(trunk), net.class_layers.out.in_features


def _monai_densenet(spatial_dims: int, layers: tuple[int, int, int, int], channels: int) -> "DenseNet":
    from monai.networks.nets.densenet import DenseNet

    # Growth and initial features are MONAI's defaults: 32 and 64, as published for both depths.
    return DenseNet(spatial_dims, channels, 1, block_config=layers, norm="batch", act=_RELU)


def standardized(trunk: Callable[[int], Trunk], channels: int) -> Trunk:
    """Return a trunk with standardized kernels and GroupNorm, and its pooled features: f32[N,F]."""
    maps, features = trunk(channels)
    return Pooled(without_batch_norm(maps, "group", standardized=True)), features


def affine(trunk: Callable[[int], Trunk], channels: int) -> Trunk:
    """Return a trunk with the published convolutions and affine layers, behind an affine layer on its input: f32[N,F].

    The affine layers start from synthetic slices, so the trunk can also be trained without published weights.
    """
    maps, features = trunk(channels)
    without_batch_norm(maps, "affine", standardized=False)
    start_affine_layers(maps, synthetic_slices(torch.Generator().manual_seed(_START_SEED)))
    return Pooled(nn.Sequential(OrderedDict(input=Affine(channels), features=maps))), features


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
        """Pool each image: f32[N,C,H,W] or f32[N,C,T,H,W] -> f32[N,F]."""
        maps = torch.relu(self.trunk(x))
        image = tuple(range(2, maps.dim()))
        mean = maps.mean(dim=image)
        return torch.cat([mean, maps.amax(dim=image)], dim=1) if self.peaks else mean


class _ResNetTrunk(nn.Module):
    """MONAI's ResNet without its classifier. MONAI lists these layers in order in its forward pass only."""

    def __init__(self, net: "ResNet") -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act, net.maxpool)
        self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(self.stem(x))
        return out
