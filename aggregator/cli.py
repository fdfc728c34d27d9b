"""hemofed-aggregator: the coordinator's command line. Each command parses, calls one use case, and prints.

Every command works on the state folder and database directly, so it needs no running `serve`, and none minds one. What
it changes there, `serve` sees at its next look. Refusals are one sentence on standard error and exit code 1.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import structlog
from federation.errors import FederationError
from federation.plan import sign_plan
from sqlalchemy.exc import OperationalError

from aggregator import listings, model_export, plan_file, runs
from aggregator.ca import Authority, create_authority
from aggregator.config import Settings, load_settings
from aggregator.enrolment import Enrolment
from aggregator.errors import AggregatorError, StateFolderRefused
from aggregator.hub import Hub, open_hub
from aggregator.migrations import revision_of, upgrade
from aggregator.store import Change, open_store, people, sites
from aggregator.tables import Run

DEFAULT_CONFIG = Path("/etc/hemofed/aggregator.toml")
SALT_BYTES = 16

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
of_run = click.option("--run", "run_id", metavar="RUN", help="Run id or the beginning of one; default: the newest.")


class _Door(click.Group):
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
class Context:
    """What every command starts from."""

    settings: Callable[[], Settings]

    def hub(self) -> Hub:
        """Raises: StateFolderRefused before `init`, or when the tables are another version's."""
        settings = self.settings()
        if not (settings.state.folder / "ca" / "ca.key").exists():
            raise StateFolderRefused(f"{settings.state.folder} holds no CA; run `hemofed-aggregator init` first")
        hub = open_hub(settings)
        if revision_of(hub.store.engine) is None:
            raise StateFolderRefused(f"{settings.state.folder} holds no tables; run `hemofed-aggregator init` again")
        return hub

    def enrolment(self) -> Enrolment:
        hub = self.hub()
        return Enrolment(hub.store, open_authority(hub.settings), hub.settings.enrolment, hub.clock, hub.random)


def open_authority(settings: Settings) -> Authority:
    """The CA of a state folder. Raises: StateFolderRefused."""
    return Authority(settings.state.folder / "ca", _now)


@click.group(cls=_Door)
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
    ctx.obj = Context(lambda: load_settings(config))


@main.command()
@as_json
@click.pass_obj
def init(context: Context, as_json: bool) -> None:
    """Make the consortium CA, the custodian's key and the database."""
    settings = context.settings()
    folder = settings.state.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "ca" / "ca.key").exists():
        raise StateFolderRefused(f"{folder} is initialised already; a new CA would lock out every site that joined")
    store = open_store(settings.database_url)
    upgrade(store.engine)
    store.close()
    fingerprint = create_authority(folder / "ca", _now).fingerprint.hex()
    if as_json:
        _print_json({"folder": str(folder.absolute()), "ca_fingerprint": fingerprint})
        return
    click.echo(f"State folder    {folder.absolute()}  (back it up; whoever reads it can pose as the coordinator)")
    click.echo(f"CA fingerprint  {fingerprint}")
    click.echo("Next:")
    click.echo("  hemofed-aggregator admin add NAME     who may log in to the dashboard")
    click.echo("  hemofed-aggregator serve              listen for sites")
    click.echo("  hemofed-aggregator site invite NAME   a token for one hospital")


@main.command()
@click.pass_obj
def serve(context: Context) -> None:
    """Listen for sites, run the rounds, show the dashboard.

    Until SIGTERM or Ctrl-C; then calls in progress get a few seconds. Any moment is a good one to stop.
    """
    from aggregator.serve import serve as serve_forever  # gRPC and the web server, which no other command needs

    hub = context.hub()
    upgrade(hub.store.engine)
    hub.store.close()
    serve_forever(hub.settings)


@main.group()
def site() -> None:
    """Hospitals: invite, approve, list, revoke."""


