"""hemofed-aggregator doctor: the installation is looked at from outside."""

import click

from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import print_json, table
from aggregator.health.installation import Finding, Installation, Severity


@click.command()
@as_json
@click.pass_obj
def doctor(context: CommandContext, as_json: bool) -> None:
    """Look at database, disk, keys, certificates, addresses, clock and roster.

    It changes nothing. Exit status 1 if one of them is at fault; warnings alone leave it 0.
    """
    show(list(Installation(context.app()).findings()), as_json)


def show(findings: list[Finding], as_json: bool) -> None:
    """Print findings, and end with status 1 if one is a fault."""
    rows = [finding._asdict() for finding in findings]
    if as_json:
        print_json(rows)
    else:
        click.echo(table(rows, ("level", "name", "words")))
    if any(finding.level is Severity.FAULT for finding in findings):
        raise SystemExit(1)
