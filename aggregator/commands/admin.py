"""hemofed-aggregator admin: who may log in to the dashboard, act on the command line, and with what role."""

import sys

import click

from aggregator.commands import listings
from aggregator.commands.base import CommandContext
from aggregator.commands.printing import Form, listing, print_rows
from aggregator.states import Role
from aggregator.store import Change, people

SALT_BYTES = 16
PASSWORD_STDIN = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")


@click.group()
def admin() -> None:
    """People who may log in to the dashboard, and their roles."""


ROLE = click.Choice([role.value for role in Role])


@admin.command("add")
@click.argument("name")
@click.option("--role", type=ROLE, default=Role.ADMIN.value, show_default=True, help="What NAME may do.")
@PASSWORD_STDIN
@click.pass_obj
def admin_add(context: CommandContext, name: str, role: str, password_stdin: bool) -> None:
    """Add NAME; asks for a password of at least 12 characters.

    A viewer sees runs and sites; an auditor also who did what; an operator also acts on runs, sites and rosters; an
    admin also says who may do what.
    """
    app = context.app()
    actor = context.actor(app, Role.ADMIN)
    password = _password(password_stdin)
    change = Change(app.clock(), actor, f"administrator:{name}", "added on the command line")
    with app.store.write() as session:
        people.add_administrator(session, name, password, app.random(SALT_BYTES), change, Role(role))
    click.echo(f"{name} may log in, as {role}.")


@admin.command("passwd")
@click.argument("name")
@PASSWORD_STDIN
@click.pass_obj
def admin_passwd(context: CommandContext, name: str, password_stdin: bool) -> None:
    """Give NAME another password; asks for it. NAME is logged out everywhere."""
    app = context.app()
    actor = context.actor(app, Role.ADMIN)
    with app.store.read() as session:
        people.get(session, name)  # before somebody types a password twice for nobody
    password = _password(password_stdin)
    change = Change(app.clock(), actor, f"administrator:{name}", "on the command line")
    with app.store.write() as session:
        people.change_password(session, name, password, app.random(SALT_BYTES), change)
    click.echo(f"{name} has another password, and is logged out everywhere.")


@admin.command("role")
@click.argument("name")
@click.argument("role", type=ROLE)
@click.pass_obj
def admin_role(context: CommandContext, name: str, role: str) -> None:
    """Give NAME another ROLE, from their next request on."""
    app = context.app()
    change = Change(app.clock(), context.actor(app, Role.ADMIN), f"administrator:{name}", "on the command line")
    with app.store.write() as session:
        people.change_role(session, name, Role(role), change)
    click.echo(f"{name} is {role} now.")


@admin.command("remove")
@click.argument("name")
@click.pass_obj
def admin_remove(context: CommandContext, name: str) -> None:
    """Take NAME's access away."""
    app = context.app()
    actor = context.actor(app, Role.ADMIN)
    change = Change(app.clock(), actor, f"administrator:{name}", "removed on the command line")
    # Sessions of this administrator end with the row: every page compares the stored hash.
    with app.store.write() as session:
        people.remove_administrator(session, name, change)
    click.echo(f"{name} may log in no more.")


@admin.command("list")
@listing
@click.pass_obj
def admin_list(context: CommandContext, form: Form) -> None:
    """List the people who may log in."""
    with context.app().store.read() as session:
        rows = listings.list_administrators(session)
    print_rows(rows, ("name", "role", "created_at"), form)


def _password(from_stdin: bool) -> str:
    # Never an argument of the command: other users of this machine can read those.
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    return password
