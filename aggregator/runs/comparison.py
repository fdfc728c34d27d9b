"""Two models beside each other: how far apart they are, and which tensors moved most."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from federation.manifest import Manifest, Model
from numpy.typing import NDArray

from aggregator.errors import WrongState


@dataclass(frozen=True)
class TensorDistance:
    """One tensor of two models.

    Attributes:
        name: Of the tensor.
        numbers: How many it holds.
        distance: Euclidean length of the difference.
        relative: `distance` over the tensor's length in the first model; None where that is 0.
    """

    name: str
    numbers: int
    distance: float
    relative: float | None


@dataclass(frozen=True)
class ModelComparison:
    """Two models of the same tensors.

    Attributes:
        lengths: Euclidean length of each.
        distance: Of their difference.
        cosine: Of the angle between them, -1 to 1; None where one is all zeros.
        moved: Tensors that differ in a number or more.
        tensors: All of them, the most moved first.
    """

    lengths: tuple[float, float]
    distance: float
    cosine: float | None
    moved: int
    tensors: tuple[TensorDistance, ...]


def compare(first: Model, second: Model) -> ModelComparison:
    """Compare two models number by number.

    Raises:
        WrongState: When their tensors are others.
    """
    if first.manifest.digest != second.manifest.digest:
        raise WrongState(f"expected two models of the same tensors, {_difference(first.manifest, second.manifest)}")
    a, b = first.weights.astype(np.float64), second.weights.astype(np.float64)
    lengths = _length(a), _length(b)
    ends = np.cumsum([0, *(tensor.size for tensor in first.manifest.tensors)])
    tensors = []
    for tensor, (begin, end) in zip(first.manifest.tensors, pairwise(ends), strict=True):
        distance, length = _length(b[begin:end] - a[begin:end]), _length(a[begin:end])
        tensors.append(TensorDistance(tensor.name, int(end - begin), distance, distance / length if length else None))
    return ModelComparison(
        lengths=lengths,
        distance=_length(b - a),
        cosine=float(a @ b) / (lengths[0] * lengths[1]) if all(lengths) else None,
        moved=sum(tensor.distance > 0 for tensor in tensors),
        tensors=tuple(sorted(tensors, key=lambda tensor: tensor.distance, reverse=True)),
    )


def _length(values: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(values))


def _difference(first: Manifest, second: Manifest) -> str:
    names, others = {tensor.name for tensor in first.tensors}, {tensor.name for tensor in second.tensors}
    if names == others:
        return "got the same names with other shapes"
    return f"got {len(names - others)} that only the first has and {len(others - names)} that only the second has"
