"""People: who may log in and act, with what role; and the audit trail that says what they did.

A password is stored as an argon2id hash (RFC 9106). Hashes of version 0.1.0 are scrypt's. They are verified, and
replaced at the next log-in.
"""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from aggregator.errors import NotFound, WrongState
from aggregator.states import Role
from aggregator.store.engine import Change, guarded, record
from aggregator.store.tables import Administrator, Audit

PASSWORD_CHARACTERS_MIN, PASSWORD_CHARACTERS_MAX = 12, 1024  # the log-in form takes no more
HASH_BYTES = 32
_NAME = re.compile(r"[\w.@+-]{1,64}")  # one word in a line of the audit


@dataclass(frozen=True)
class Cost:
    """Parameters of argon2id. A hash is stored with its own, so that they may grow later."""

    passes: int
    memory_kib: int
    lanes: int


COST = Cost(passes=3, memory_kib=64 * 1024, lanes=4)  # of new hashes: RFC 9106, section 4, second recommendation


def add_administrator(
    session: Session, name: str, password: str, salt: bytes, change: Change, role: Role = Role.ADMIN
) -> None:
    """Add a person; `salt` are 16 random bytes.

    Raises:
        WrongState: When the name is taken or no name, or the password is no text of 12 to 1,024 characters.
    """
    if _NAME.fullmatch(name) is None:
        raise WrongState(
            "expected a name of 1 to 64 letters, digits and . _ @ + - characters, "
            f"got {name[:64]!r}; the name of their Unix user is a good one"
        )
    if session.get(Administrator, name) is not None:
        raise WrongState(f"administrator {name!r} exists; remove it first, or choose another name")
    hashed = _hash_chosen(password, salt)
    session.add(Administrator(name=name, password_hash=hashed, role=role, created_at=change.at))
    record(session, change, None, f"added as {role}")


def change_password(session: Session, name: str, password: str, salt: bytes, change: Change) -> None:
    """Give a person another password; `salt` are 16 random bytes. Their sessions end.

    Raises:
        NotFound: When there is none of that name.
        WrongState: When the password is no text of 12 to 1,024 characters.
    """
    get(session, name).password_hash = _hash_chosen(password, salt)
    record(session, change, None, "password changed")


def change_role(session: Session, name: str, role: Role, change: Change) -> None:
    """Give a person another role, from their next request on.

    Raises:
        NotFound: When there is none of that name.
        LostRace: When another process changed it in between.
    """
    before = get(session, name).role
    held = Administrator.name == name, Administrator.role == before
    guarded(session, update(Administrator).where(*held).values(role=role), change, before.value, role.value)


def remove_administrator(session: Session, name: str, change: Change) -> None:
    """Remove an administrator; `password_hash_of` then ends their sessions.

    Raises:
        NotFound: When there is none of that name.
    """
    session.delete(get(session, name))
    record(session, change, None, "removed")


def administrators(session: Session) -> list[Administrator]:
    """Return all administrators, by name."""
    return list(session.scalars(select(Administrator).order_by(Administrator.name)))


def find(session: Session, name: str) -> Administrator | None:
    """Return the person of that name; no statement is made for a text that cannot be one."""
    return session.get(Administrator, name) if _NAME.fullmatch(name) else None


def password_fits(session: Session, name: str, password: str) -> bool:
    """Whether `password` is the one of `name`."""
    administrator = find(session, name)
    # A name that does not exist costs as much time as one that does, so the answer does not tell which names exist.
    stored = _no_password() if administrator is None else administrator.password_hash
    return verify_password(password, stored) and administrator is not None


def renew_hash(session: Session, name: str, password: str, salt: bytes) -> None:
    """Replace a stored hash of another kind or cost by one of COST; `password` fits. `salt` are 16 random bytes."""
    administrator = get(session, name)
    stored = administrator.password_hash
    if stored.startswith("scrypt$") or _hasher().check_needs_rehash(stored):
        administrator.password_hash = hash_password(password, salt)


