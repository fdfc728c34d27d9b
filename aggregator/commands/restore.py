"""hemofed-aggregator restore: a backup becomes the state."""

from pathlib import Path

import click

from aggregator.commands.backup import say
from aggregator.commands.base import CommandContext, as_json
from aggregator.store import backup as copies


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@as_json
@click.pass_obj
def restore(context: CommandContext, folder: Path, as_json: bool) -> None:
    """Make the state folder, which is new or empty, from a backup.

    FOLDER is what `backup` made. Then start `serve`.
    """
    settings = context.settings()
    context.require_owner(settings.state.folder)
    say("restored from", folder, copies.restore(settings, folder), as_json)
