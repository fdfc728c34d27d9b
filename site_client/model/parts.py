"""The parts of a network by tensor name: which tensors a plan's training moves, and at which rate."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from federation.description import PART_LETTERS
from federation.plan import LocalTraining, Trainable
from torch import nn

from site_client.model.layers import Affine, StandardizedConv2d, StandardizedConv3d

_NORMS: Final = (nn.GroupNorm, Affine)
_KERNELS: Final = (StandardizedConv2d, StandardizedConv3d)
# First components of tensor names behind the backbone, without the prefix "reader.": the last layers.
_HEADS: Final = ("slice_head.", "study_head", "study_bias", "attention.", "sequence.head.")


class Part(IntEnum):
    """A part of a network. A plan's `trainable` takes all parts up to one of them."""

    HEADS = 0
    READER = 1
    NORMS = 2
    TRUNK = 3

    @property
    def letter(self) -> str:
        """Its letter in a model's description."""
        return PART_LETTERS[self]


_LAST: Final[Mapping[Trainable, Part]] = MappingProxyType(
    {
        Trainable.HEADS: Part.HEADS,
        Trainable.READER: Part.READER,
        Trainable.NORMS: Part.NORMS,
        Trainable.ALL: Part.TRUNK,
    }
)


def parts_of(net: nn.Module) -> dict[str, Part]:
    """Return the part of every parameter by its name, in the order of `named_parameters`.

    Args:
        net: A `Network`, or a `SequenceHead` by itself, whose names have no prefix.
    """
    scales = {f"{name}.{own}" for name, module in net.named_modules() for own in _scales(module)}
    return {name: _part_of(name, scales) for name, _ in net.named_parameters()}


def is_trainable(part: Part, trainable: Trainable) -> bool:
    """Tell whether a plan's training moves this part."""
    return part <= _LAST[trainable]


def rate_of(part: Part, plan: LocalTraining) -> float:
    """Return the learning rate of a part: the plan's, times the plan's factor for heads, reader or trunk."""
    if part is Part.HEADS:
        return plan.learning_rate * plan.heads_rate
    return plan.learning_rate * (plan.reader_rate if part is Part.READER else plan.trunk_rate)


def _scales(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, _NORMS):
        return ("weight", "bias")
    return ("gain",) if isinstance(module, _KERNELS) else ()


def _part_of(name: str, scales: set[str]) -> Part:
    if name.startswith("backbone."):
        return Part.NORMS if name in scales else Part.TRUNK
    return Part.HEADS if name.removeprefix("reader.").startswith(_HEADS) else Part.READER
