"""Packs a model on a site's studies: export, quantize on those that are trained on, measure on those that never are."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from federation.labels import LABELS
from numpy.typing import NDArray
from torch import Tensor

from site_client.bedside.bundle import INTENDED_USE, Bundle, BundleDescription
from site_client.bedside.graphs import PackedModel
from site_client.errors import BundleRefused
from site_client.inference.model_file import LoadedModel
from site_client.inference.scoring import score_studies
from site_client.ingest.records import StudyRecord
from site_client.model.inputs import PIPELINE_VERSION
from site_client.model.network import Network, Output, SequenceNet
from site_client.packing.export import export
from site_client.packing.quality import Quality, quality_of
from site_client.packing.quantize import quantize
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split

RANGE_SLICES: Final = 64  # slices whose activations set the int8 ranges; each takes as long as an answer in float32
_SEED: Final = 1


def pack(model: LoadedModel, split: Split, loader: Loader, compute: Compute, threads: int) -> tuple[Bundle, Quality]:
    """Pack a model.

    Args:
        model: With its calibration.
        split: Training studies set the ranges of int8; validation studies measure what packing costs.
        loader: Of their pixels, on the CPU.
        compute: The CPU.
        threads: Of ONNX Runtime; 0 gives each core one.

    Raises:
        BundleRefused: The model has no calibration, its network reads whole volumes or has a layer that ONNX has not,
            there is no validation patient, or the plan of its run does not permit packing.
    """
    if model.description.packing:
        raise BundleRefused("the plan of this model's run does not permit packing; ask the coordinator")
    if model.calibrations is None:
        raise BundleRefused("expected a calibrated model, got none; run `hemofed-site calibrate`, give --calibration")
    if not isinstance(model.net, SequenceNet):
        raise BundleRefused(
            f"expected a network that reads slices, got {model.description.architecture}; pack another architecture"
        )
    if not split.validation:
        raise BundleRefused(
            "expected validation patients, got none, so the loss would not be known; see training.validation_fraction"
        )
    whole, head = export(model.net, model.calibrations, model.size_px)
    trunk = quantize(whole, _slices_for_ranges(split.training, loader))
    packed = _PackedNet(PackedModel(trunk, head, threads))
    before, after = (score_studies(net, split.validation, loader, compute) for net in (model.calibrated, packed))
    quality = quality_of(before, after)
    description = BundleDescription(
        intended_use=INTENDED_USE,
        architecture=model.description.architecture,
        model=model.digest,
        image_size_px=model.size_px,
        slices_max=model.slices_max,
        pipeline=PIPELINE_VERSION,
        labels=LABELS,
        calibration=model.calibrations.to_json(),
        quality=quality.as_json(),
        trunk_bytes=len(trunk),
        head_bytes=len(head),
    )
    return Bundle(description, trunk, head), quality


def _slices_for_ranges(studies: Sequence[StudyRecord], loader: Loader) -> Iterator[NDArray[np.float32]]:
    """Draw slices of as many studies as possible: RANGE_SLICES or a few more, f32[1,5,H,W] each."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.permutation(len(studies))[:RANGE_SLICES]
    for index in drawn:
        x = loader.sample(studies[index], None).x[0].numpy()
        for place in rng.permutation(len(x))[: -(-RANGE_SLICES // len(drawn))]:
            yield x[place : place + 1]


class _PackedNet(Network):
    """A packed model as a network, so that one function scores both."""

    def __init__(self, packed: PackedModel) -> None:
        super().__init__()
        self._packed = packed

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        """Map one study: x f32[1,T,5,H,W], mask bool[1,T] without padding, geom f32[1,T,4]."""
        features = self._packed.features(x[0].numpy()[:, None])
        of_slices, of_study = self._packed.logits(features, geom[0].numpy())
        slices, study = torch.from_numpy(of_slices), torch.from_numpy(of_study)
        return Output(slices.unsqueeze(0), study.unsqueeze(0), torch.from_numpy(features).unsqueeze(0))
