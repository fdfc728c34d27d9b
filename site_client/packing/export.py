"""Exports a network as two ONNX graphs: the trunk for one slice, the head over all slices; see `bedside.graphs`."""

import tempfile
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from site_client.calibration.model import CalibratedNet, Calibrations
from site_client.errors import BundleRefused
from site_client.model.layers import with_plain_convolutions
from site_client.model.network import CHANNELS, GEOMETRY, Network, SequenceNet

_OPSET: Final = 17
_SLICES: Final = 8  # of the example from which the head is traced; any number goes in later


def export(net: SequenceNet, calibrations: Calibrations, size_px: int) -> tuple[bytes, bytes]:
    """Export trunk and head as ONNX, float32.

    Args:
        net: On the CPU, in eval mode afterwards.
        calibrations: Of its weights; the head's graph applies them.
        size_px: Side of a slice. The trunk's graph takes this size and one slice only, so that the runtime can fold
            every shape.

    Raises:
        BundleRefused: ONNX has no operator for a layer of the network.
    """
    net.eval()
    # Standardizing the kernels is arithmetic on constants, and int8 needs them as constants.
    trunk = with_plain_convolutions(deepcopy(net.backbone))
    head = _HeadOfOneStudy(CalibratedNet(net.reader, calibrations)).eval()
    slices = torch.zeros(1, CHANNELS, size_px, size_px)
    with torch.no_grad():  # not inference mode, whose tensors cannot be traced
        features = net.backbone(slices).expand(_SLICES, -1)
    geometry = torch.zeros(_SLICES, GEOMETRY)
    return (
        _graph(trunk, [slices], ["slice"], ["features"], any_length=False),
        _graph(head, [features, geometry], ["features", "geometry"], ["slice_logits", "study_logits"], any_length=True),
    )


class _HeadOfOneStudy(nn.Module):
    """A head without batch and mask: f32[T,F], f32[T,4] -> f32[T,6], f32[6]."""

    def __init__(self, head: Network) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones_like(features[:, 0], dtype=torch.bool)
        output = self.head(features.unsqueeze(0), mask.unsqueeze(0), geometry.unsqueeze(0))
        return output.slice_logits[0], output.study_logits[0]


def _graph(
    module: nn.Module, example: Sequence[Tensor], inputs: list[str], outputs: list[str], *, any_length: bool
) -> bytes:
    # The study's log-odds f32[6] have no axis of slices.
    axes = {name: {0: "T"} for name in (*inputs, "slice_logits")} if any_length else {}
    with tempfile.TemporaryDirectory(prefix="hemofed-pack-") as folder, warnings.catch_warnings():
        # The tracer warns of shapes that it takes as constants, which they are here, and that a newer exporter exists,
        # which needs one more library.
        warnings.simplefilter("ignore")
        path = Path(folder) / "graph.onnx"
        try:
            torch.onnx.export(
                module,
                tuple(example),
                path,
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,
            )
        except torch.onnx.errors.UnsupportedOperatorError as error:
            raise BundleRefused(
                "expected a network whose layers ONNX has, got another; pack one with gru, lstm or gru-sep, or without"
            ) from error
        return path.read_bytes()
