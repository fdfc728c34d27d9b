"""hemofed-custodian: the root of the custodian's command line. Each command is in a file of `custodian.commands`.

It needs no network, no database and no running aggregator. A refusal is one sentence on standard error and exit code 1.
"""

import os
from pathlib import Path
from typing import Any

import click
from federation.errors import FederationError

from aggregator.commands.lazy_group import LazyCommand, LazyGroup
from aggregator.errors import AggregatorError

DEFAULT_FOLDER = Path.home() / "hemofed-custodian"


class CustodianGroup(LazyGroup):
    """Turns refusals into one line and exit code 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and print what it refuses.

        Raises:
            click.ClickException: For a refusal, or a file that cannot be read or written.
        """
        try:
            return super().invoke(ctx)
        except (AggregatorError, FederationError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise click.ClickException(f"{error.strerror or error}{where}; put it right and try again") from error


@click.group(cls=CustodianGroup)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default="~/hemofed-custodian",
    envvar="HEMOFED_CUSTODIAN_FOLDER",
    help="The custodian's folder: the key under a passphrase, and what was signed last.",
)
@click.version_option(package_name="hemofed")
@click.pass_context
def main(ctx: click.Context, folder: Path) -> None:
    """Sign rosters and plans, on a machine of its own."""
    os.umask(0o077)  # nothing in the folder is for other users of this machine
    ctx.obj = folder


for name, module, short_help in (
    ("init", "keys", "Make the custodian's key."),
    ("review", "requests", "Show the request in FILE in words."),
    ("show", "keys", "Show the custodian's key in six words, and how it came to be."),
    ("sign", "requests", "Show the request in FILE in words, ask, and sign it."),
    ("succeed", "keys", "Make a new key in NEW_FOLDER, signed by this one."),
    ("take-over", "keys", "Take the key out of the aggregator folder FOLDER of version 0.1.0."),
):
    main.add_command(LazyCommand(name, f"aggregator.custodian.commands.{module}", short_help))
