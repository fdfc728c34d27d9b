"""The custodian's key in a PKCS#11 token: SoftHSM stands for a smart card. Skipped only where SoftHSM is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from federation.roster import Roster, custodian_after, verify_roster
from federation.v1.enrolment_pb2 import SignedRoster
from federation.wire import parse

from aggregator.signing_requests import RosterRequest, SignedRosterFile, read_file, write_file
from tests.custodian import PASSPHRASE, Program

FOLDERS = ("/usr/lib/softhsm", "/usr/lib64/pkcs11", "/usr/lib64/softhsm")  # of Debian, Fedora, openSUSE
MODULE = next((str(path) for folder in FOLDERS for path in Path(folder).glob("libsofthsm2.so")), "")

pytestmark = pytest.mark.skipif(
    not MODULE or shutil.which("softhsm2-util") is None, reason="SoftHSM (softhsm2) is not installed"
)


class Tokens:
    """SoftHSM's folder of tokens, and the custodian's program with a key in one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, label: str) -> list[str]:
        """A token whose PIN is the passphrase; gives the options that name it."""
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "so-pin-0123", "--pin"]
        subprocess.run([*command, PASSPHRASE], check=True, stdout=subprocess.DEVNULL)
        return ["--token-module", MODULE, "--token-label", label]

    def begin(self, name: str, label: str) -> Program:
        program = Program(self.folder / name)
        options = ["--passphrase-file", str(program.passphrase_file)]
        program.succeeds("init", *self.make(label), *options)
        return program


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokens:
    (tmp_path / "tokens").mkdir()
    settings = f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    (tmp_path / "softhsm2.conf").write_text(settings)
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    import pkcs11

    pkcs11.unload(MODULE)  # the library reads its settings when it is loaded
    return Tokens(tmp_path)


def public_key(custodian: Program) -> Ed25519PublicKey:
    key = load_pem_public_key(custodian.public_key_file.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


def request_in(folder: Path) -> Path:
    write_file(folder / "roster.request", RosterRequest(Roster(1, ()).to_bytes(), b""))
    return folder / "roster.request"


def signed_by(custodian: Program, folder: Path) -> SignedRoster:
    content = read_file(custodian.sign(request_in(folder)))
    assert isinstance(content, SignedRosterFile)
    return parse(SignedRoster, content.signed)


def test_a_roster_signed_in_the_token_verifies_and_no_file_holds_the_key(tokens: Tokens, tmp_path: Path) -> None:
    custodian = tokens.begin("custodian", "hemofed")
    assert verify_roster(signed_by(custodian, tmp_path), public_key(custodian)).epoch == 1
    assert not (custodian.folder / "custodian.key").exists()
    assert "in the token 'hemofed'" in custodian.succeeds("show")


def test_a_wrong_pin_a_missing_token_and_a_full_one_are_refused_in_a_sentence(tokens: Tokens, tmp_path: Path) -> None:
    custodian, wrong = tokens.begin("custodian", "hemofed"), tmp_path / "wrong"
    wrong.write_text("another PIN")
    told = custodian.refused("sign", str(request_in(tmp_path)), "--yes", "--passphrase-file", str(wrong))
    assert "PinIncorrect" in told
    secret, second = ["--passphrase-file", str(custodian.passphrase_file)], Program(tmp_path / "second")
    where = ["--token-module", MODULE, "--token-label"]
    assert "NoSuchToken" in second.refused("init", *where, "nowhere", *secret)
    assert "holds a custodian's key already" in second.refused("init", *where, "hemofed", *secret)
    assert "both --token-module and --token-label" in second.refused("init", *where[:2], *secret)


def test_a_key_in_a_file_is_succeeded_by_one_in_a_token(tokens: Tokens, tmp_path: Path) -> None:
    old, new = Program.begin(tmp_path / "old"), Program(tmp_path / "new")
    secret = str(old.passphrase_file)
    options = ["--passphrase-file", secret, "--new-passphrase-file", secret, *tokens.make("hemofed")]
    old.succeeds("succeed", str(new.folder), *options)
    signed = signed_by(new, tmp_path)
    newest = custodian_after(signed.successions, public_key(old))
    assert newest == public_key(new)
    assert verify_roster(signed, newest).epoch == 1
