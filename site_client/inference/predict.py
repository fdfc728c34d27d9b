"""Answers of a network in torch to prepared studies."""

from collections.abc import Callable

import torch
from federation.labels import ANY

from site_client.bedside.folder import StudyAnswer
from site_client.inference.heat_map import picture
from site_client.model.inputs import PreparedStudy
from site_client.model.network import Network, clamp_any
from site_client.training.compute import Compute
from site_client.training.data import input_of


def answers_of(
    net: Network, compute: Compute, explained: Network | None = None
) -> Callable[[PreparedStudy], StudyAnswer]:
    """Return the function that answers a prepared study.

    Args:
        net: On the device of `compute`; it is in eval mode afterwards.
        compute: Device and precision.
        explained: The network behind `net` that heat maps are drawn of; None draws none. The function raises
            EvaluationRefused if it has no slice outputs.
    """
    net.eval()

    def answer(prepared: PreparedStudy) -> StudyAnswer:
        x = input_of(prepared, compute.device).unsqueeze(0)
        mask = torch.ones(1, prepared.slices, dtype=torch.bool, device=compute.device)
        geometry = torch.from_numpy(prepared.geometry).unsqueeze(0).to(compute.device)
        with compute.inference():
            output = net(x, mask, geometry)
        # A network without slice outputs gives every slice the study's probabilities.
        logits = output.slice_logits[0] if net.has_slice_outputs else output.study_logits.expand(prepared.slices, -1)
        slices = clamp_any(logits).double().sigmoid().cpu().numpy()
        # In float64: float32 takes the probability of log-odds of 17 for exactly 1.
        study = clamp_any(output.study_logits[0]).double().sigmoid().cpu().numpy()
        heat_map = None if explained is None else picture(explained, x[0, int(slices[:, ANY].argmax())])
        return StudyAnswer(study, slices, heat_map)

    return answer
