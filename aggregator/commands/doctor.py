"""hemofed-aggregator doctor: the installation is looked at from outside."""

import click

from aggregator.commands.base import CommandContext
from aggregator.commands.printing import Form, Row, listing, print_rows
from aggregator.health.installation import Finding, Installation, Severity


@click.command()
@listing
@click.pass_obj
def doctor(context: CommandContext, form: Form) -> None:
    """Look at database, disk, keys, certificates, addresses, clock and roster.

    It changes nothing. Exit status 1 if one of them is at fault; warnings alone leave it 0.
    """
    show(list(Installation(context.app()).findings()), form)


def show(findings: list[Finding], form: Form) -> None:
    """Print findings, and end with status 1 if one is a fault."""
    rows: list[Row] = [finding._asdict() for finding in findings]
    print_rows(rows, ("level", "name", "words"), form)
    if any(finding.level is Severity.FAULT for finding in findings):
        raise SystemExit(1)
