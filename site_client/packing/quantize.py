"""Static int8 quantization of a trunk: weights by output channel, activations by their range on this site's slices.

Source: Jacob et al., CVPR 2018, as ONNX Runtime's quantizer carries it out (QDQ format). GroupNorm and the head stay
float32.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


def quantize(trunk: bytes, slices: Iterable[NDArray[np.float32]]) -> bytes:
    """Return the trunk's graph with int8 arithmetic.

    Args:
        trunk: ONNX, float32, from slice f32[1,5,H,W] to features.
        slices: f32[1,5,H,W] each. Their activations set the ranges, so no validation patient may be among them.
    """
    with tempfile.TemporaryDirectory(prefix="hemofed-pack-") as folder:
        whole, folded, packed = (Path(folder) / name for name in ("whole.onnx", "folded.onnx", "int8.onnx"))
        whole.write_bytes(trunk)
        # It advises on standard error to do what is done here.
        logging.disable(logging.WARNING)
        try:
            # Folds affine layers into the convolutions before them, so that int8 keeps one rounding for both.
            quant_pre_process(whole, folded, skip_symbolic_shape=True)
            quantize_static(
                folded,
                packed,
                _Slices(slices),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        return packed.read_bytes()


class _Slices(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    def __init__(self, slices: Iterable[NDArray[np.float32]]) -> None:
        self._slices: Iterator[NDArray[np.float32]] = iter(slices)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        one_slice = next(self._slices, None)
        return None if one_slice is None else {"slice": one_slice}
