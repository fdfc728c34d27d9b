"""Commands that read the egress ledger."""

from pathlib import Path

import click

from site_client.commands.options import FILE, config_option, json_option
from site_client.config import load

_anchor_option = click.option("--anchor", metavar="ENTRIES:HEAD", help="A length and head the ledger must have had.")


@click.group()
def ledger() -> None:
    """Read and verify the ledger of every message that left."""


@ledger.command()
@click.argument("entry", required=False, type=click.IntRange(1))
@click.option("--last", default=20, show_default=True, type=click.IntRange(1), help="How many of the newest.")
@json_option
@config_option
def show(entry: int | None, last: int, as_json: bool, config: Path) -> None:
    """Show the newest entries, or ENTRY with its decoded payload."""
    from site_client.agent.commands.ledger import LedgerReader

    reader = LedgerReader(load(config))
    click.echo(reader.show(last, as_json=as_json) if entry is None else reader.show_entry(entry, as_json=as_json))


@ledger.command()
@json_option
@config_option
def totals(as_json: bool, config: Path) -> None:
    """Show messages and bytes by day and address, to compare with a proxy's log."""
    from site_client.agent.commands.ledger import LedgerReader

    click.echo(LedgerReader(load(config)).totals(as_json=as_json))


@ledger.command()
@click.option("--file", "exported", type=FILE, help="An exported ledger instead.")
@click.option("--key", help="With --file: the site's Ed25519 public key, in hex, as the roster has it.")
@_anchor_option
@json_option
@config_option
def verify(exported: Path | None, key: str | None, anchor: str | None, as_json: bool, config: Path) -> None:
    """Verify every line, link, signature and kept payload; exit status 1 names the first bad entry."""
    from site_client.agent.commands.ledger import LedgerReader, verify_file

    if exported is not None:
        click.echo(verify_file(exported, key, anchor, as_json=as_json))
    else:
        click.echo(LedgerReader(load(config)).verify(anchor, as_json=as_json))


@ledger.command()
@config_option
def acknowledge(config: Path) -> None:
    """Take part again after the state folder was put back to an earlier day. Find out why first."""
    from site_client.agent.rounds.rollback import acknowledge as record

    rollback = record(load(config).folders.agent)
    click.echo(
        f"acknowledged: {rollback.seen_entries} entries were remembered, {rollback.held_entries} were left; this site "
        "takes part again in rounds on a later model"
    )


@ledger.command()
@click.option("--out", required=True, type=FILE, help="The file to write.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@config_option
def export(out: Path, form: str, config: Path) -> None:
    """Write the ledger to a file: jsonl can be verified anywhere, csv is for reading."""
    from site_client.agent.commands.ledger import LedgerReader

    click.echo(LedgerReader(load(config)).export(out, form))
