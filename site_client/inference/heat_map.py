"""A heat map of a slice: how much each place adds to the slice head's log-odds.

The slice head is linear in features that are means (and maxima) over the image, so its log-odds are a sum over places:
class activation mapping (Zhou et al., CVPR 2016), exact here. A map is no outline of a bleed: places are as large as
the stride of the network, and what lies around a place takes part in its features. The recurrence's correction has no
map.
"""

import numpy as np
import torch
import torch.nn.functional as F
from federation.labels import ANY
from numpy.typing import NDArray
from torch import Tensor

from site_client.errors import EvaluationRefused
from site_client.model.backbones import Pooled
from site_client.model.network import Network, SequenceNet

_WHITE = 4.0  # log-odds, as if the hottest place were the whole image


def contributions(net: Network, x: Tensor, label: int = ANY) -> Tensor:
    """Compute how much each place of each slice adds to the slice head's log-odds of a label.

    Args:
        net: In eval mode.
        x: f32[N,C,H,W] on its device.
        label: Index in LABELS.

    Returns:
        f32[N,h,w]. Its sum over a slice is the slice head's log-odds less the bias.

    Raises:
        EvaluationRefused: The network has no slice outputs.
    """
    if not isinstance(net, SequenceNet) or not isinstance(net.backbone, Pooled):
        raise EvaluationRefused("expected a network with slice outputs for heat maps, got one of whole studies")
    maps = torch.relu(net.backbone.trunk(x))
    channels, places = maps.shape[1], maps.shape[2] * maps.shape[3]
    weights = net.reader.slice_head.weight[label]
    mean = torch.einsum("nchw,c->nhw", maps, weights[:channels]) / places
    if not net.backbone.peaks:
        return mean
    flat = maps.flatten(2)
    peak, at = flat.max(dim=2)
    spikes = torch.zeros_like(flat).scatter_(2, at.unsqueeze(2), peak.unsqueeze(2))
    return mean + torch.einsum("ncp,c->np", spikes, weights[channels:]).view_as(mean)


def picture(net: Network, x: Tensor, label: int = ANY) -> NDArray[np.uint8]:
    """Draw the brain window of one slice, and beside it what speaks for the label.

    Args:
        net: In eval mode.
        x: f32[C,H,W] in [-1,1], on its device.
        label: Index in LABELS.

    Returns:
        uint8[H,2W]: the brain window, then the contributions above 0; white is the most.

    Raises:
        EvaluationRefused: See `contributions`.
    """
    with torch.inference_mode():
        heat = contributions(net, x.unsqueeze(0), label).clamp(min=0)
        large = F.interpolate(heat.unsqueeze(1), size=x.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    places = heat.shape[-2] * heat.shape[-1]
    shade = (large * places / _WHITE).clamp(0, 1).mul(255)
    gray = x[1].add(1).mul(127.5)  # channel 1 is the brain window of the slice itself
    return torch.cat([gray, shade], dim=1).round().to(torch.uint8).cpu().numpy()
