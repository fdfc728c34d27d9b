"""The custodian's folder.

custodian.json  which key, where it lies, and the successions that lead to it
custodian.key   the key under a passphrase, unless it lies in a token
custodian.pub   the public key, for `hemofed-aggregator init`
roster.bin      the roster signed last: `review` compares with it, and no epoch is signed twice
plan.bin        the plan signed last, for the same comparison
rollback.bin    the rollback signed last: no two of a run have one number
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from federation.errors import BadSignature
from federation.plan import TrainingPlan
from federation.rollback import RunRollback
from federation.roster import Roster, verify_roster
from federation.signing import Signer
from federation.v1.enrolment_pb2 import CustodianSuccession, SignedRoster
from federation.v1.plan_pb2 import SignedPlan, SignedRollback
from federation.wire import parse, serialize

from aggregator.custodian import sealed_key, token_key
from aggregator.custodian.token_key import HardwareToken
from aggregator.errors import CustodianRefused
from aggregator.secret_file import write_secret


class Succession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key, signed by the one before."""

    key: bytes
    signature: bytes


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """custodian.json."""

    public_key: bytes
    first_key: bytes  # the one that the CA certified; the public key itself before the first succession
    successions: tuple[Succession, ...] = ()  # oldest first; the last one is of the public key
    token_module: str = ""  # "": the key lies in custodian.key
    token_label: str = ""

    @property
    def token(self) -> HardwareToken | None:
        """The token that holds the key; None when it lies in a file."""
        return HardwareToken(self.token_module, self.token_label) if self.token_module else None


class CustodianFolder:
    """One custodian. Reads custodian.json at once, and the key only in `unlocked`."""

    def __init__(self, path: Path) -> None:
        """Read custodian.json.

        Raises:
            CustodianRefused: When there is none, or it is damaged.
        """
        self.path = path
        try:
            self.facts = msgspec.json.decode((path / "custodian.json").read_bytes(), type=Facts)
        except FileNotFoundError:
            raise CustodianRefused(f"no custodian in {path}; run `hemofed-custodian init`, or pass --folder") from None
        except msgspec.DecodeError:
            raise CustodianRefused(f"{path}/custodian.json is damaged; restore it from the backup") from None

    @contextmanager
    def unlocked(self, secret: str) -> Iterator[Signer]:
        """Unlock the key, for as long as the context lasts. `secret`: the passphrase, or the token's PIN.

        Raises:
            CustodianRefused: When the secret is wrong, or the key cannot be reached.
        """
        token = self.facts.token
        if token is not None:
            with token_key.open_key(token, secret) as key:
                yield key
        else:
            yield sealed_key.unseal(self.path / "custodian.key", secret)

    @property
    def successions(self) -> list[CustodianSuccession]:
        """The successions as they travel with a roster."""
        return [CustodianSuccession(key=link.key, signature=link.signature) for link in self.facts.successions]

    def newest_roster(self, shown: bytes) -> Roster | None:
        """Return the newest roster that this custodian, or one it succeeds, has signed; None before the first.

        Args:
            shown: Serialized SignedRoster of the aggregator; empty when it has none.

        Raises:
            CustodianRefused: When the shown one has another signature: it is of another consortium, or forged.
        """
        rosters = []
        if (self.path / "roster.bin").exists():
            own = parse(SignedRoster, (self.path / "roster.bin").read_bytes())
            rosters.append(Roster.from_bytes(own.roster))
        if shown:
            rosters.append(self._verified(parse(SignedRoster, shown)))
        return max(rosters, key=lambda roster: roster.epoch, default=None)

    def newest_plan(self) -> TrainingPlan | None:
        """Return the plan that was signed last; None before the first."""
        path = self.path / "plan.bin"
        if not path.exists():
            return None
        return TrainingPlan.from_bytes(parse(SignedPlan, path.read_bytes()).plan)

    def check_rollback(self, rollback: RunRollback) -> None:
        """Refuse a rollback that could be shown to some sites, and the one signed before to others.

        Raises:
            CustodianRefused: When the last one of this run has its number or a higher one, and is another.
        """
        path = self.path / "rollback.bin"
        if not path.exists():
            return
        last = RunRollback.from_bytes(parse(SignedRollback, path.read_bytes()).rollback)
        if rollback != last and rollback.plan_digest == last.plan_digest and rollback.number <= last.number:
            raise CustodianRefused(
                f"expected a rollback of number {last.number + 1} or higher, got {rollback.number}: one to "
                f"{last.model_digest.hex()[:16]} was signed as number {last.number}"
            )

    def remember(self, signed: SignedRoster | SignedPlan | SignedRollback) -> None:
        """Keep what was signed, before it is handed out."""
        names = {SignedRoster: "roster.bin", SignedPlan: "plan.bin", SignedRollback: "rollback.bin"}
        write_secret(self.path / names[type(signed)], serialize(signed))

    def _verified(self, signed: SignedRoster) -> Roster:
        keys = [self.facts.first_key, *(link.key for link in self.facts.successions)]
        for key in keys:
            try:
                return verify_roster(signed, Ed25519PublicKey.from_public_bytes(key))
            except BadSignature:
                continue
        raise CustodianRefused("the roster in the request was not signed by this custodian; it is of other keys")


def make_key(
    path: Path, secret: str, token: HardwareToken | None = None, key: Ed25519PrivateKey | None = None
) -> bytes:
    """Make the key of a custodian whose folder holds none yet.

    Args:
        path: The folder; made with mode 0700.
        secret: The new passphrase, or the token's PIN.
        token: Makes the key in there.
        key: Takes this key instead of a new one; in a file only.

    Returns:
        The public key, 32 bytes. Nothing but the key exists until `begin`.

    Raises:
        CustodianRefused: When there is a custodian already, or the secret or the token is not usable.
    """
    if (path / "custodian.json").exists():
        raise CustodianRefused(f"{path} already holds a custodian; its key is replaced by `succeed` only")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if token is not None:
        return token_key.make_key(token, secret)
    key = key or Ed25519PrivateKey.generate()
    sealed_key.seal(path / "custodian.key", key, secret)
    return key.public_key().public_bytes_raw()


def begin(path: Path, facts: Facts) -> CustodianFolder:
    """Write the public key and custodian.json, which makes a folder with a key a custodian's."""
    public = Ed25519PublicKey.from_public_bytes(facts.public_key)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    write_secret(path / "custodian.pub", public.public_bytes(serialization.Encoding.PEM, form))
    write_secret(path / "custodian.json", msgspec.json.encode(facts))
    return CustodianFolder(path)
