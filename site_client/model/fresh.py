"""Fresh weights as a model file: where a run starts."""

from pathlib import Path

from federation.manifest import Model, save_model

from site_client.model.registry import build, manifest_of, weights_of


def write_fresh(arm: str, seed: int, out: Path) -> str:
    """Writes the arm's initial model; one sentence about it. Raises UnknownArm. The same seed gives the same file."""
    net = build(arm, seed)
    manifest = manifest_of(net)
    model = Model(manifest, manifest.flatten(weights_of(net)))
    save_model(out, model)
    return f"{arm}: {manifest.size:,} parameters, digest {model.digest.hex()}, in {out}"
