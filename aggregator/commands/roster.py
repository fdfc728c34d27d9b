"""hemofed-aggregator roster: what the custodian has to sign goes out as a file, and comes back signed."""

from pathlib import Path

import click
from federation.v1.enrolment_pb2 import SignedRoster
from federation.wire import parse

from aggregator.commands import listings
from aggregator.commands.base import CommandContext, load_authority
from aggregator.commands.printing import Form, listing, print_json, print_rows, table
from aggregator.errors import RequestRefused
from aggregator.signing_requests import SignedRosterFile, read_file, write_file
from aggregator.sites import roster as rosters

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def roster() -> None:
    """The roster: show, export for the custodian, import."""


@roster.command("show")
@listing
@click.pass_obj
def roster_show(context: CommandContext, form: Form) -> None:
    """Show the roster in force, and what the custodian has to sign next."""
    app = context.app()
    with app.store.read() as session:
        row = listings.describe_roster(rosters.in_force(session), rosters.awaited_change(session))
        notices = rosters.roster_notices(session, app.settings.state.folder, app.clock())
    if form == "json":
        print_json({**row, "notices": notices})
        return
    if form == "csv":
        print_rows(listings.roster_lines(row), ("site", "keys"), form)
        return
    if row["epoch"] is None:
        click.echo("There is no roster yet.")
    else:
        click.echo(f"Epoch {row['epoch']}, from {row['created_at'] or '-'} to {row['expires_at'] or 'no end'}")
        click.echo(table(listings.roster_lines(row), ("site", "keys")))
    for notice in notices:
        click.echo(notice)


@roster.command("export")
@click.argument("file", type=FILE)
@click.pass_obj
def roster_export(context: CommandContext, file: Path) -> None:
    """Write the request for the next roster to FILE, for `hemofed-custodian sign` on the custodian's machine.

    Without any change of the sites it asks for the same ones, with a new date of expiry.
    """
    app = context.app()
    with app.store.read() as session:
        write_file(file, rosters.request_roster(session))
        change = rosters.awaited_change(session)
    click.echo(f"{file}: the next roster {change}.")
    click.echo(f"On the custodian's machine: hemofed-custodian sign {file.name}", err=True)
    click.echo(f"Back here:                  hemofed-aggregator roster import {file.name}.signed", err=True)


@roster.command("import")
@click.argument("file", type=FILE)
@click.pass_obj
def roster_import(context: CommandContext, file: Path) -> None:
    """Put the roster in FILE into force, after verifying the custodian's signature."""
    app = context.app()
    actor = context.actor(app)
    content = read_file(file)
    if not isinstance(content, SignedRosterFile):
        raise RequestRefused(f"{file}: expected a signed roster; `hemofed-custodian sign` makes one of a request")
    signed = parse(SignedRoster, content.signed)
    change = rosters.import_roster(app.store, load_authority(app), signed, app.clock(), actor)
    click.echo(f"The roster is in force; it {change}.")
