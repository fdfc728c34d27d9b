"""The command that makes the model a run starts with."""

from pathlib import Path

import click

from site_client.commands.options import FILE


@click.command("init-weights")
@click.option("--architecture", required=True, help="Network, a name of the registry.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@click.option("--out", required=True, type=FILE, help="A .safetensors file.")
def init_weights(architecture: str, seed: int, out: Path) -> None:
    """Write initial weights of a network, for a coordinator."""
    from site_client.model.initial_weights import write_fresh

    click.echo(write_fresh(architecture, seed, out))
