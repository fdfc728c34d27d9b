"""Initial weights as a model file: the start of a run."""

from pathlib import Path

from federation.description import ModelDescription
from federation.manifest import save_model
from torch import nn

from site_client.model.inputs import PIPELINE_VERSION
from site_client.model.parts import parts_of
from site_client.model.published import load_published
from site_client.model.registry import build, model_of


def write_fresh(architecture: str, seed: int, out: Path) -> str:
    """Write fresh weights of an architecture. One seed gives one file.

    Args:
        architecture: A name of the registry.
        seed: Seed of the weights.
        out: The safetensors file to write.

    Returns:
        One sentence with the number of parameters and the digest.

    Raises:
        UnknownArchitecture: The registry has no such name.
    """
    return _write(build(architecture, seed), architecture, f"fresh weights, seed {seed}", out)


def write_published(architecture: str, seed: int, published: Path, licence: str, out: Path) -> str:
    """Write an architecture whose backbone has published weights.

    Args:
        architecture: An `affine` one.
        seed: Seed of the weights behind the backbone.
        published: A .pth or .safetensors file, see `published`.
        licence: Of that file, as the user states it.
        out: The safetensors file to write.

    Returns:
        As `write_fresh`.

    Raises:
        UnknownArchitecture: The registry has no such name.
        WeightsRefused: The file is not one of published weights of this architecture.
    """
    net = build(architecture, seed)
    origin = load_published(net, architecture, published, licence)
    return _write(net, architecture, str(origin), out)


def _write(net: nn.Module, architecture: str, origin: str, out: Path) -> str:
    model, parts = model_of(net), parts_of(net)
    description = ModelDescription(
        architecture,
        pipeline=PIPELINE_VERSION,
        origin=origin,
        parts="".join(parts[tensor.name].letter for tensor in model.manifest.tensors),
    )
    save_model(out, model, description=description)
    return f"{architecture}: {model.manifest.size:,} parameters, digest {model.digest.hex()}, {origin}, in {out}"
