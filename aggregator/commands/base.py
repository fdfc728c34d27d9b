"""The start of every command of the coordinator: its state folder, and the printing of refusals.

The root imports this module for `--help`, so the modules that need SQLAlchemy are imported in the functions that use
them. They take half a second.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from federation.errors import FederationError

from aggregator.commands.lazy_group import LazyGroup
from aggregator.config import AggregatorSettings, load_settings
from aggregator.errors import AggregatorError, StateFolderRefused

if TYPE_CHECKING:
    from aggregator.context import AppContext
    from aggregator.sites.authority import Authority
    from aggregator.sites.enrolment import EnrolmentService

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
of_run = click.option(
    "--run",
    "run_id",
    metavar="RUN",
    help="The beginning of its id; default: in progress, else newest.",
)


class RootGroup(LazyGroup):
    """Turns refusals into one line and exit code 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and print what it refuses.

        Raises:
            click.ClickException: for a refusal, a full disk, a file that cannot be read, a locked database.
        """
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click handles them; a closed output ends the program without a word
        except (AggregatorError, FederationError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise click.ClickException(f"{error.strerror or error}{where}; put it right and try again") from error
        except Exception as error:
            # A command that does not use the database has not imported it, and never gets here with its error.
            from sqlalchemy.exc import OperationalError

            if not isinstance(error, OperationalError):
                raise
            sentence = f"the database refused: {error.orig}; is the disk full, or another program holding it?"
            raise click.ClickException(sentence) from error


@dataclass(frozen=True)
class CommandContext:
    """The argument of every command."""

    config: Path  # aggregator.toml

    def settings(self) -> AggregatorSettings:
        """Read aggregator.toml.

        Raises:
            ConfigRefused: when it cannot be used.
        """
        return load_settings(self.config)

    @property
    def is_initialised(self) -> bool:
        """Whether there are settings and a state folder, so that `app` connects."""
        # `init` writes this file last, so with it everything else of the CA is there.
        return self.config.exists() and (self.settings().state.folder / "ca" / "ca.key").exists()

    def app(self) -> "AppContext":
        """Connect to the state folder.

        Raises:
            StateFolderRefused: before `init`.
        """
        from aggregator.context import open_context
        from aggregator.migrations import revision_of

        settings = self.settings()
        if not self.is_initialised:
            raise StateFolderRefused(f"{settings.state.folder} holds no CA; run `hemofed-aggregator init` first")
        app = open_context(settings)
        if revision_of(app.store.engine) is None:
            raise StateFolderRefused(f"{settings.state.folder} holds no tables; run `hemofed-aggregator init` again")
        return app

    def enrolment(self) -> "EnrolmentService":
        """Connect to the state folder and read the CA.

        Raises:
            StateFolderRefused: before `init`, or without a usable CA.
        """
        from aggregator.sites.enrolment import EnrolmentService

        app = self.app()
        return EnrolmentService(app.store, load_authority(app), app.settings.enrolment, app.clock, app.random)


def load_authority(app: "AppContext") -> "Authority":
    """Read the CA of a state folder.

    Raises:
        StateFolderRefused: when a file of it is missing or unreadable.
    """
    from aggregator.sites.authority import Authority

    return Authority(app.settings.state.folder / "ca", app.clock)
