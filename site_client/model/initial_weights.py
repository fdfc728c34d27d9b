"""Fresh weights as a model file: where a run starts."""

from pathlib import Path

from federation.manifest import save_model

from site_client.model.registry import build, model_of


def write_fresh(architecture: str, seed: int, out: Path) -> str:
    """Writes the initial model of an architecture and returns one sentence about it. One seed gives one file.

    Raises UnknownArchitecture.
    """
    model = model_of(build(architecture, seed))
    save_model(out, model)
    return f"{architecture}: {model.manifest.size:,} parameters, digest {model.digest.hex()}, in {out}"
