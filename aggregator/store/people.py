"""Administrators of the dashboard, and the audit trail they read."""

import base64
import hashlib
import hmac
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from aggregator.errors import NotFound, WrongState
from aggregator.store.engine import Change, record
from aggregator.store.tables import Administrator, Audit

PASSWORD_CHARACTERS_MIN = 12
HASH_BYTES = 32


@dataclass(frozen=True)
class Cost:
    """Parameters of scrypt (RFC 7914). A hash is stored with its own, so that they may grow later."""

    n: int
    r: int
    p: int


COST = Cost(n=1 << 15, r=8, p=1)  # of new hashes: a guess costs 32 MiB and about 50 ms


def add_administrator(session: Session, name: str, password: str, salt: bytes, change: Change) -> None:
    """Add an administrator; `salt` are 16 random bytes.

    Raises:
        WrongState: When the name is taken or the password is shorter than 12 characters.
    """
    if session.get(Administrator, name) is not None:
        raise WrongState(f"administrator {name!r} exists; remove it first, or choose another name")
    if len(password) < PASSWORD_CHARACTERS_MIN:
        raise WrongState(f"expected a password of at least {PASSWORD_CHARACTERS_MIN} characters, got {len(password)}")
    session.add(Administrator(name=name, password_hash=hash_password(password, salt), created_at=change.at))
    record(session, change, None, "added")


def remove_administrator(session: Session, name: str, change: Change) -> None:
    """Remove an administrator; `password_hash_of` then ends their sessions.

    Raises:
        NotFound: When there is none of that name.
    """
    administrator = session.get(Administrator, name)
    if administrator is None:
        raise NotFound(f"no administrator {name!r}; `admin list` shows those there are")
    session.delete(administrator)
    record(session, change, "added", "removed")


def administrators(session: Session) -> list[Administrator]:
    """Return all administrators, by name."""
    return list(session.scalars(select(Administrator).order_by(Administrator.name)))


def password_hash_of(session: Session, name: str) -> str | None:
    """Return the stored hash; None when there is no such administrator."""
    administrator = session.get(Administrator, name)
    return None if administrator is None else administrator.password_hash


def password_fits(session: Session, name: str, password: str) -> bool:
    """Whether `password` is the one of `name`."""
    administrator = session.get(Administrator, name)
    # A name that does not exist costs as much time as one that does, so the answer does not tell which names exist.
    # The hash of zeros has no password.
    stored = _stored(COST, bytes(16), bytes(HASH_BYTES)) if administrator is None else administrator.password_hash
    return verify_password(password, stored) and administrator is not None


def hash_password(password: str, salt: bytes) -> str:
    """Return scrypt$n$r$p$salt$hash, salt and hash in base64. `salt` are 16 random bytes."""
    return _stored(COST, salt, _scrypt(password, salt, COST))


def verify_password(password: str, stored: str) -> bool:
    """Whether `stored` was made from `password`, at the cost it names."""
    _kind, n, r, p, salt, expected = stored.split("$")
    hashed = _scrypt(password, base64.b64decode(salt), Cost(int(n), int(r), int(p)))
    # In constant time: the time of a comparison must not tell how many bytes were right.
    return hmac.compare_digest(hashed, base64.b64decode(expected))


def audit_trail(
    session: Session, subject: str | None = None, limit: int = 100, before_id: int | None = None
) -> list[Audit]:
    """Return rows of the audit trail, newest first.

    Args:
        session: A session of `Store.read`.
        subject: Only rows whose subject begins with this.
        limit: At most so many rows.
        before_id: Only rows older than the one with this id.
    """
    chosen = select(Audit).order_by(Audit.id.desc()).limit(limit)
    if subject is not None:
        # autoescape: an underscore in a site's name is a letter, not SQL's wildcard.
        chosen = chosen.where(Audit.subject.startswith(subject, autoescape=True))
    if before_id is not None:
        chosen = chosen.where(Audit.id < before_id)
    return list(session.scalars(chosen))


def _scrypt(password: str, salt: bytes, cost: Cost) -> bytes:
    # scrypt needs 128 * n * r bytes and a little more, which is just above OpenSSL's own limit of 32 MiB.
    memory = 256 * cost.n * cost.r
    return hashlib.scrypt(
        password.encode(), salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=max(memory, 1 << 20), dklen=HASH_BYTES
    )


def _stored(cost: Cost, salt: bytes, hashed: bytes) -> str:
    return "$".join(("scrypt", str(cost.n), str(cost.r), str(cost.p), _text(salt), _text(hashed)))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
