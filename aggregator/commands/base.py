"""What every command of the coordinator starts from and ends with: the state folder, refusals, printing."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
from federation.errors import FederationError
from sqlalchemy.exc import OperationalError

from aggregator.commands import listings
from aggregator.config import AggregatorSettings
from aggregator.context import AppContext, open_context
from aggregator.errors import AggregatorError, StateFolderRefused
from aggregator.migrations import revision_of
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
of_run = click.option("--run", "run_id", metavar="RUN", help="Run id or the beginning of one; default: the newest.")


class CommandGroup(click.Group):
    """Turns our refusals into one line and exit code 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (AggregatorError, FederationError) as error:
            raise click.ClickException(str(error)) from error
        except OperationalError as error:
            told = f"the database refused: {error.orig}; is the disk full, or another program holding it?"
            raise click.ClickException(told) from error
        except BrokenPipeError:
            raise  # click ends quietly when whoever read the output has gone
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            told = f"{error.strerror or error}{where}; put it right and try again"
            raise click.ClickException(told) from error


@dataclass(frozen=True)
class CommandContext:
    """What every command starts from."""

    settings: Callable[[], AggregatorSettings]

    def app(self) -> AppContext:
        """Raises: StateFolderRefused before `init`, or when the tables are another version's."""
        settings = self.settings()
        if not (settings.state.folder / "ca" / "ca.key").exists():
            raise StateFolderRefused(f"{settings.state.folder} holds no CA; run `hemofed-aggregator init` first")
        app = open_context(settings)
        if revision_of(app.store.engine) is None:
            raise StateFolderRefused(f"{settings.state.folder} holds no tables; run `hemofed-aggregator init` again")
        return app

    def enrolment(self) -> EnrolmentService:
        app = self.app()
        return EnrolmentService(app.store, load_authority(app.settings), app.settings.enrolment, app.clock, app.random)


def load_authority(settings: AggregatorSettings) -> Authority:
    """The CA of a state folder. Raises: StateFolderRefused."""
    return Authority(settings.state.folder / "ca", now)


def print_rows(rows: list[listings.Row], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        click.echo(listings.table(rows, columns))


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def now() -> datetime:
    return datetime.now(UTC)
