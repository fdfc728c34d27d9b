"""Commands that read the privacy ledger."""

from pathlib import Path

import click

from site_client.commands.options import FILE, config_option, json_option
from site_client.config import load


@click.group()
def privacy() -> None:
    """Show and verify what this hospital's patients have given up in all runs."""


@privacy.command()
@json_option
@config_option
def show(as_json: bool, config: Path) -> None:
    """Show the epsilon that was spent, by run and kind of patient, and what is left under the policy."""
    from site_client.agent.commands.privacy import show as shown

    click.echo(shown(load(config), as_json=as_json))


@privacy.command()
@click.option("--file", "exported", type=FILE, help="A copy of a privacy ledger instead.")
@json_option
@config_option
def verify(exported: Path | None, as_json: bool, config: Path) -> None:
    """Verify every line, link and signature; exit status 1 names the first bad entry."""
    from site_client.agent.commands.privacy import verify as verified

    click.echo(verified(load(config), exported, as_json=as_json))
