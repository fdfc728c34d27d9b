"""From a trained network's log-odds to chances: undo the sampling of training, then one temperature a label.

    calibrated = (logit + offset) / temperature, then `any` raised to its highest subtype

`offset` = logit(prevalence among patients) - logit(prevalence in training), because training shows hemorrhage far more
often than patients have it (Saerens et al., Neural Computation 2002, for two classes). `temperature` after Guo et al.,
ICML 2017, fitted on validation patients. Both keep the order of scores within a label, so no AUC changes; the order of
labels within a slice may, which is why `any` is raised last.
"""

import json
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from federation.labels import LABELS
from numpy.typing import NDArray
from torch import Tensor

from site_client.model.network import Network, Output, clamp_any

Reals = NDArray[np.float64]

TEMPERATURES: Final = (0.1, 10.0)  # outside, validation says that the scores are worthless or the labels perfect
EXAMPLES_MIN: Final = 5  # of each kind; below, a temperature would be fitted to chance
_PREVALENCE_MIN: Final = 1e-4  # a label without a positive among a site's patients is rare, not impossible
_HALVINGS: Final = 50


@dataclass(frozen=True)
class Calibration:
    """Six numbers each, in the order of LABELS; temperatures are above 0. Slices and studies have one of their own."""

    offset: tuple[float, ...] = (0.0,) * len(LABELS)
    temperature: tuple[float, ...] = (1.0,) * len(LABELS)

    def apply(self, logits: Tensor) -> Tensor:
        """[...,6] -> [...,6], `any` never below a subtype."""
        return clamp_any((logits + logits.new_tensor(self.offset)) / logits.new_tensor(self.temperature))


def prior_offset(patients: Reals, training: Reals) -> Reals:
    """f64[6] of two prevalences f64[6]. A label that one of them does not know (nan) is left alone."""
    shift = _logit(patients) - _logit(training)
    return np.where(np.isnan(shift), 0.0, shift)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Reals:
    """f64[6]: what to divide each column of logits [N,6] by for the least cross-entropy with labels [N,6] (-1 unknown).

    Within TEMPERATURES; 1 for a label with fewer than EXAMPLES_MIN of either kind.
    """
    return np.array([_temperature(logits[:, k].astype(np.float64), labels[:, k]) for k in range(len(LABELS))])


def _temperature(logits: Reals, labels: NDArray[np.integer]) -> float:
    known = labels >= 0
    z, y = logits[known], labels[known].astype(np.float64)
    if min(y.sum(), (1 - y).sum()) < EXAMPLES_MIN:
        return 1.0
    # Cross-entropy is convex in 1/T, so its slope, sum (sigmoid(z/T) - y) z, changes sign once at most.
    coldest, warmest = np.log(TEMPERATURES)
    for _ in range(_HALVINGS):
        middle = (coldest + warmest) / 2
        too_sure = float((_sigmoid(z * np.exp(-middle)) - y) @ z) > 0
        coldest, warmest = (middle, warmest) if too_sure else (coldest, middle)
    return float(np.exp((coldest + warmest) / 2))


def _sigmoid(x: Reals) -> Reals:
    chance: Reals = 0.5 * (1 + np.tanh(x / 2))
    return chance


def _logit(chance: Reals) -> Reals:
    bounded = np.clip(chance, _PREVALENCE_MIN, 1 - _PREVALENCE_MIN)
    logit: Reals = np.log(bounded) - np.log1p(-bounded)
    return logit


# --- with a network -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibrations:
    """What belongs to one model's weights and one site's patients. model: digest of the weights, in hex."""

    slices: Calibration = Calibration()
    studies: Calibration = Calibration()
    model: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Calibrations":
        """Raises ValueError, KeyError or TypeError when the text is not what to_json writes."""
        parts = json.loads(text)
        return cls(_part_of(parts["slices"]), _part_of(parts["studies"]), str(parts["model"]))


class CalibratedNet(Network):
    """A network whose answers are calibrated, the invariant p(any) >= max p(subtype) included: the graph to export."""

    def __init__(self, net: Network, by: Calibrations) -> None:
        super().__init__()
        self.net = net
        self.has_slice_outputs = net.has_slice_outputs
        self._by = by

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        """Slice logits under a false mask mean nothing."""
        said = self.net(x, mask, geom)
        return Output(
            self._by.slices.apply(said.slice_logits), self._by.studies.apply(said.study_logits), said.embedding
        )


def _part_of(found: dict[str, list[float]]) -> Calibration:
    part = Calibration(tuple(map(float, found["offset"])), tuple(map(float, found["temperature"])))
    if len(part.offset) != len(LABELS) or len(part.temperature) != len(LABELS) or min(part.temperature) <= 0:
        raise ValueError(f"expected {len(LABELS)} offsets and as many temperatures above 0, got something else")
    return part
