"""The command that makes the model a run starts with."""

from pathlib import Path

import click

from site_client.commands.options import FILE


@click.command("init-weights")
@click.option("--architecture", required=True, help="Network, a name of the registry.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@click.option("--from", "published", type=FILE, help="Published weights for an -affine network: .pth or .safetensors.")
@click.option("--licence", default="", help="Of --from, as you know it. It stands in the plan and on the dashboard.")
@click.option("--out", required=True, type=FILE, help="A .safetensors file.")
def init_weights(architecture: str, seed: int, published: Path | None, licence: str, out: Path) -> None:
    """Write initial weights of a network, for a coordinator.

    Without --from they are fresh. A file of ImageNet weights is for research only, by ImageNet's own terms.
    """
    from site_client.model.initial_weights import write_fresh, write_published

    if published is None:
        click.echo(write_fresh(architecture, seed, out))
        return
    if not licence.strip():
        raise click.UsageError("expected --licence with --from, got none; say what the file's publisher allows")
    click.echo(write_published(architecture, seed, published, licence, out))
