"""hemofed-aggregator backup: the state is copied while the service works."""

from pathlib import Path

import click

from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import print_json
from aggregator.states import Role
from aggregator.store import backup as copies
from aggregator.store.audit_mark import Mark


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@as_json
@click.pass_obj
def backup(context: CommandContext, folder: Path, as_json: bool) -> None:
    """Copy the state to FOLDER, which is new or empty. `serve` may run.

    Keep the copy as secret as the state: its keys can impersonate you.
    """
    if context.is_initialised:  # else `back_up` says that there is nothing to copy
        context.expect(Role.ADMIN)
    say("backed up to", folder, copies.back_up(context.settings(), folder), as_json)


def say(what: str, folder: Path, mark: Mark, as_json: bool) -> None:
    """Print where the copy is and how far its audit goes."""
    if as_json:
        print_json({"folder": str(folder.absolute()), "audit_entries": mark.entries, "audit_sha256": mark.sha256})
        return
    click.echo(f"State {what} {folder.absolute()}; its audit ends with row {mark.entries}, head {mark.sha256}.")
