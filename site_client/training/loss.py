"""The losses: weighted binary cross-entropy per slice and per study, over the labels that are known."""

import torch
import torch.nn.functional as F
from federation.labels import LABEL_WEIGHTS, MISSING
from torch import Tensor

from site_client.model.network import Output
from site_client.training.data import Sample

STUDY_SHARE = 0.5


def reported_loss(verdict: Output, sample: Sample) -> Tensor:
    """f32[B], what is reported of each study: slices + half of the study. A part without any known label adds 0.

    A network that answers for studies only learns from the study's labels, whatever is known about slices.
    """
    study = _known_loss(verdict.study_logits, sample.study_labels)
    if verdict.slice_logits.shape[1] == 0:
        return study
    return _known_loss(verdict.slice_logits, sample.slice_labels) + STUDY_SHARE * study


def training_loss(verdict: Output, sample: Sample) -> Tensor:
    """f32[B] to minimize beside loss_of: for the backbone, the loss of what its slices say alone.

    Where no slice has a label the study's own teaches it, through the slices' smooth maximum. 0 of a network whose
    answers teach all of it.
    """
    if verdict.alone is None:
        return verdict.study_logits.new_zeros(len(verdict.study_logits))
    by_slices = _known_loss(verdict.alone.slice_logits, sample.slice_labels)
    by_study = _known_loss(verdict.alone.study_logits, sample.study_labels)
    # A choice on the device: a GPU is not waited for to know which.
    return torch.where((sample.slice_labels != MISSING).flatten(1).any(dim=1), by_slices, by_study)


def _known_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[B,...,6] -> f32[B]: mean cross-entropy over known cells by their weights; missing cells have no gradient and no
    weight.
    """
    weights = torch.tensor(LABEL_WEIGHTS, device=logits.device) * (labels != MISSING)
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none")
    # An all-missing part has weight 0 and loss 0: the floor only keeps 0/0 out.
    return (each * weights).flatten(1).sum(dim=1) / weights.flatten(1).sum(dim=1).clamp(min=1)
