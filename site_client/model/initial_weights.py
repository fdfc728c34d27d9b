"""Initial weights as a model file: the start of a run."""

from pathlib import Path

from federation.manifest import save_model

from site_client.model.registry import build, model_of


def write_fresh(architecture: str, seed: int, out: Path) -> str:
    """Write the initial model of an architecture. One seed gives one file.

    Args:
        architecture: A name of the registry.
        seed: Seed of the weights.
        out: The safetensors file to write.

    Returns:
        One sentence with the number of parameters and the digest.

    Raises:
        UnknownArchitecture: The registry has no such name.
    """
    model = model_of(build(architecture, seed))
    save_model(out, model)
    return f"{architecture}: {model.manifest.size:,} parameters, digest {model.digest.hex()}, in {out}"
