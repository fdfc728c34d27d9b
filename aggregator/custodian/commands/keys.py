"""hemofed-custodian init, show, succeed, take-over: the key, from its making to its successor."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from federation.fingerprint import custodian_words
from federation.roster import succeed as sign_successor

from aggregator.custodian.commands.secrets import FILE, ask_secret, passphrase_file
from aggregator.custodian.folder import CustodianFolder, Facts, Succession, begin, make_key
from aggregator.custodian.token_key import HardwareToken
from aggregator.errors import CustodianRefused
from aggregator.secret_file import destroy_secret

FOLDER = click.Path(path_type=Path, file_okay=False)


def _token_options(command: Callable[..., Any]) -> Callable[..., Any]:
    label = click.option("--token-label", default="", help="The token's label.")
    module = click.option(
        "--token-module", default="", help="The PKCS#11 library of a token, to make the key in there."
    )
    return module(label(command))


@click.command()
@_token_options
@passphrase_file
@click.pass_obj
def init(folder: Path, token_module: str, token_label: str, passphrase_file: Path | None) -> None:
    """Make the custodian's key.

    In a file under a passphrase of at least 12 characters, or in a PKCS#11 token under its PIN.
    """
    token = _token(token_module, token_label)
    public = make_key(folder, ask_secret(passphrase_file, new=token is None), token)
    facts = Facts(public, public, token_module=token_module, token_label=token_label)
    _tell(begin(folder, facts))
    click.echo(f"Next: hemofed-aggregator init --custodian {folder / 'custodian.pub'}")


@click.command()
@click.pass_obj
def show(folder: Path) -> None:
    """Show the custodian's key in six words, and how it came to be.

    A hospital that joins sees the words of the first key, and of the newest if there is another.
    """
    _tell(CustodianFolder(folder))


@click.command()
@click.argument("new_folder", type=FOLDER)
@_token_options
@passphrase_file
@click.option("--new-passphrase-file", type=FILE, help="The same for the new key.")
@click.pass_obj
def succeed(
    folder: Path,
    new_folder: Path,
    token_module: str,
    token_label: str,
    passphrase_file: Path | None,
    new_passphrase_file: Path | None,
) -> None:
    """Make a new key in NEW_FOLDER, signed by this one.

    Sites follow the signature with the first roster that the new key signs, and never go back to the old key. Until
    then the new folder is a spare that may lie in a safe, against the loss of this one.
    """
    old, token = CustodianFolder(folder), _token(token_module, token_label)
    with old.unlocked(ask_secret(passphrase_file, "Passphrase or PIN of the old key")) as key:
        secret = ask_secret(new_passphrase_file, "Passphrase or PIN of the new key", new=token is None)
        public = make_key(new_folder, secret, token)
        link = sign_successor(key, Ed25519PublicKey.from_public_bytes(public))
    for name in ("roster.bin", "plan.bin", "rollback.bin"):
        if (folder / name).exists():
            shutil.copy(folder / name, new_folder / name)
    chain = (*old.facts.successions, Succession(link.key, link.signature))
    _tell(begin(new_folder, Facts(public, old.facts.first_key, chain, token_module, token_label)))
    click.echo(
        "Next: roster export, `hemofed-custodian sign` with the new folder, roster import. Then destroy the old key."
    )


@click.command("take-over")
@click.argument("aggregator_folder", metavar="FOLDER", type=FOLDER)
@passphrase_file
@click.pass_obj
def take_over(folder: Path, aggregator_folder: Path, passphrase_file: Path | None) -> None:
    """Take the key out of the aggregator folder FOLDER of version 0.1.0.

    The key is sealed under a passphrase here, and destroyed there. Sites notice nothing. Backups of that folder still
    hold the key: destroy them, or make a new key with `succeed`.
    """
    plain = aggregator_folder / "ca" / "custodian.key"
    if not plain.exists():
        raise CustodianRefused(f"{plain} does not exist: this aggregator has no custodian's key to hand over")
    key = _plain_key(plain, aggregator_folder / "ca" / "custodian.pem")
    public = key.public_key().public_bytes_raw()
    # A second call after a crash finds the sealed key, and only destroys the plain one.
    if not (folder / "custodian.json").exists():
        make_key(folder, ask_secret(passphrase_file, new=True), key=key)
        begin(folder, Facts(public, public))
    custodian = CustodianFolder(folder)
    if custodian.facts.public_key != public:
        raise CustodianRefused(f"{folder} already holds another custodian; choose an empty --folder")
    destroy_secret(plain)
    _tell(custodian)
    click.echo(f"{plain} is destroyed. Destroy its backups, too.")


def _token(module: str, label: str) -> HardwareToken | None:
    if bool(module) != bool(label):
        raise CustodianRefused("expected both --token-module and --token-label, or neither")
    return HardwareToken(module, label) if module else None


def _tell(custodian: CustodianFolder) -> None:
    facts = custodian.facts
    where = (
        f"in the token {facts.token_label!r}" if facts.token is not None else f"in {custodian.path / 'custodian.key'}"
    )
    click.echo(f"Custodian's key  {custodian_words(facts.public_key)}")
    click.echo(f"                 {where}")
    if facts.successions:
        click.echo(f"First key        {custodian_words(facts.first_key)}, {len(facts.successions)} successions ago")


def _plain_key(path: Path, certificate: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        certified = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CustodianRefused(f"{path} or its certificate is damaged; restore them from the backup") from None
    if not isinstance(key, Ed25519PrivateKey) or key.public_key() != certified:
        raise CustodianRefused(f"{path} is not the key that custodian.pem certifies; restore both from one backup")
    return key
