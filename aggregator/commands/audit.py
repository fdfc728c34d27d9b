"""hemofed-aggregator audit: the audit trail is shown."""

import click

from aggregator.commands import listings
from aggregator.commands.base import CommandContext
from aggregator.commands.printing import Form, Row, listing, print_json, print_rows
from aggregator.states import Role
from aggregator.store import audit_chain, audit_mark, people


@click.command()
@click.option("--subject", help="Only what concerns this, for example site:st-mary or run:3f2a")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--verify", is_flag=True, help="Compute the chain of all rows anew, and print its head.")
@click.option("--anchor", metavar="ENTRIES:HEAD", help="With --verify: a head that the chain must have had.")
@listing
@click.pass_obj
def audit(
    context: CommandContext, subject: str | None, limit: int, verify: bool, anchor: str | None, form: Form
) -> None:
    """Print the changes with their actors and reasons, newest first.

    With --verify: exit status 1 when a row was changed, put in or taken out. That the newest rows are gone, or that
    the whole chain was made anew, shows against the state folder's note and against a head that was kept elsewhere.
    """
    app = context.app()
    context.actor(app, Role.AUDITOR)
    if anchor is not None and not verify:
        raise click.UsageError("--anchor goes with --verify")
    if verify:
        noted = None if anchor is None else audit_chain.ChainHead.parse(anchor)
        with app.store.read() as session:
            head = audit_chain.verify(session, noted)
        audit_mark.check(app.store, app.settings.state.folder)
        row: Row = {"entries": head.entries, "head": head.digest.hex()}
        if form == "json":
            print_json(row)
        elif form == "csv":
            print_rows([row], tuple(row), form)
        else:
            click.echo(f"The chain of {head.entries} rows is intact; its head is {head.digest.hex()}.")
        return
    with app.store.read() as session:
        rows = [listings.audit_row(row) for row in people.audit_trail(session, subject, limit)]
    print_rows(rows, ("at", "actor", "subject", "before", "after", "why"), form)
