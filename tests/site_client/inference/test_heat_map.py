"""A heat map adds up to the log-odds that it explains."""

import numpy as np
import pytest
import torch

from site_client.errors import EvaluationRefused
from site_client.inference.heat_map import contributions, picture
from site_client.model.network import CHANNELS, GEOMETRY, SequenceNet
from site_client.model.registry import build


@pytest.mark.parametrize("architecture", ["lite", "efficientnet-lite0-affine-gru"])
@pytest.mark.parametrize("label", [2, 5])
def test_contributions_add_up_to_the_slice_heads_log_odds(architecture: str, label: int) -> None:
    net = build(architecture, 4).eval()
    assert isinstance(net, SequenceNet)
    x = torch.rand(1, 3, CHANNELS, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        logits = net(x, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, GEOMETRY)).by_slice.slice_logits[
            0, :, label
        ]
        heat = contributions(net, x[0], label)
    torch.testing.assert_close(heat.sum(dim=(1, 2)) + net.reader.slice_head.bias[label], logits, rtol=1e-4, atol=1e-4)


def test_a_picture_is_the_window_and_the_places_that_speak_for_the_label() -> None:
    net = build("lite-slices", 4).eval()
    x = torch.rand(CHANNELS, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        heat = contributions(net, x[None])[0]
        # So that the hottest place is half white.
        scale = 2.0 / float(heat.max() * heat.numel())
        net.get_parameter("reader.slice_head.weight").mul_(scale)
        expected = (heat * scale).clamp(min=0).repeat_interleave(8, 0).repeat_interleave(8, 1)
    drawn = picture(net, x)
    assert drawn.shape == (64, 128)
    np.testing.assert_allclose(drawn[:, :64], (x[1].numpy() + 1) * 127.5, atol=0.51)
    assert 90 < drawn[:, 64:].max() < 130
    assert np.corrcoef(drawn[:, 64:].ravel(), expected.numpy().ravel())[0, 1] > 0.8


def test_a_network_of_whole_studies_has_no_heat_map() -> None:
    with pytest.raises(EvaluationRefused, match="got one of whole studies"):
        contributions(build("densenet121-3d", 1).eval(), torch.zeros(1, CHANNELS, 32, 32))
