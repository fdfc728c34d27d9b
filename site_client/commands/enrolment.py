"""Commands that begin and end a site's membership: join, leave."""

from pathlib import Path

import click

from site_client.commands.options import config_option
from site_client.commands.roster import asked
from site_client.config import load


@click.command()
@click.argument("address")
@click.argument("token")
@click.option("--yes", is_flag=True, help="Accept the first roster without asking, for scripts.")
@config_option
def join(address: str, token: str, yes: bool, config: Path) -> None:
    """Enrol this host with the consortium.

    ADDRESS is host:port, or a host alone for port 8444. TOKEN comes from the coordinator. The whole first roster is
    shown and has to be confirmed.
    """
    from site_client.agent.commands.join import join as run

    run(load(config), address, token, say=click.echo, confirm=lambda text: asked(text, yes=yes))


@click.command()
@click.confirmation_option(prompt="Leave for good? Only a new invitation by the coordinator brings this site back")
@config_option
def leave(config: Path) -> None:
    """Leave the consortium for good, and tell the coordinator.

    Stop the agent first; afterwards the package may be purged.
    """
    from site_client.agent.commands.leave import leave as run

    click.echo(run(load(config)))
