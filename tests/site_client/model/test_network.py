"""The architectures: their sizes, and what no answer may depend on."""

import numpy as np
import pytest
import torch
from federation.labels import ANY
from torch import Tensor, nn

from site_client.errors import UnknownArchitecture
from site_client.model.network import CHANNELS, GEOMETRY, Output, SequenceNet, clamp_any
from site_client.model.registry import ARCHITECTURES, build, load_weights, manifest_of, weights_of

# torchvision's counts of the convolution kernels alone, without the classifier and the normalization layers; the first
# convolution reads five channels here and three there.
TORCHVISION_KERNELS = {"densenet121": 6_870_208, "resnet50": 23_454_912}
FIRST_KERNEL = 64 * 7 * 7


def _study(slices: int, padding: int = 0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(1, slices, CHANNELS, 64, 64, generator=source) * 2 - 1
    geometry = torch.rand(1, slices, GEOMETRY, generator=source)
    x = torch.cat([x, torch.full((1, padding, CHANNELS, 64, 64), float("nan"))], dim=1)
    geometry = torch.cat([geometry, torch.zeros(1, padding, GEOMETRY)], dim=1)
    return x, (torch.arange(slices + padding) < slices).unsqueeze(0), geometry


@pytest.fixture(scope="module")
def lite() -> SequenceNet:
    return build("lite", 3).eval()


def _ask(net: SequenceNet, study: tuple[Tensor, Tensor, Tensor]) -> Output:
    with torch.inference_mode():
        return net(*study)


@pytest.mark.parametrize("architecture", TORCHVISION_KERNELS)
def test_an_arm_has_the_published_networks_kernels(architecture: str) -> None:
    kernels = [module for module in build(architecture, 0).backbone.modules() if isinstance(module, nn.Conv2d)]
    counted = sum(kernel.weight.numel() for kernel in kernels)
    assert counted == TORCHVISION_KERNELS[architecture] + (CHANNELS - 3) * FIRST_KERNEL


@pytest.mark.parametrize("architecture", ["lite", "densenet121", "resnet50"])
def test_an_arm_keeps_no_statistics_of_anybody(architecture: str) -> None:
    net = build(architecture, 0)
    assert list(net.buffers()) == []
    assert set(net.state_dict()) == {spec.name for spec in manifest_of(net).tensors}


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (weights_of(build("lite", seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_weights_go_out_and_come_back(lite: SequenceNet) -> None:
    other = build("lite", 4).eval()
    load_weights(other, weights_of(lite))
    assert torch.equal(_ask(other, _study(3)).study_logits, _ask(lite, _study(3)).study_logits)


def test_an_unknown_arm_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(UnknownArchitecture, match="densenet121-gru"):
        build("resnext", 0)


def test_padding_changes_no_answer_even_if_it_holds_no_numbers(lite: SequenceNet) -> None:
    alone, padded = _ask(lite, _study(5)), _ask(lite, _study(5, padding=3))
    torch.testing.assert_close(padded.slice_logits[:, :5], alone.slice_logits)
    torch.testing.assert_close(padded.study_logits, alone.study_logits)
    assert not padded.slice_logits[:, 5:].any()


def test_the_chunk_changes_no_answer() -> None:
    net = build("lite", 3).eval()
    whole = _ask(net, _study(7))
    net.chunk = 2
    torch.testing.assert_close(_ask(net, _study(7)).slice_logits, whole.slice_logits)


@pytest.mark.parametrize(
    "architecture", [name for name in ARCHITECTURES if name in {"lite", "densenet121-mingru", "resnet50"}]
)
def test_every_arm_answers_for_slices_and_study_and_learns_from_both(architecture: str) -> None:
    net = build(architecture, 0)
    verdict = net(*_study(2))
    assert (verdict.slice_logits.shape, verdict.study_logits.shape) == ((1, 2, 6), (1, 6))
    said = [verdict.slice_logits, verdict.study_logits, verdict.alone.slice_logits]
    torch.cat([each.flatten() for each in said]).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_features_of_different_slices_differ_before_any_training(lite: SequenceNet) -> None:
    """A bright square moves them by a third of their length or more; under GroupNorm by a twelfth."""
    x = torch.full((1, 2, CHANNELS, 64, 64), -1.0)
    x[:, 1, 1, 24:40, 24:40] = 0.6
    embedding = _ask(lite, (x, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, GEOMETRY))).embedding[0]
    lengths = torch.linalg.vector_norm(embedding, dim=1)
    assert torch.linalg.vector_norm(embedding[1] - embedding[0]) > 0.25 * lengths.max()


def test_any_is_never_below_a_subtype_and_subtypes_stay() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    clamped = clamp_any(logits)
    assert (clamped[:, ANY : ANY + 1] >= clamped[:, :ANY]).all()
    assert torch.equal(clamped[:, :ANY], logits[:, :ANY])
