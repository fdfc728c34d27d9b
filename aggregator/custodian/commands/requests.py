"""hemofed-custodian review, sign: what the aggregator asks for."""

from datetime import UTC, datetime
from pathlib import Path

import click

from aggregator.custodian import signing
from aggregator.custodian.commands.secrets import FILE, ask_secret, passphrase_file
from aggregator.custodian.folder import CustodianFolder
from aggregator.signing_requests import write_file


@click.command()
@click.argument("file", type=FILE)
@click.pass_obj
def review(folder: Path, file: Path) -> None:
    """Show the request in FILE in words.

    Compare a new hospital's keys by telephone: `hemofed-site roster show` writes the same digits there.
    """
    click.echo(signing.review(CustodianFolder(folder), file, datetime.now(UTC)).words)


@click.command()
@click.argument("file", type=FILE)
@click.option("--out", type=FILE, help="Where the signed file goes; default: FILE.signed.")
@click.option("--yes", is_flag=True, help="Sign without asking, for scripts.")
@passphrase_file
@click.pass_obj
def sign(folder: Path, file: Path, out: Path | None, yes: bool, passphrase_file: Path | None) -> None:
    """Show the request in FILE in words, ask, and sign it."""
    custodian = CustodianFolder(folder)
    reviewed = signing.review(custodian, file, datetime.now(UTC))
    click.echo(reviewed.words)
    if not yes:
        click.confirm("Sign this?", abort=True)
    with custodian.unlocked(ask_secret(passphrase_file)) as key:
        signed = signing.sign(custodian, reviewed, key)
    out = out or file.with_name(f"{file.name}.signed")
    write_file(out, signed)
    click.echo(f"signed: {out}")
