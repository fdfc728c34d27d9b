"""Fresh weights as a model file: where a run starts."""

from pathlib import Path

from federation.manifest import save_model

from site_client.model.registry import build, model_of


def write_fresh(arm: str, seed: int, out: Path) -> str:
    """Writes the arm's initial model; one sentence about it. Raises UnknownArm. The same seed gives the same file."""
    model = model_of(build(arm, seed))
    save_model(out, model)
    return f"{arm}: {model.manifest.size:,} parameters, digest {model.digest.hex()}, in {out}"
