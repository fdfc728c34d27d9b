"""hemofed-aggregator audit: the audit trail is shown."""

import click

from aggregator.commands import listings
from aggregator.commands.base import CommandContext
from aggregator.commands.printing import Form, listing, print_json, print_rows
from aggregator.store import audit_chain, people


@click.command()
@click.option("--subject", help="Only what concerns this, for example site:st-mary or run:3f2a")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--verify", is_flag=True, help="Compute the chain of all rows anew, and print its head.")
@listing
@click.pass_obj
def audit(context: CommandContext, subject: str | None, limit: int, verify: bool, form: Form) -> None:
    """Print the changes with their actors and reasons, newest first.

    With --verify: exit status 1 when a row was changed, put in or taken out.
    """
    if verify:
        with context.app().store.read() as session:
            head = audit_chain.verify(session)
        if form == "json":
            print_json({"entries": head.entries, "head": head.digest.hex()})
        else:
            click.echo(f"The chain of {head.entries} rows is intact; its head is {head.digest.hex()}.")
        return
    with context.app().store.read() as session:
        rows = [listings.audit_row(row) for row in people.audit_trail(session, subject, limit)]
    print_rows(rows, ("at", "actor", "subject", "before", "after", "why"), form)
