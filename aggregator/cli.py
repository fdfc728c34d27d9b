"""hemofed-aggregator: the coordinator's command line. Each command parses, calls one use case, and prints.

Every command works on the state folder and database directly, so it needs no running `serve`, and none minds one. What
it changes there, `serve` sees at its next look. Refusals are one sentence on standard error and exit code 1.
"""

import os
import sys
from pathlib import Path

import click
import structlog

from aggregator.commands import listings
from aggregator.commands.admin import admin
from aggregator.commands.base import CommandContext, CommandGroup, as_json, now, print_json, print_rows
from aggregator.commands.model import model
from aggregator.commands.run import run
from aggregator.commands.site import site
from aggregator.config import load_settings
from aggregator.errors import StateFolderRefused
from aggregator.migrations import upgrade
from aggregator.sites.authority import create_authority
from aggregator.store import open_store, people

DEFAULT_CONFIG = Path("/etc/hemofed/aggregator.toml")


@click.group(cls=CommandGroup)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    envvar="HEMOFED_AGGREGATOR_CONFIG",
    help="Settings; deploy/aggregator.toml explains every key.",
)
@click.version_option(package_name="hemofed")
@click.pass_context
def main(ctx: click.Context, config: Path) -> None:
    """Coordinate a federation of hospitals."""
    os.umask(0o077)  # nothing in the state folder is for other users of this machine
    _log_to_stderr()
    ctx.obj = CommandContext(lambda: load_settings(config))


@main.command()
@as_json
@click.pass_obj
def init(context: CommandContext, as_json: bool) -> None:
    """Make the consortium CA, the custodian's key and the database."""
    settings = context.settings()
    folder = settings.state.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "ca" / "ca.key").exists():
        raise StateFolderRefused(f"{folder} is initialised already; a new CA would lock out every site that joined")
    store = open_store(settings.database_url)
    upgrade(store.engine)
    store.close()
    fingerprint = create_authority(folder / "ca", now).fingerprint.hex()
    if as_json:
        print_json({"folder": str(folder.absolute()), "ca_fingerprint": fingerprint})
        return
    click.echo(f"State folder    {folder.absolute()}  (back it up; whoever reads it can pose as the coordinator)")
    click.echo(f"CA fingerprint  {fingerprint}")
    click.echo("Next:")
    click.echo("  hemofed-aggregator admin add NAME     who may log in to the dashboard")
    click.echo("  hemofed-aggregator serve              listen for sites")
    click.echo("  hemofed-aggregator site invite NAME   a token for one hospital")


@main.command()
@click.pass_obj
def serve(context: CommandContext) -> None:
    """Listen for sites, run the rounds, show the dashboard.

    Until SIGTERM or Ctrl-C; then calls in progress get a few seconds. Any moment is a good one to stop.
    """
    from aggregator.serve import serve as serve_forever  # gRPC and the web server, which no other command needs

    app = context.app()
    upgrade(app.store.engine)
    app.store.close()
    serve_forever(app.settings)


@main.command()
@click.option("--subject", help="Only what concerns this, for example site:st-mary or run:3f2a")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@as_json
@click.pass_obj
def audit(context: CommandContext, subject: str | None, limit: int, as_json: bool) -> None:
    """Who changed what and why, newest first."""
    with context.app().store.read() as session:
        rows = [listings.audit_row(row) for row in people.audit_trail(session, subject, limit)]
    print_rows(rows, ("at", "actor", "subject", "before", "after", "why"), as_json)


for group in (site, run, model, admin):
    main.add_command(group)


def _log_to_stderr() -> None:
    """Standard output belongs to what a command prints."""
    render = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(
        processors=[structlog.processors.add_log_level, stamp, render],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
