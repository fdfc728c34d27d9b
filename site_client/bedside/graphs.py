"""The two graphs of a packed model in ONNX Runtime.

    trunk    slice f32[1,5,H,W] in [-1,1] -> features f32[1,F], int8 inside
    head     features f32[T,F], geometry f32[T,4] -> slice_logits f32[T,6], study_logits f32[6]

The head's graph holds the calibration and raises `any` to its highest subtype.
"""

from collections.abc import Iterable

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy.special import expit

from site_client.bedside.folder import StudyAnswer
from site_client.errors import BundleRefused
from site_client.model.inputs import PreparedStudy, network_input

Floats = NDArray[np.float32]


class PackedModel:
    """A packed model, ready to answer."""

    def __init__(self, trunk: bytes, head: bytes, threads: int) -> None:
        """Build both graphs.

        Args:
            trunk: ONNX.
            head: ONNX.
            threads: Of ONNX Runtime; 0 gives each core one.

        Raises:
            BundleRefused: ONNX Runtime cannot read a graph.
        """
        self._trunk, self._head = _session(trunk, threads), _session(head, threads)

    def features(self, slices: Iterable[Floats]) -> Floats:
        """Compute the features f32[T,F] of T slices, each f32[1,5,H,W] in [-1,1]."""
        # One slice at a time: a whole study's activations would take several times the memory, and no less time.
        return np.concatenate([self._trunk.run(None, {"slice": one_slice})[0] for one_slice in slices])

    def logits(self, features: Floats, geometry: Floats) -> tuple[Floats, Floats]:
        """Return calibrated log-odds of slices f32[T,6] and of the study f32[6].

        Args:
            features: f32[T,F].
            geometry: f32[T,4], see `PreparedStudy`.
        """
        of_slices, of_study = self._head.run(None, {"features": features, "geometry": geometry})
        return of_slices, of_study

    def answer(self, prepared: PreparedStudy) -> StudyAnswer:
        """Answer about one prepared study."""
        slices = (network_input(prepared.windows, slice(place, place + 1)) for place in range(prepared.slices))
        of_slices, of_study = self.logits(self.features(slices), prepared.geometry)
        # In float64: float32 takes the probability of log-odds of 17 for exactly 1.
        return StudyAnswer(expit(of_study.astype(np.float64)), expit(of_slices.astype(np.float64)))


def _session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Cost: the arena keeps the memory of the largest activations for the life of the process, and saves no time here.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's own exceptions have no common base but this.
    except Exception as error:
        raise BundleRefused("expected graphs that ONNX Runtime reads, got others; pack the model again") from error