@site.command("invite")
@click.argument("name")
@click.option("--auto-approve", is_flag=True, help="Approve on joining, without comparing words. For demos.")
@as_json
@click.pass_obj
def site_invite(context: Context, name: str, auto_approve: bool, as_json: bool) -> None:
    """Print a one-time token for the hospital NAME. It is shown once."""
    enrolment = context.enrolment()
    token = enrolment.invite(name, auto_approve=auto_approve).text()
    hours = enrolment.settings.invitation_hours
    if as_json:
        _print_json({"site": name, "token": token, "valid_hours": hours})
        return
    click.echo(token)
    click.echo(f"Hand it to {name} on a trusted way. It works once, within {hours} hours:", err=True)
    click.echo("  hemofed-site join ADDRESS TOKEN", err=True)


@site.command("list")
@as_json
@click.pass_obj
def site_list(context: Context, as_json: bool) -> None:
    """Every site, and what it last said of itself."""
    with context.hub().store.read() as session:
        rows = listings.site_rows(session)
    columns = ("site", "standing", "state", "reasons", "progress_percent", "seen_at", "words")
    _print_rows(rows, columns, as_json)


@site.command("approve")
@click.argument("name")
@click.option("--words", help="The six words as read to you on the telephone; without it you are asked.")
@click.pass_obj
def site_approve(context: Context, name: str, words: str | None) -> None:
    """Let NAME in, after comparing its six words by telephone."""
    enrolment = context.enrolment()
    with enrolment.store.read() as session:
        stated = sites.get(session, name).fingerprint
    if words is None:
        click.echo(f"Call {name}. Its screen must show:\n\n  {stated}\n")
        click.confirm("Are these the words?", abort=True)
    elif words.split() != stated.split():
        raise click.ClickException(f"expected the words of {name}, got others; do not approve, find out who joined")
    enrolment.approve(name, stated)
    click.echo(f"{name} is approved and stands in the new roster.")


@site.command("revoke")
@click.argument("name")
@click.pass_obj
def site_revoke(context: Context, name: str) -> None:
    """Shut NAME out, from its next call on. Withdraws an invitation, too."""
    context.enrolment().revoke(name)
    click.echo(f"{name} is revoked.")


@main.group()
def run() -> None:
    """Runs: start, watch, pause, resume, abort."""


@run.command("start")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The initial model, safetensors.")
@as_json
@click.pass_obj
def run_start(context: Context, plan: Path, model: Path, as_json: bool) -> None:
    """Sign PLAN (a plan.toml) and open its first round.

    deploy/plan.toml explains every key of a plan; `hemofed-site init-weights` makes the initial model.
    """
    hub = context.hub()
    custodian = open_authority(hub.settings).custodian_key
    made = plan_file.read_plan(plan, model, hub.random)
    started = runs.start_run(hub, sign_plan(made, custodian), model, custodian.public_key())
    if as_json:
        _print_json({"run": started.run_id.hex(), "name": started.name, "plan_digest": started.plan_digest.hex()})
        return
    click.echo(f"Run {started.run_id.hex()} ({started.name}) is open; plan {started.plan_digest.hex()}.")


@run.command("list")
@as_json
@click.pass_obj
def run_list(context: Context, as_json: bool) -> None:
    """Every run, oldest first."""
    with context.hub().store.read() as session:
        rows = listings.run_rows(session)
    _print_rows(rows, ("run", "name", "state", "rounds", "created_at", "ended_at", "reason"), as_json)


@run.command("status")
@of_run
@as_json
@click.pass_obj
def run_status(context: Context, run_id: str | None, as_json: bool) -> None:
    """The run and its rounds."""
    hub = context.hub()
    with hub.store.read() as session:
        row = listings.run_row(session, listings.chosen_run(session, run_id))
    if as_json:
        _print_json(row)
        return
    click.echo(f"{row['name']} ({row['run']}): {row['state']}" + (f", {row['reason']}" if row["reason"] else ""))
    click.echo(listings.table(listings.round_lines(row), listings.ROUND_COLUMNS))


@run.command("pause")
@of_run
@click.pass_obj
def run_pause(context: Context, run_id: str | None) -> None:
    """End the round in progress as usual, then begin no new one."""
    _change_run(context, run_id, runs.pause, "paused; the round in progress ends as usual")


