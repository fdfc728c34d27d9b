"""The 3D architecture: its size, what it answers, and what its answer may not depend on."""

import pytest
import torch
from federation.labels import MISSING
from torch import Tensor

from site_client.model.layers import StandardizedConv3d
from site_client.model.network import CHANNELS, GEOMETRY, Network
from site_client.model.registry import build, manifest_of
from site_client.training.data import Sample
from site_client.training.loss import reported_loss

PUBLISHED = 11_248_774  # MONAI's 3D DenseNet121 of one channel with six outputs, its classifier included
ONE_KERNEL = 64 * 7**3


@pytest.fixture(scope="module")
def net() -> Network:
    return build("densenet121-3d", 3).eval()


def _study(slices: int, padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(slices)
    x = torch.rand(1, slices, CHANNELS, 32, 32, generator=source) * 2 - 1
    geometry = torch.rand(1, slices, GEOMETRY, generator=source)
    x = torch.cat([x, torch.full((1, padding, CHANNELS, 32, 32), float("nan"))], dim=1)
    geometry = torch.cat([geometry, torch.full((1, padding, GEOMETRY), float("nan"))], dim=1)
    return x, (torch.arange(slices + padding) < slices).unsqueeze(0), geometry


def test_it_has_the_published_networks_size_but_for_gains_two_windows_more_and_the_geometry(net: Network) -> None:
    gains = sum(module.out_channels for module in net.modules() if isinstance(module, StandardizedConv3d))
    assert manifest_of(net).size == PUBLISHED + 2 * ONE_KERNEL + 6 * GEOMETRY + gains
    assert list(net.buffers()) == []


@pytest.mark.parametrize("slices", [1, pytest.param(15, marks=pytest.mark.slow), 20])
def test_it_has_study_logits_and_no_slice_logits(net: Network, slices: int) -> None:
    with torch.inference_mode():
        output = net(*_study(slices))
    assert output.study_logits.isfinite().all()
    assert [tuple(tensor.shape) for tensor in output[:3]] == [(1, 0, 6), (1, 6), (1, 1, 1024)]
    assert not net.has_slice_outputs


def test_neither_padding_nor_other_studies_of_the_batch_change_its_output(net: Network) -> None:
    padded, longer = _study(17, padding=3), _study(20)
    with torch.inference_mode():
        together = net(*(torch.cat(pair) for pair in zip(padded, longer, strict=True))).study_logits
        separate = torch.cat([net(*_study(17)).study_logits, net(*longer).study_logits])
    torch.testing.assert_close(together, separate)


def test_the_order_of_slices_matters_to_it(net: Network) -> None:
    x, mask, geometry = _study(20)
    with torch.inference_mode():
        assert not torch.allclose(net(x, mask, geometry).study_logits, net(x.flip(1), mask, geometry).study_logits)


def test_it_learns_from_the_studys_label_in_every_layer_and_from_no_slices_label() -> None:
    net = build("densenet121-3d", 0)
    x, mask, geometry = _study(16)
    study = torch.tensor([[0.0, 1, 0, 0, 0, 1]])
    known, unknown = (torch.full((1, 16, 6), value) for value in (1.0, float(MISSING)))
    output = net(x, mask, geometry)
    anchored = torch.ones(1, dtype=torch.bool)
    loss = reported_loss(output, Sample(x, mask, geometry, known, study, anchored))
    assert loss == reported_loss(output, Sample(x, mask, geometry, unknown, study, anchored))
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
