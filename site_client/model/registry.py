"""The architectures that a plan may name. A plan takes a name from this table; it never names code to import.

A federation moves an architecture's parameters, in the order of `named_parameters`. No architecture has buffers, so no
statistic of a hospital's patients travels with the weights.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from federation.manifest import Manifest, Model, TensorSpec
from numpy.typing import NDArray
from torch import nn

from site_client.errors import UnknownArchitecture
from site_client.model.backbones import (
    DENSENET121,
    DENSENET169,
    Pooled,
    Trunk,
    affine,
    densenet,
    densenet121_3d,
    resnet,
    standardized,
)
from site_client.model.compact import compact
from site_client.model.efficientnet import efficientnet_lite0
from site_client.model.network import CHANNELS, Network, SequenceHead, SequenceNet
from site_client.model.recurrence import RecurrenceName
from site_client.model.volumetric import WINDOWS, VolumeNet


def build(architecture: str, seed: int) -> Network:
    """Build an architecture with fresh float32 weights on the CPU. One seed gives the same weights every time.

    The state of torch's global generator is the same afterwards.

    Raises:
        UnknownArchitecture: The table has no such name.
    """
    constructor = ARCHITECTURES.get(architecture)
    if constructor is None:
        raise UnknownArchitecture(
            f"the plan names the network {architecture!r}, but this version knows only "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return constructor()


def manifest_of(module: nn.Module) -> Manifest:
    """Return names and shapes of all parameters, in the order of the flat vector f32[d]."""
    return Manifest(tuple(TensorSpec(name, tuple(value.shape)) for name, value in module.named_parameters()))


def weights_of(module: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return copies of all parameters by name, f32 on the CPU."""
    return {name: value.detach().cpu().numpy().astype(np.float32) for name, value in module.named_parameters()}


def model_of(module: nn.Module) -> Model:
    """Return all parameters, f32[d], as a model from which a federation can start: without server optimizer state."""
    manifest = manifest_of(module)
    return Model(manifest, manifest.flatten(weights_of(module)))


def load_weights(module: nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Set every parameter, in place.

    Args:
        module: The network.
        weights: f32 arrays of the parameters' shapes, by parameter name.

    Raises:
        RuntimeError: Names or shapes are not exactly the module's (from torch).
    """
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def _full(
    trunk: Callable[[int], Trunk],
    recurrence: RecurrenceName | None,
    build_backbone: Callable[[Callable[[int], Trunk], int], Trunk] = standardized,
) -> Callable[[], Network]:
    def construct() -> Network:
        backbone, features = build_backbone(trunk, CHANNELS)
        head = SequenceHead(features, width=256, hidden=128, layers=2, recurrence=recurrence, dropout=0.3)
        return _channels_last(SequenceNet(backbone, head, recompute=True))

    return construct


def _lite(recurrence: RecurrenceName | None = "gru") -> Network:
    trunk, features = compact(CHANNELS)
    head = SequenceHead(2 * features, width=64, hidden=32, layers=1, recurrence=recurrence, dropout=0.1)
    return _channels_last(SequenceNet(Pooled(trunk, peaks=True), head, chunk=32))


def _volume() -> Network:
    return VolumeNet(*densenet121_3d(len(WINDOWS)), dropout=0.3)


def _channels_last(net: Network) -> Network:
    """Lay convolution weights out for the fast kernels of CPU and GPU: 1.3 times as fast. Values are unchanged."""
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


_DENSENET121: Final = partial(densenet, DENSENET121)
_DENSENET169: Final = partial(densenet, DENSENET169)
_RESNET50: Final = partial(resnet, (3, 4, 6, 3))
_RESNET101: Final = partial(resnet, (3, 4, 23, 3))
ARCHITECTURES: Final[Mapping[str, Callable[[], Network]]] = MappingProxyType(
    {
        "lite": _lite,
        "lite-slices": lambda: _lite(None),
        # From scratch: standardized kernels.
        "densenet121-gru": _full(_DENSENET121, "gru"),
        "densenet121-lstm": _full(_DENSENET121, "lstm"),
        "densenet121-mingru": _full(_DENSENET121, "mingru"),
        "densenet121-gru-sep": _full(_DENSENET121, "gru-sep"),
        "densenet121-3d": _volume,
        "densenet121": _full(_DENSENET121, None),
        "densenet169": _full(_DENSENET169, None),
        "resnet50": _full(_RESNET50, None),
        "resnet101": _full(_RESNET101, None),
        # For published weights: affine layers with BatchNorm's statistics folded in.
        "densenet121-affine-gru": _full(_DENSENET121, "gru", affine),
        "densenet121-affine": _full(_DENSENET121, None, affine),
        "densenet169-affine": _full(_DENSENET169, None, affine),
        "resnet50-affine": _full(_RESNET50, None, affine),
        "resnet101-affine": _full(_RESNET101, None, affine),
        "efficientnet-lite0-affine-gru": _full(efficientnet_lite0, "gru", affine),
        "efficientnet-lite0-affine": _full(efficientnet_lite0, None, affine),
    }
)