@run.command("resume")
@of_run
@click.pass_obj
def run_resume(context: Context, run_id: str | None) -> None:
    """Go on after a pause."""
    _change_run(context, run_id, runs.resume, "running")


@run.command("abort")
@of_run
@click.confirmation_option("--yes", prompt="Abort for good? Updates in progress are thrown away.")
@click.pass_obj
def run_abort(context: Context, run_id: str | None) -> None:
    """End the run now. The models so far stay."""
    _change_run(context, run_id, runs.abort, "aborted; its models stay")


@main.group()
def model() -> None:
    """Models of a run: list, export."""


@model.command("list")
@of_run
@as_json
@click.pass_obj
def model_list(context: Context, run_id: str | None, as_json: bool) -> None:
    """Every model, and how the federation judged it."""
    with context.hub().store.read() as session:
        rows = listings.model_rows(session, listings.chosen_run(session, run_id))
    _print_rows(rows, ("round", "model_digest", "size_bytes", "created_at"), as_json)


@model.command("export")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@of_run
@click.option("--round", "number", type=int, help="Made by this round, 0 for the initial one; default: the newest.")
@as_json
@click.pass_obj
def model_export_(context: Context, out: Path, run_id: str | None, number: int | None, as_json: bool) -> None:
    """Write a model to OUT (safetensors), after checking it against its digest."""
    hub = context.hub()
    with hub.store.read() as session:
        chosen = model_export.choose(session, listings.chosen_run(session, run_id), number)
    model_export.export(hub.blobs, chosen, out)
    if as_json:
        _print_json({"path": str(out.absolute()), "round": chosen.round_number, "model_digest": chosen.digest.hex()})
        return
    click.echo(f"{out}: model of round {chosen.round_number}, digest {chosen.digest.hex()}")


@main.group()
def admin() -> None:
    """Who may log in to the dashboard."""


@admin.command("add")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.pass_obj
def admin_add(context: Context, name: str, password_stdin: bool) -> None:
    """Add NAME; asks for a password of at least 12 characters."""
    hub = context.hub()
    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    change = Change(hub.clock(), "operator", f"administrator:{name}", "added on the command line")
    with hub.store.write() as session:
        people.add_administrator(session, name, password, hub.random(SALT_BYTES), change)
    click.echo(f"{name} may log in.")


@admin.command("remove")
@click.argument("name")
@click.pass_obj
def admin_remove(context: Context, name: str) -> None:
    """Take NAME's access away."""
    hub = context.hub()
    change = Change(hub.clock(), "operator", f"administrator:{name}", "removed on the command line")
    with hub.store.write() as session:
        people.remove_administrator(session, name, change)
    click.echo(f"{name} may log in no more.")


@admin.command("list")
@as_json
@click.pass_obj
def admin_list(context: Context, as_json: bool) -> None:
    """Everybody who may log in."""
    with context.hub().store.read() as session:
        rows = listings.administrator_rows(session)
    _print_rows(rows, ("name", "created_at"), as_json)


@main.command()
@click.option("--subject", help="Only what concerns this, for example site:st-mary or run:3f2a")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@as_json
@click.pass_obj
def audit(context: Context, subject: str | None, limit: int, as_json: bool) -> None:
    """Who changed what and why, newest first."""
    with context.hub().store.read() as session:
        rows = [listings.audit_row(row) for row in people.audit_trail(session, subject, limit)]
    _print_rows(rows, ("at", "actor", "subject", "before", "after", "why"), as_json)


def _change_run(context: Context, run_id: str | None, verb: Callable[[Hub, bytes], None], outcome: str) -> None:
    hub = context.hub()
    with hub.store.read() as session:
        chosen: Run = listings.chosen_run(session, run_id)
    verb(hub, chosen.run_id)
    click.echo(f"Run {chosen.run_id.hex()} ({chosen.name}): {outcome}.")


def _print_rows(rows: list[listings.Row], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
    else:
        click.echo(listings.table(rows, columns))


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _log_to_stderr() -> None:
    """Standard output belongs to what a command prints."""
    render = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(
        processors=[structlog.processors.add_log_level, stamp, render],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _now() -> datetime:
    return datetime.now(UTC)
