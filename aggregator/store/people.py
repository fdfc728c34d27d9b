"""Administrators of the dashboard, and the audit trail they read."""

import base64
import hashlib
import hmac

from sqlalchemy import select
from sqlalchemy.orm import Session

from aggregator.errors import NotFound, WrongState
from aggregator.store.engine import Change, record
from aggregator.tables import Administrator, Audit

PASSWORD_CHARACTERS_MIN = 12
# scrypt, RFC 7914: 32 MiB and about 50 ms a try.
_N, _R, _P, _HASH_BYTES = 1 << 15, 8, 1, 32


def add_administrator(session: Session, name: str, password: str, salt: bytes, change: Change) -> None:
    """Raises: WrongState when the name is taken or the password shorter than 12 characters."""
    if session.get(Administrator, name) is not None:
        raise WrongState(f"administrator {name!r} exists; remove it first, or choose another name")
    if len(password) < PASSWORD_CHARACTERS_MIN:
        raise WrongState(f"expected a password of at least {PASSWORD_CHARACTERS_MIN} characters, got {len(password)}")
    session.add(Administrator(name=name, password_hash=hash_password(password, salt), created_at=change.at))
    record(session, change, None, "added")


def remove_administrator(session: Session, name: str, change: Change) -> None:
    """Raises: NotFound."""
    administrator = session.get(Administrator, name)
    if administrator is None:
        raise NotFound(f"no administrator {name!r}; `admin list` shows those there are")
    session.delete(administrator)
    record(session, change, "added", "removed")


def administrators(session: Session) -> list[Administrator]:
    return list(session.scalars(select(Administrator).order_by(Administrator.name)))


def password_fits(session: Session, name: str, password: str) -> bool:
    """Whether `password` is the one of `name`. Takes as long for a name that does not exist."""
    administrator = session.get(Administrator, name)
    stored = _NOBODY if administrator is None else administrator.password_hash
    return verify_password(password, stored) and administrator is not None


def hash_password(password: str, salt: bytes) -> str:
    """scrypt$n$r$p$salt$hash, base64. `salt`: 16 random bytes."""
    hashed = _scrypt(password, salt, _N, _R, _P)
    return "$".join(("scrypt", str(_N), str(_R), str(_P), _text(salt), _text(hashed)))


def verify_password(password: str, stored: str) -> bool:
    """Whether `stored` was made from `password`; with its own parameters, so that they may grow later."""
    _kind, n, r, p, salt, expected = stored.split("$")
    hashed = _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(hashed, base64.b64decode(expected))


def audit_trail(
    session: Session, subject: str | None = None, limit: int = 100, before_id: int | None = None
) -> list[Audit]:
    """The newest `limit` rows, newest first; of subjects beginning with `subject`; older than row `before_id`."""
    chosen = select(Audit).order_by(Audit.id.desc()).limit(limit)
    if subject is not None:
        chosen = chosen.where(Audit.subject.startswith(subject, autoescape=True))
    if before_id is not None:
        chosen = chosen.where(Audit.id < before_id)
    return list(session.scalars(chosen))


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=_HASH_BYTES)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


# A hash that no password has: its last part is zeros, not an scrypt output. Same parameters, so the same time.
_NOBODY = "$".join(("scrypt", str(_N), str(_R), str(_P), _text(bytes(16)), _text(bytes(_HASH_BYTES))))
