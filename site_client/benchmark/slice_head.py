"""The slice head of a sequence arm as a row of its own: the same weights without their recurrence.

The slice head alone trains the backbone, as in the slice-wise twin. The twin is another training, and the chance of two
trainings may be larger than the worth of a sequence. Against its own slice head an arm differs by its recurrence only.
"""

from typing import Final

from federation.manifest import load_model

from site_client.benchmark.arms import Bench
from site_client.benchmark.finished import FinishedArm, load_arm, save_arm
from site_client.calibration.fit import prior_offsets
from site_client.calibration.model import CalibratedNet
from site_client.inference.scoring import score_studies
from site_client.model.network import SequenceNet
from site_client.model.registry import load_weights

SUFFIX: Final = ", slice head alone"  # of the arm's name


def slice_head_of(bench: Bench, arm: str) -> FinishedArm | None:
    """Score the slice head of a finished arm on the validation patients, once.

    Args:
        bench: As it trained the arm.
        arm: Name of its architecture.

    Returns:
        The row; None for an arm without a recurrence.
    """
    net = bench.network(arm)
    if not isinstance(net, SequenceNet) or net.reader.sequence is None:
        return None

    def score() -> FinishedArm:
        path = bench.path(arm, ".slice-head.npz")
        before = load_arm(path)
        if before is not None:
            return before
        model = load_model(bench.path(arm, ".safetensors"))
        load_weights(net, model.named())
        alone = net.slicewise()
        offsets = prior_offsets(bench.split.training, bench.loader, alone)
        calibrated = CalibratedNet(bench.compute.place(alone), offsets)
        scored = score_studies(calibrated, bench.split.validation, bench.loader, bench.compute)
        parameters = sum(value.numel() for value in alone.parameters())
        name, digest = f"{arm}{SUFFIX}", model.digest.hex()
        head = FinishedArm(name, parameters, (), None, scored.ms_per_slice, digest, scored.slices, scored.studies)
        save_arm(path, head)
        return head

    return bench.compute.ranks.first(score)
