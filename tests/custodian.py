"""Custodians for tests: a key that many tests share, and the program with a folder of its own."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.roster import ROSTER_DAYS, Roster, sign_roster
from federation.v1.enrolment_pb2 import CustodianSuccession, SignedRoster

from aggregator.custodian.cli import main
from aggregator.custodian.review import next_roster
from aggregator.sites.authority import Authority
from aggregator.sites.roster import import_roster, in_force, request_roster
from aggregator.store import Store

CUSTODIAN = Ed25519PrivateKey.from_private_bytes(sha256(b"the custodian's key in tests").digest())
PASSPHRASE = "correct horse battery staple"


class Program:
    """`hemofed-custodian` with one folder, whose passphrase lies in a file beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passphrase_file = folder.with_name(f"{folder.name}.passphrase")
        self.passphrase_file.parent.mkdir(parents=True, exist_ok=True)
        self.passphrase_file.write_text(PASSPHRASE + "\n")

    @classmethod
    def begin(cls, folder: Path) -> "Program":
        """Make a custodian."""
        made = cls(folder)
        made.succeeds("init", "--passphrase-file", str(made.passphrase_file))
        return made

    @property
    def public_key_file(self) -> Path:
        return self.folder / "custodian.pub"

    def __call__(self, *arguments: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(main, ["--folder", str(self.folder), *arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def succeeds(self, *arguments: str) -> str:
        result = self(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def refused(self, *arguments: str) -> str:
        result = self(*arguments)
        assert result.exit_code == 1, result.output
        return result.stderr

    def sign(self, request: Path) -> Path:
        """Sign a request without asking; the signed file lies beside it."""
        self.succeeds("sign", str(request), "--yes", "--passphrase-file", str(self.passphrase_file))
        return request.with_name(f"{request.name}.signed")


def sign_pending(
    store: Store,
    authority: Authority,
    now: datetime,
    key: Ed25519PrivateKey = CUSTODIAN,
    successions: Sequence[CustodianSuccession] = (),
    days: float = ROSTER_DAYS,
) -> SignedRoster:
    """Sign what the aggregator asks for, and import it there."""
    with store.read() as session:
        request, newest = request_roster(session), in_force(session)
    roster = next_roster(Roster.from_bytes(request.proposed), newest, now)
    signed = sign_roster(replace(roster, expires_at_s=roster.created_at_s + int(days * 86_400)), key, successions)
    import_roster(store, authority, signed, now)
    return signed
