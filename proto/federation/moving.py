"""The part of a model that a run moves: all tensors, or some. The rest stays as in the initial model."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.errors import PlanRefused
from federation.manifest import Manifest


@dataclass(frozen=True)
class MovingPart:
    """The places of the moving tensors in the flat vector of a model.

    Attributes:
        runs: Half-open index ranges of moving numbers, ascending; no two of them touch.
    """

    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, manifest: Manifest, places: tuple[int, ...]) -> "MovingPart":
        """Returns the part with these tensors.

        Args:
            manifest: Of the model.
            places: Indices into its tensors, ascending; empty for all tensors.

        Raises:
            PlanRefused: Places are not ascending or not in the manifest, or they name all tensors.
        """
        if not places:
            return cls(((0, manifest.size),))
        ascending = all(before < after for before, after in itertools.pairwise(places))
        inside = places[0] >= 0 and places[-1] < len(manifest.tensors)
        if not ascending or not inside or len(places) == len(manifest.tensors):
            raise PlanRefused("moving_tensors", "expected some places in the manifest, ascending, none for all tensors")
        starts = np.cumsum([0, *(tensor.size for tensor in manifest.tensors)]).tolist()
        runs: list[tuple[int, int]] = []
        for place in places:
            begin, end = starts[place], starts[place + 1]
            # Cost: neighbours are joined, so that a network with few gaps is copied in few slices.
            if runs and runs[-1][1] == begin:
                begin = runs.pop()[0]
            runs.append((begin, end))
        return cls(tuple(runs))

    @property
    def size(self) -> int:
        """Length of the vector of moving numbers, at most d."""
        return sum(end - begin for begin, end in self.runs)

    def take(self, vector: NDArray[Any]) -> NDArray[Any]:
        """Copies the moving numbers of a model's vector, f32[d] or f64[d], into one of the same dtype: [size]."""
        return np.concatenate([vector[begin:end] for begin, end in self.runs])

    def put(self, vector: NDArray[Any], part: NDArray[Any]) -> None:
        """Writes `part` [size] over the moving numbers of a model's vector, f32[d] or f64[d], in place."""
        for (begin, end), numbers in zip(self.runs, self._pieces(part), strict=True):
            vector[begin:end] = numbers

    def _pieces(self, part: NDArray[Any]) -> Iterator[NDArray[Any]]:
        start = 0
        for begin, end in self.runs:
            yield part[start : start + end - begin]
            start += end - begin
