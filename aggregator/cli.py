"""hemofed-aggregator: the root of the coordinator's command line. Each command is a file of `aggregator.commands`.

Every command works on the state folder and the database directly. None needs a running `serve`, and all may run beside
one, which sees their changes at its next look. A refusal is one sentence on standard error and exit code 1.
"""

import os
from pathlib import Path

import click

from aggregator.commands.base import CommandContext, RootGroup
from aggregator.commands.lazy_group import LazyCommand
from aggregator.logging_setup import configure_logging

DEFAULT_CONFIG = Path("/etc/hemofed/aggregator.toml")


@click.group(cls=RootGroup)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    envvar="HEMOFED_AGGREGATOR_CONFIG",
    help="Settings; deploy/aggregator.toml explains every key.",
)
@click.option("--as", "as_name", metavar="NAME", help="Act as this person of `admin list`; default: your Unix user.")
@click.version_option(package_name="hemofed")
@click.pass_context
def main(ctx: click.Context, config: Path, as_name: str | None) -> None:
    """Coordinate a federation of hospitals."""
    os.umask(0o077)  # nothing in the state folder is for other users of this machine
    configure_logging()
    ctx.obj = CommandContext(config, as_name)


for name, short_help in (
    ("admin", "People who may log in to the dashboard, and their roles."),
    ("alert", "Conditions that need a person: list, test."),
    ("audit", "Print the changes with their actors and reasons, newest first."),
    ("backup", "Copy the state to FOLDER, which is new or empty."),
    ("config", "The settings: check, show."),
    ("doctor", "Look at database, disk, keys, certificates, addresses, clock and roster."),
    ("init", "Make the consortium CA and the database, and certify the custodian's key."),
    ("model", "Models of a run: list, compare, export."),
    ("plan", "Plans: check, export for the custodian."),
    ("restore", "Make the state folder, which is new or empty, from a backup."),
    ("roster", "The roster: show, export for the custodian, import."),
    ("run", "Runs: start, queue, watch, explain, close a round's training, pause, resume, roll back, abort."),
    ("serve", "Listen for sites, run the rounds, show the dashboard."),
    ("site", "Hospitals: invite, approve, list, show, suspend, resume, rekey, rename, revoke."),
):
    main.add_command(LazyCommand(name, f"aggregator.commands.{name}", short_help))
