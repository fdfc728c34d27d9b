"""hemofed-aggregator init: the state folder is made, once."""

from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from federation.fingerprint import custodian_words

from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import print_json
from aggregator.errors import CustodianRefused, StateFolderRefused
from aggregator.migrations import upgrade
from aggregator.sites.authority import create_authority
from aggregator.store import open_store


@click.command()
@click.option(
    "--custodian",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The custodian's public key, custodian.pub of `hemofed-custodian init`.",
)
@as_json
@click.pass_obj
def init(context: CommandContext, custodian: Path, as_json: bool) -> None:
    """Make the consortium CA and the database, and certify the custodian's key."""
    settings, key = context.settings(), _public_key(custodian)
    folder = settings.state.folder
    context.require_owner(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "ca" / "ca.key").exists():
        raise StateFolderRefused(f"{folder} is initialised already; a new CA would lock out every site that joined")
    # The tables first: the CA's key is what says that a folder is initialised.
    store = open_store(settings.database_url)
    upgrade(store.engine)
    store.close()
    fingerprint = create_authority(folder / "ca", lambda: datetime.now(UTC), key).fingerprint.hex()
    words = custodian_words(key.public_bytes_raw())
    if as_json:
        print_json({"folder": str(folder.absolute()), "ca_fingerprint": fingerprint, "custodian_words": words})
        return
    click.echo(f"State folder    {folder.absolute()}  (back it up and keep it secret: its keys impersonate you)")
    click.echo(f"CA fingerprint  {fingerprint}")
    click.echo(f"Custodian       {words}  (compare with `hemofed-custodian show`)")
    click.echo("Next:")
    click.echo("  hemofed-aggregator admin add NAME     who may log in to the dashboard")
    click.echo("  hemofed-aggregator serve              listen for sites")
    click.echo("  hemofed-aggregator site invite NAME   a token for one hospital")


def _public_key(path: Path) -> Ed25519PublicKey:
    expected = f"{path}: expected the custodian.pub of `hemofed-custodian init`"
    try:
        key = load_pem_public_key(path.read_bytes())
    except FileNotFoundError:
        raise CustodianRefused(f"{expected}, got no file") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CustodianRefused(f"{expected}, got something else") from None
    if not isinstance(key, Ed25519PublicKey):
        raise CustodianRefused(f"{expected}, got a key of another kind")
    return key
