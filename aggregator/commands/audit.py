"""hemofed-aggregator audit: the audit trail is shown."""

import click

from aggregator.commands import listings
from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import print_rows
from aggregator.store import people


@click.command()
@click.option("--subject", help="Only what concerns this, for example site:st-mary or run:3f2a")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@as_json
@click.pass_obj
def audit(context: CommandContext, subject: str | None, limit: int, as_json: bool) -> None:
    """Who changed what and why, newest first."""
    with context.app().store.read() as session:
        rows = [listings.audit_row(row) for row in people.audit_trail(session, subject, limit)]
    print_rows(rows, ("at", "actor", "subject", "before", "after", "why"), as_json)
