"""Commands for the hospital's view of the consortium: who is in it, and who counts."""

from pathlib import Path

import click

from site_client.commands.options import config_option
from site_client.config import load


@click.group()
def roster() -> None:
    """Show the hospitals of the consortium, and approve those added."""


@roster.command()
@config_option
def show(config: Path) -> None:
    """Show every hospital of the roster, and those that do not count yet."""
    from site_client.agent.commands.roster import show as run

    click.echo(run(load(config)))


@roster.command()
@click.option("--yes", is_flag=True, help="Approve without asking, for scripts.")
@config_option
def approve(yes: bool, config: Path) -> None:
    """Let the hospitals that wait count toward policy.cohort_min."""
    from site_client.agent.commands.roster import approve as run

    click.echo(run(load(config), lambda text: asked(text, yes=yes)))


def asked(text: str, *, yes: bool) -> bool:
    """Show a text, and ask whether it is right unless the answer was given on the command line."""
    click.echo(text)
    return yes or click.confirm("Are these the hospitals of your agreement?")
