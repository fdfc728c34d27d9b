"""hemofed-aggregator alert: the conditions that need a person, and a test of the ways on which they are told."""

import click

from aggregator.alerts.conditions import raised
from aggregator.alerts.delivery import Notice, deliver
from aggregator.commands.base import CommandContext
from aggregator.commands.printing import Form, Row, listing, print_rows
from aggregator.states import Role

TEST = Notice("test", "test", "This is a test of the alerts of a hemofed aggregator.", "Nothing has to be done.")


@click.group()
def alert() -> None:
    """Conditions that need a person: list, test."""


@alert.command("list")
@listing
@click.pass_obj
def alert_list(context: CommandContext, form: Form) -> None:
    """List the conditions that hold now, each with what to do. `audit --verify` looks at the audit."""
    app = context.app()
    with app.store.read() as session:
        alerts = raised(app, session)
    rows: list[Row] = [
        {"kind": held.kind.value, "subject": held.subject, "sentence": held.sentence, "advice": held.advice}
        for held in alerts
    ]
    print_rows(rows, ("kind", "sentence", "advice"), form)


@alert.command("test")
@click.pass_obj
def alert_test(context: CommandContext) -> None:
    """Send a test message on every way in [alerts], and say which took it.

    Raises:
        click.ClickException: When no way is set, or one did not take it.
    """
    app = context.app()
    context.actor(app, Role.OPERATOR)
    failures = deliver(app.settings.alerts, [TEST])
    if not failures:
        raise click.ClickException("expected mail_to or webhook in [alerts], got neither; see aggregator.toml")
    for way, why in failures.items():
        click.echo(f"{way}: {why or 'taken'}")
    if any(failures.values()):
        raise click.ClickException("a way did not take the message; see [alerts] in aggregator.toml")
