"""The architectures: sizes, initial weights, and outputs that depend on no padding and no chunk."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from federation.architectures import MANIFEST_DIGESTS
from federation.labels import ANY, LABELS
from torch import Tensor, nn

from site_client.errors import UnknownArchitecture
from site_client.model.network import (
    CHANNELS,
    GEOMETRY,
    PRIOR_SLICE,
    PRIOR_STUDY,
    Network,
    Output,
    SequenceNet,
    clamp_any,
)
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
    return _lite(3)


def _lite(seed: int) -> SequenceNet:
    net = build("lite", seed)
    assert isinstance(net, SequenceNet)
    return net.eval()


def _run(net: Network, study: tuple[Tensor, Tensor, Tensor]) -> Output:
    with torch.inference_mode():
        output: Output = net(*study)
    return output


@pytest.mark.parametrize("architecture", TORCHVISION_KERNELS)
def test_an_architecture_has_the_published_networks_kernels(architecture: str) -> None:
    backbone = build(architecture, 0).get_submodule("backbone")
    kernels = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    counted = sum(kernel.weight.numel() for kernel in kernels)
    assert counted == TORCHVISION_KERNELS[architecture] + (CHANNELS - 3) * FIRST_KERNEL


def test_the_contract_lists_every_architecture() -> None:
    assert list(MANIFEST_DIGESTS) == list(ARCHITECTURES)


@pytest.mark.parametrize(
    "architecture",
    [name if name.startswith("lite") else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES],
)
def test_the_contract_has_the_tensors_of_an_architecture(architecture: str) -> None:
    assert manifest_of(build(architecture, 0)).digest.hex() == MANIFEST_DIGESTS[architecture]


@pytest.mark.parametrize("architecture", ["lite", "densenet121", "resnet50"])
def test_an_architecture_keeps_no_statistics_of_patients(architecture: str) -> None:
    net = build(architecture, 0)
    assert list(net.buffers()) == []
    assert set(net.state_dict()) == {spec.name for spec in manifest_of(net).tensors}


def test_a_process_that_trains_lite_does_not_wait_for_the_import_of_monai() -> None:
    program = "import sys; from site_client.trainer import job; from site_client.model.registry import build; "
    program += 'build("lite", 1); assert "torch" in sys.modules; sys.exit("monai" in sys.modules)'
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (weights_of(build("lite", seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_weights_go_out_and_come_back(lite: SequenceNet) -> None:
    other = _lite(4)
    load_weights(other, weights_of(lite))
    assert torch.equal(_run(other, _study(3)).study_logits, _run(lite, _study(3)).study_logits)


def test_an_unknown_architecture_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(UnknownArchitecture, match="densenet121-gru"):
        build("resnext", 0)


def test_padding_changes_no_output_even_if_it_is_nan(lite: SequenceNet) -> None:
    plain, padded = _run(lite, _study(5)), _run(lite, _study(5, padding=3))
    torch.testing.assert_close(padded.slice_logits[:, :5], plain.slice_logits)
    torch.testing.assert_close(padded.study_logits, plain.study_logits)
    assert not padded.slice_logits[:, 5:].any()


def test_the_chunk_changes_no_output() -> None:
    net = _lite(3)
    whole = _run(net, _study(7))
    net.chunk = 2
    torch.testing.assert_close(_run(net, _study(7)).slice_logits, whole.slice_logits)


@pytest.mark.parametrize(
    "architecture", [name for name in ARCHITECTURES if name in {"lite", "densenet121-mingru", "resnet50"}]
)
def test_every_parameter_has_a_gradient_from_slice_and_study_logits(architecture: str) -> None:
    net = build(architecture, 0)
    output = net(*_study(2))
    assert (output.slice_logits.shape, output.study_logits.shape) == ((1, 2, 6), (1, 6))
    logits = [output.slice_logits, output.study_logits, output.by_slice.slice_logits]
    torch.autograd.backward(torch.cat([tensor.flatten() for tensor in logits]).sum())
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_features_of_different_slices_differ_before_any_training(lite: SequenceNet) -> None:
    """A bright square moves them by a third of their length or more; under GroupNorm by a twelfth."""
    x = torch.full((1, 2, CHANNELS, 64, 64), -1.0)
    x[:, 1, 1, 24:40, 24:40] = 0.6
    embedding = _run(lite, (x, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, GEOMETRY))).embedding[0]
    lengths = torch.linalg.vector_norm(embedding, dim=1)
    assert torch.linalg.vector_norm(embedding[1] - embedding[0]) > 0.25 * lengths.max()


def test_any_is_never_below_a_subtype_and_subtypes_stay() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    clamped = clamp_any(logits)
    assert (clamped[:, ANY : ANY + 1] >= clamped[:, :ANY]).all()
    assert torch.equal(clamped[:, :ANY], logits[:, :ANY])


@pytest.mark.parametrize("architecture", ["lite", "densenet121-3d"])
def test_an_untrained_network_gives_each_label_its_own_prior(architecture: str) -> None:
    net = build(architecture, 0).eval()
    heads = ("reader.slice_head", "reader.sequence.head") if architecture == "lite" else ("study_head",)
    with torch.no_grad():
        for head in heads:
            net.get_parameter(f"{head}.weight").zero_()
    x = torch.zeros(1, 3, CHANNELS, 32, 32)
    output = _run(net, (x, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, GEOMETRY)))
    assert dict(zip(LABELS, output.study_logits[0].sigmoid().tolist(), strict=True)) == pytest.approx(dict(PRIOR_STUDY))
    for row in output.slice_logits[0]:
        assert dict(zip(LABELS, row.sigmoid().tolist(), strict=True)) == pytest.approx(dict(PRIOR_SLICE))


def test_the_priors_rank_the_labels_as_rsna_2019_does() -> None:
    for prior in (PRIOR_SLICE, PRIOR_STUDY):
        assert min(prior, key=prior.__getitem__) == "epidural"
        assert max(prior, key=prior.__getitem__) == "any"
    assert all(PRIOR_SLICE[label] < PRIOR_STUDY[label] for label in LABELS)
    assert PRIOR_STUDY["intraventricular"] < PRIOR_STUDY["intraparenchymal"]
