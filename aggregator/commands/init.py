"""hemofed-aggregator init: the state folder is made, once."""

from datetime import UTC, datetime

import click

from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import print_json
from aggregator.errors import StateFolderRefused
from aggregator.migrations import upgrade
from aggregator.sites.authority import create_authority
from aggregator.store import open_store


@click.command()
@as_json
@click.pass_obj
def init(context: CommandContext, as_json: bool) -> None:
    """Make the consortium CA, the custodian's key and the database."""
    settings = context.settings()
    folder = settings.state.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "ca" / "ca.key").exists():
        raise StateFolderRefused(f"{folder} is initialised already; a new CA would lock out every site that joined")
    # The tables first: the CA's key is what says that a folder is initialised.
    store = open_store(settings.database_url)
    upgrade(store.engine)
    store.close()
    fingerprint = create_authority(folder / "ca", lambda: datetime.now(UTC)).fingerprint.hex()
    if as_json:
        print_json({"folder": str(folder.absolute()), "ca_fingerprint": fingerprint})
        return
    click.echo(f"State folder    {folder.absolute()}  (back it up; whoever reads it can pose as the coordinator)")
    click.echo(f"CA fingerprint  {fingerprint}")
    click.echo("Next:")
    click.echo("  hemofed-aggregator admin add NAME     who may log in to the dashboard")
    click.echo("  hemofed-aggregator serve              listen for sites")
    click.echo("  hemofed-aggregator site invite NAME   a token for one hospital")
