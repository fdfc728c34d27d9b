"""The losses: weighted binary cross-entropy per slice and per study, over the labels that are known."""

import torch
import torch.nn.functional as F
from torch import Tensor

from site_client.model.labels import LABEL_WEIGHTS, MISSING
from site_client.model.network import Verdict
from site_client.training.data import Sample

STUDY_SHARE = 0.5


def loss_of(verdict: Verdict, sample: Sample) -> Tensor:
    """Scalar, what is reported: slices + half of the study. A part without any known label adds 0.

    A network that answers for studies only learns from the study's labels, whatever is known about slices.
    """
    study = _known_loss(verdict.study_logits, sample.study_labels)
    if verdict.slice_logits.shape[1] == 0:
        return study
    return _known_loss(verdict.slice_logits, sample.slice_labels) + STUDY_SHARE * study


def lesson_of(verdict: Verdict, sample: Sample) -> Tensor:
    """Scalar to minimize beside loss_of: for the backbone, the loss of what its slices say alone.

    Where no slice has a label the study's own teaches it, through the slices' smooth maximum. 0 of a network whose
    answers teach all of it.
    """
    if verdict.alone is None:
        return verdict.study_logits.new_zeros(())
    if (sample.slice_labels != MISSING).any():
        return _known_loss(verdict.alone.slice_logits, sample.slice_labels)
    return _known_loss(verdict.alone.study_logits, sample.study_labels)


def _known_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[...,6]: mean cross-entropy over known cells by their weights; missing cells have no gradient and no weight."""
    weights = torch.tensor(LABEL_WEIGHTS, device=logits.device) * (labels != MISSING)
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none")
    # An all-missing part has weight 0 and loss 0: the floor only keeps 0/0 out.
    return (each * weights).sum() / weights.sum().clamp(min=1)
