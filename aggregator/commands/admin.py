"""hemofed-aggregator admin: who may log in to the dashboard."""

import sys

import click

from aggregator.commands import listings
from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import print_rows
from aggregator.store import Change, people

SALT_BYTES = 16


@click.group()
def admin() -> None:
    """Who may log in to the dashboard."""


@admin.command("add")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.pass_obj
def admin_add(context: CommandContext, name: str, password_stdin: bool) -> None:
    """Add NAME; asks for a password of at least 12 characters."""
    app = context.app()
    # Never an argument of the command: other users of this machine can read those.
    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    change = Change(app.clock(), "operator", f"administrator:{name}", "added on the command line")
    with app.store.write() as session:
        people.add_administrator(session, name, password, app.random(SALT_BYTES), change)
    click.echo(f"{name} may log in.")


@admin.command("remove")
@click.argument("name")
@click.pass_obj
def admin_remove(context: CommandContext, name: str) -> None:
    """Take NAME's access away."""
    app = context.app()
    change = Change(app.clock(), "operator", f"administrator:{name}", "removed on the command line")
    # Sessions of this administrator end with the row: every page compares the stored hash.
    with app.store.write() as session:
        people.remove_administrator(session, name, change)
    click.echo(f"{name} may log in no more.")


@admin.command("list")
@as_json
@click.pass_obj
def admin_list(context: CommandContext, as_json: bool) -> None:
    """List the people who may log in."""
    with context.app().store.read() as session:
        rows = listings.list_administrators(session)
    print_rows(rows, ("name", "created_at"), as_json)