def hash_password(password: str, salt: bytes) -> str:
    """Return the argon2id hash in PHC form, salt and costs included. `salt` are 16 random bytes."""
    return _hasher().hash(password, salt=salt)


def verify_password(password: str, stored: str) -> bool:
    """Whether `stored` was made from `password`, at the cost it names."""
    if stored.startswith("scrypt$"):
        return _verify_scrypt(password, stored)
    try:
        return _hasher().verify(stored, password)
    except (Argon2Error, InvalidHashError):
        return False


def audit_trail(
    session: Session,
    subject: str | None = None,
    limit: int = 100,
    before_id: int | None = None,
    *,
    exact: bool = False,
) -> list[Audit]:
    """Return rows of the audit trail, newest first.

    Args:
        session: A session of `Store.read`.
        subject: Only rows whose subject begins with this, or is this.
        limit: At most so many rows.
        before_id: Only rows older than the one with this id.
        exact: Whether the subject has to be `subject`: the names of two sites may begin alike.
    """
    chosen = select(Audit).order_by(Audit.id.desc()).limit(limit)
    if exact:
        chosen = chosen.where(Audit.subject == subject)
    elif subject is not None:
        # autoescape: an underscore in a site's name is a letter, not SQL's wildcard.
        chosen = chosen.where(Audit.subject.startswith(subject, autoescape=True))
    if before_id is not None:
        chosen = chosen.where(Audit.id < before_id)
    return list(session.scalars(chosen))


def audit_of_run(session: Session, hex_id: str) -> list[Audit]:
    """Return all rows of the audit trail about a run, its rounds and their seats, oldest first."""
    about = [
        Audit.subject == f"run:{hex_id}",
        *(Audit.subject.startswith(f"{kind}:{hex_id}/") for kind in ("round", "seat")),
    ]
    return list(session.scalars(select(Audit).where(or_(*about)).order_by(Audit.id)))


def get(session: Session, name: str) -> Administrator:
    """Return the person of that name.

    Raises:
        NotFound: When there is none.
    """
    administrator = session.get(Administrator, name)
    if administrator is None:
        raise NotFound(f"no administrator {name!r}; `admin list` shows those there are")
    return administrator


def _hash_chosen(password: str, salt: bytes) -> str:
    if not PASSWORD_CHARACTERS_MIN <= len(password) <= PASSWORD_CHARACTERS_MAX:
        raise WrongState(
            f"expected a password of at least {PASSWORD_CHARACTERS_MIN} characters and at most "
            f"{PASSWORD_CHARACTERS_MAX}, got {len(password)}"
        )
    try:
        return hash_password(password, salt)
    except UnicodeEncodeError:  # bytes of standard input that are no text
        raise WrongState("expected a password in UTF-8, got other bytes; choose another") from None


def _hasher() -> PasswordHasher:
    return PasswordHasher(COST.passes, COST.memory_kib, COST.lanes, hash_len=HASH_BYTES)


def _no_password() -> str:
    """A hash of zeros, which has no password."""
    salt, hashed = (base64.b64encode(bytes(size)).decode().rstrip("=") for size in (16, HASH_BYTES))
    return f"$argon2id$v=19$m={COST.memory_kib},t={COST.passes},p={COST.lanes}${salt}${hashed}"


def _verify_scrypt(password: str, stored: str) -> bool:
    """Of version 0.1.0: scrypt$n$r$p$salt$hash (RFC 7914), salt and hash in base64."""
    _kind, n, r, p, salt, expected = stored.split("$")
    # scrypt needs 128 * n * r bytes and a little more, which is just above OpenSSL's own limit of 32 MiB.
    memory = max(256 * int(n) * int(r), 1 << 20)
    hashed = hashlib.scrypt(
        password.encode(), salt=base64.b64decode(salt), n=int(n), r=int(r), p=int(p), maxmem=memory, dklen=HASH_BYTES
    )
    # In constant time: the time of a comparison must not tell how many bytes were right.
    return hmac.compare_digest(hashed, base64.b64decode(expected))
