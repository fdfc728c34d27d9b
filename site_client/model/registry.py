"""The arms a plan may name. A plan picks from this table and nowhere else: never a path to code.

An arm's parameters, in the order of `named_parameters`, are what a federation moves. No arm has buffers: GroupNorm
keeps no statistics, so nothing about a hospital's patients rides along with the weights.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from federation.manifest import Manifest, TensorSpec
from monai.networks.nets import DenseNet, DenseNet121, DenseNet169, ResNet
from monai.networks.nets.resnet import ResNetBottleneck
from numpy.typing import NDArray
from torch import Tensor, nn

from site_client.errors import UnknownArm
from site_client.model.network import CHANNELS, SequenceNet
from site_client.model.recurrence import RecurrenceName

_RELU: Final = ("relu", {"inplace": False})


def build(arm: str, seed: int) -> SequenceNet:
    """The arm with fresh weights: the same seed gives the same weights. Raises UnknownArm.

    The state of torch's global generator is left as it was.
    """
    constructor = ARMS.get(arm)
    if constructor is None:
        raise UnknownArm(f"the plan names the network {arm!r}, but this version knows only {', '.join(sorted(ARMS))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return constructor()


def manifest_of(module: nn.Module) -> Manifest:
    return Manifest(tuple(TensorSpec(name, tuple(value.shape)) for name, value in module.named_parameters()))


def weights_of(module: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Copies of all parameters by name."""
    return {name: value.detach().cpu().numpy().astype(np.float32) for name, value in module.named_parameters()}


def load_weights(module: nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Sets every parameter; `weights` has exactly the module's names and shapes (torch refuses anything else)."""
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


class _Pooled(nn.Module):
    """A convolutional trunk followed by ReLU and the mean over the image: [N,C,H,W] -> [N,F].

    With `peaks` the maximum over the image comes beside the mean, [N,2F]: a bleed of a few pixels moves no mean.
    """

    def __init__(self, trunk: nn.Module, peaks: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.peaks = peaks

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.trunk(x))
        mean = maps.mean(dim=(2, 3))
        return torch.cat([mean, maps.amax(dim=(2, 3))], dim=1) if self.peaks else mean


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


def _standardize(module: nn.Module) -> None:
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
            _standardize(child)


def _densenet(kind: type[DenseNet], groups: int, *, peaks: bool = False, **shape: object) -> tuple[nn.Module, int]:
    net = kind(
        spatial_dims=2, in_channels=CHANNELS, out_channels=1, norm=("group", {"num_groups": groups}), act=_RELU, **shape
    )
    return _Pooled(net.features, peaks), net.class_layers.out.in_features


class _ResNetTrunk(nn.Module):
    """MONAI's ResNet without its classifier, whose forward pass is the only place that names these layers in order."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act, net.maxpool)
        self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(self.stem(x))
        return out


def _resnet(layers: tuple[int, int, int, int]) -> tuple[nn.Module, int]:
    net = ResNet(
        ResNetBottleneck,
        layers,
        [64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=CHANNELS,
        conv1_t_stride=2,  # MONAI's default of 1 costs four times the work of the published networks
        norm=("group", {"num_groups": 8}),
        act=_RELU,
        num_classes=1,
    )
    _replace_batch_norm(net)
    return _Pooled(_ResNetTrunk(net)), net.fc.in_features


def _replace_batch_norm(module: nn.Module) -> None:
    """MONAI's ResNet hands `norm` to its stem only and keeps BatchNorm in its blocks (1.6.1, _make_layer)."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        else:
            _replace_batch_norm(child)


def _full(trunk: Callable[[], tuple[nn.Module, int]], recurrence: RecurrenceName | None) -> Callable[[], SequenceNet]:
    def construct() -> SequenceNet:
        backbone, features = trunk()
        return _channels_last(
            SequenceNet(
                backbone,
                features,
                width=256,
                hidden=128,
                layers=2,
                recurrence=recurrence,
                dropout=0.3,
                recompute=True,
            )
        )

    return construct


def _lite() -> SequenceNet:
    # num_groups = 2: its channel counts (32 + 12 k, halved between blocks) are not divisible by 4 or 8.
    shape = {"growth_rate": 12, "init_features": 32, "block_config": (4, 8, 12, 8)}
    backbone, features = _densenet(DenseNet, 2, peaks=True, **shape)
    _standardize(backbone)
    net = SequenceNet(backbone, 2 * features, width=64, hidden=32, layers=1, recurrence="gru", dropout=0.1, chunk=32)
    return _channels_last(net)


def _channels_last(net: SequenceNet) -> SequenceNet:
    """Convolution weights laid out as the CPU's and the GPU's fast kernels want them; values are unchanged."""
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


def _densenet121() -> tuple[nn.Module, int]:
    return _densenet(DenseNet121, 8)


ARMS: Final[Mapping[str, Callable[[], SequenceNet]]] = MappingProxyType(
    {
        "lite": _lite,
        "densenet121-gru": _full(_densenet121, "gru"),
        "densenet121-lstm": _full(_densenet121, "lstm"),
        "densenet121-mingru": _full(_densenet121, "mingru"),
        "densenet121": _full(_densenet121, None),
        "densenet169": _full(lambda: _densenet(DenseNet169, 8), None),
        "resnet50": _full(lambda: _resnet((3, 4, 6, 3)), None),
        "resnet101": _full(lambda: _resnet((3, 4, 23, 3)), None),
    }
)
