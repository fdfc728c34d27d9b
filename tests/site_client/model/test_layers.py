"""Standardized kernels, affine layers, and features that differ between slices before any training."""

import pytest
import torch
from torch import Tensor, nn

from site_client.model.layers import Affine, StandardizedConv2d, StandardizedConv3d, start_affine_layers
from site_client.model.network import CHANNELS
from site_client.model.registry import build
from site_client.model.synthetic import synthetic_slices


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_standardized_convolution_has_kernels_of_mean_0_and_variance_gain_squared_by_fan_in(
    dimensions: int,
) -> None:
    kind, plain = (StandardizedConv2d, nn.Conv2d) if dimensions == 2 else (StandardizedConv3d, nn.Conv3d)
    layer = kind(4, 6, kernel_size=3, padding=1, bias=False)
    reference = plain(4, 6, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(3 * _random(*layer.weight.shape) + 5)
        layer.gain.copy_(_random(*layer.gain.shape, seed=1))
        rows = layer.weight.flatten(1)
        kernels = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True) / rows.shape[1] ** 0.5
        reference.weight.copy_(kernels.view_as(layer.weight) * layer.gain)
    x = _random(2, 4, *[5] * dimensions)
    torch.testing.assert_close(layer(x), reference(x), rtol=1e-4, atol=1e-4)


def test_a_kernel_of_equal_weights_stays_finite() -> None:
    layer = StandardizedConv2d(4, 6, kernel_size=3)
    nn.init.constant_(layer.weight, 0.5)
    layer(_random(1, 4, 5, 5)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def test_an_affine_layer_is_batch_norm_in_eval_mode_with_its_statistics_folded_in() -> None:
    norm = nn.BatchNorm2d(5).eval()
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    with torch.no_grad():
        for value in (norm.weight, norm.bias, mean):
            value.copy_(_random(5, seed=2))
        variance.copy_(_random(5).abs() + 0.1)
    layer = Affine(5)
    with torch.no_grad():
        layer.weight.copy_(norm.weight / (variance + norm.eps).sqrt())
        layer.bias.copy_(norm.bias - layer.weight * mean)
    x = _random(2, 5, 7, 7)
    torch.testing.assert_close(layer(x), norm(x), rtol=1e-5, atol=1e-5)


def test_affine_layers_start_at_mean_0_and_variance_1_in_every_channel_but_silent_ones() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Affine(8), nn.ReLU(), nn.Conv2d(8, 4, 3), Affine(4))
    with torch.no_grad():
        net.get_parameter("0.weight")[0] = 0  # a silent channel
    x = 50 * _random(6, 3, 12, 12) + 9
    start_affine_layers(net, x)
    first, last = net[:2](x), net(x)
    variance, mean = torch.var_mean(last, dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, torch.ones(4), atol=0.05, rtol=0)  # a floor keeps it below 1
    assert first[:, 0].abs().max() < 1e-3
    assert not net[1]._forward_hooks


def test_synthetic_slices_are_the_same_for_a_seed_and_look_like_an_input() -> None:
    first, again, other = (synthetic_slices(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (16, CHANNELS, 64, 64)
    assert first.abs().max() <= 1
    assert (first[:, :, 0, 0] == -1).all()  # air in the corners


@pytest.mark.parametrize(
    "architecture",
    [
        "densenet121",
        pytest.param("resnet50", marks=pytest.mark.slow),
        "densenet121-affine",
        pytest.param("efficientnet-lite0-affine", marks=pytest.mark.slow),
    ],
)
def test_features_of_different_heads_differ_before_any_training(architecture: str) -> None:
    """Under GroupNorm and published kernels their spread is .07 of their length: all slices look alike."""
    net = build(architecture, 2).eval()
    with torch.inference_mode():
        features = net.get_submodule("backbone")(synthetic_slices(torch.Generator().manual_seed(9)))
    lengths = torch.linalg.vector_norm(features, dim=1)
    spread = torch.linalg.vector_norm(features - features.mean(dim=0), dim=1)
    assert (spread / lengths).mean() > 0.25
