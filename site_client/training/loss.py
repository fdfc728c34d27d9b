"""The losses: weighted binary cross-entropy of slices and studies, over known labels only."""

from typing import Final

import torch
import torch.nn.functional as F
from federation.labels import LABEL_WEIGHTS, MISSING
from torch import Tensor

from site_client.model.network import Output
from site_client.training.data import Sample

STUDY_SHARE: Final = 0.5  # of the study in the reported loss, beside 1 for its slices


def reported_loss(output: Output, sample: Sample) -> Tensor:
    """Return the loss that a site reports: slices plus half of the study.

    Args:
        output: Of a batch of B studies.
        sample: Their labels.

    Returns:
        f32[B], nats. Slices, or a study, without a known label add 0. For a network without slice outputs it is the
        study's loss alone.
    """
    study = _known_loss(output.study_logits, sample.study_labels)
    if output.slice_logits.shape[1] == 0:
        return study
    return _known_loss(output.slice_logits, sample.slice_labels) + STUDY_SHARE * study


def training_loss(output: Output, sample: Sample) -> Tensor:
    """Return the loss to minimize: the reported loss plus an auxiliary loss on the backbone's slice head.

    The reported loss alone does not reach the backbone of a `SequenceNet`. The auxiliary loss takes slice labels; of a
    study without any, it takes the study's labels through the smooth maximum over its slices. It is 0 for slabs that
    are not anchored, and for architectures without a slice head.

    Args:
        output: Of a batch of B studies.
        sample: Their labels.

    Returns:
        f32[B], nats.
    """
    reported = reported_loss(output, sample)
    if output.by_slice is None:
        return reported
    by_slices = _known_loss(output.by_slice.slice_logits, sample.slice_labels)
    by_study = _known_loss(output.by_slice.study_logits, sample.study_labels)
    # Cost: a Python condition would wait for the GPU, whose queue then runs empty. torch.where does not.
    has_slice_labels = (sample.slice_labels != MISSING).flatten(1).any(dim=1)
    return reported + torch.where(has_slice_labels, by_slices, by_study) * sample.anchored


def _known_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[B,...,6] -> f32[B]: the weighted mean over known cells. Missing cells have no gradient and no weight."""
    weights = torch.tensor(LABEL_WEIGHTS, device=logits.device) * (labels != MISSING)
    cells = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none")
    # Without a known cell both sums are 0; clamp avoids 0/0.
    return (cells * weights).flatten(1).sum(dim=1) / weights.flatten(1).sum(dim=1).clamp(min=1)
