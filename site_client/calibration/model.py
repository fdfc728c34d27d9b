"""Turns a trained network's log-odds into probabilities: a prior correction, then one temperature for each label.

    calibrated = (logit + offset) / temperature, then `any` is raised to its highest subtype

`offset` = logit(prevalence among patients) - logit(prevalence in training), because training shows hemorrhage more
often than patients have it (Saerens et al., Neural Computation 2002, for two classes). The offset of a slice depends on
its height: training reads slices with and without hemorrhage at the same heights, and bleeds are rare at the base and
the vertex. `temperature` follows Guo et al., ICML 2017, and is fitted on validation patients. The order of labels
within a slice may change, so `any` is raised last.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from federation.labels import LABELS, MISSING
from numpy.typing import NDArray
from torch import Tensor

from site_client.model.inputs import HEIGHT
from site_client.model.network import Network, Output, clamp_any

Reals = NDArray[np.float64]

TEMPERATURES: Final = (0.1, 10.0)  # beyond these the scores are worthless or the labels are perfectly separated
EXAMPLES_MIN: Final = 5  # of each kind; with fewer a temperature would fit chance
_PREVALENCE_MIN: Final = 1e-4  # of a label without a positive at a site: rare, not impossible
HEIGHT_BINS: Final = 10
_HALVINGS: Final = 50  # of an interval of 4.6 in log T: 4e-15 is left


@dataclass(frozen=True)
class Calibration:
    """A calibration of slices or of studies.

    Attributes:
        offset: Six offsets of log-odds, in nats, in the order of LABELS.
        temperature: Six divisors above 0, likewise.
        by_height: For each of HEIGHT_BINS bins of relative height six numbers to add to the offset; () for none.
            Between the middles of two bins they are interpolated.
    """

    offset: tuple[float, ...] = (0.0,) * len(LABELS)
    temperature: tuple[float, ...] = (1.0,) * len(LABELS)
    by_height: tuple[tuple[float, ...], ...] = ()

    def apply(self, logits: Tensor, heights: Tensor | None = None) -> Tensor:
        """Calibrate log-odds, and raise `any` to the highest subtype.

        Args:
            logits: f32[...,6].
            heights: f32[...], relative heights 0..1 of slices; None for studies.

        Returns:
            f32[...,6].
        """
        return clamp_any(self.shifted(logits, heights) / logits.new_tensor(self.temperature))

    def shifted(self, logits: Tensor, heights: Tensor | None = None) -> Tensor:
        """Return log-odds f32[...,6] with the offsets added; arguments as those of `apply`."""
        offset = logits.new_tensor(self.offset)
        if self.by_height and heights is not None:
            position = (heights.to(logits.dtype) * HEIGHT_BINS - 0.5).clamp(0, HEIGHT_BINS - 1)
            below = position.floor().long().clamp(max=HEIGHT_BINS - 2)
            table, share = logits.new_tensor(self.by_height), (position - below).unsqueeze(-1)
            offset = offset + table[below] * (1 - share) + table[below + 1] * share
        return logits + offset


def prior_offset(patients: Reals, training: Reals) -> Reals:
    """Compute the offsets f64[6] from two prevalences f64[6]. The offset of an unknown prevalence (NaN) is 0."""
    shift = _logit(patients) - _logit(training)
    return np.where(np.isnan(shift), 0.0, shift)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Reals:
    """Fit one temperature for each label: the divisor of its logits with the least cross-entropy.

    Args:
        logits: f[N,6].
        labels: int[N,6]: 0, 1 or -1 (missing).

    Returns:
        f64[6] within TEMPERATURES; 1 for a label with fewer than EXAMPLES_MIN positives or negatives.
    """
    return np.array([_temperature(logits[:, k].astype(np.float64), labels[:, k]) for k in range(len(LABELS))])


def _temperature(logits: Reals, labels: NDArray[np.integer]) -> float:
    known = labels != MISSING
    z, y = logits[known], labels[known].astype(np.float64)
    if min(y.sum(), (1 - y).sum()) < EXAMPLES_MIN:
        return 1.0
    # Cross-entropy is convex in 1/T, so its slope, sum (sigmoid(z/T) - y) z, changes sign at most once: bisection.
    low, high = np.log(TEMPERATURES)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        probability = 0.5 * (1 + np.tanh(z * np.exp(-middle) / 2))  # the sigmoid, without overflow
        overconfident = float((probability - y) @ z) > 0
        low, high = (middle, high) if overconfident else (low, middle)
    return float(np.exp((low + high) / 2))


def _logit(probability: Reals) -> Reals:
    bounded = np.clip(probability, _PREVALENCE_MIN, 1 - _PREVALENCE_MIN)
    logit: Reals = np.log(bounded) - np.log1p(-bounded)
    return logit


# --- with a network -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibrations:
    """The calibrations of one model's weights for one site's patients.

    Attributes:
        slices: Of slice logits.
        studies: Of study logits.
        model: Digest of the weights in hex.
    """

    slices: Calibration = Calibration()
    studies: Calibration = Calibration()
    model: str = ""

    def to_json(self) -> str:
        """Return the text of a calibration file."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Calibrations":
        """Read the text of a calibration file.

        Raises:
            ValueError: It is no JSON, or a number is missing or out of bounds.
            KeyError: A part is missing.
            TypeError: A part has another type.
        """
        content = json.loads(text)
        return cls(_calibration_of(content["slices"]), _calibration_of(content["studies"]), str(content["model"]))


class CalibratedNet(Network):
    """A network and its calibration in one graph, p(any) >= max p(subtype) included: the graph to export."""

    def __init__(self, net: Network, calibrations: Calibrations) -> None:
        """Calibrate the outputs of `net`, whose weights stay its own."""
        super().__init__()
        self.net = net
        self.has_slice_outputs = net.has_slice_outputs
        self._calibrations = calibrations

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        """Map x f32[B,T,5,H,W], mask bool[B,T], geom f32[B,T,4] to a calibrated `Output`.

        It is as that of `Network`, except that slice logits under a false mask are not 0.
        """
        output = self.net(x, mask, geom)
        return Output(
            self._calibrations.slices.apply(output.slice_logits, geom[:, : output.slice_logits.shape[1], HEIGHT]),
            self._calibrations.studies.apply(output.study_logits),
            output.embedding,
        )


def _calibration_of(content: dict[str, Any]) -> Calibration:
    calibration = Calibration(
        tuple(map(float, content["offset"])),
        tuple(map(float, content["temperature"])),
        tuple(tuple(map(float, row)) for row in content.get("by_height", ())),
    )
    rows = [calibration.offset, calibration.temperature, *calibration.by_height]
    bins = len(calibration.by_height)
    if {len(row) for row in rows} != {len(LABELS)} or min(calibration.temperature) <= 0 or bins not in (0, HEIGHT_BINS):
        raise ValueError(
            f"expected {len(LABELS)} offsets, as many temperatures above 0, and no or {HEIGHT_BINS} rows of offsets by "
            "height, got something else"
        )
    return calibration
