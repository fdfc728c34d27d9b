"""Administrators: who may log in, and that a password is nowhere."""

import base64
import hashlib

import pytest
from sqlalchemy.orm import Session

from aggregator.errors import NotFound, WrongState
from aggregator.store import Change, Store
from aggregator.store.people import (
    add_administrator,
    administrators,
    audit_trail,
    find,
    hash_password,
    password_fits,
    remove_administrator,
    renew_hash,
    verify_password,
)
from aggregator.store.tables import Administrator
from tests.aggregator.conftest import StandingClock

PASSWORD = "correct horse battery"


@pytest.fixture
def change(clock: StandingClock) -> Change:
    return Change(clock(), "operator", "administrator:ada", "test")


@pytest.fixture
def with_ada(store: Store, change: Change) -> Store:
    with store.write() as session:
        add_administrator(session, "ada", PASSWORD, b"s" * 16, change)
    return store


def test_only_the_right_password_of_a_name_that_exists_fits(with_ada: Store) -> None:
    with with_ada.read() as session:
        assert password_fits(session, "ada", PASSWORD)
        assert not password_fits(session, "ada", PASSWORD + " ")
        assert not password_fits(session, "bob", PASSWORD)
        assert not password_fits(session, "ada", "")


def test_the_row_holds_a_salted_hash_with_its_parameters(with_ada: Store) -> None:
    with with_ada.read() as session:
        [row] = administrators(session)
    assert row.password_hash.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert "horse" not in row.password_hash
    assert verify_password(PASSWORD, row.password_hash)


def test_a_hash_of_version_0_1_0_is_verified_and_replaced_when_its_owner_logs_in(with_ada: Store) -> None:
    salt, cost = b"t" * 16, {"n": 1 << 15, "r": 8, "p": 1}
    hashed = hashlib.scrypt(PASSWORD.encode(), salt=salt, **cost, maxmem=1 << 26, dklen=32)
    old = f"scrypt$32768$8$1${base64.b64encode(salt).decode()}${base64.b64encode(hashed).decode()}"
    with with_ada.write() as session:
        get_person(session, "ada").password_hash = old
    with with_ada.read() as session:
        assert password_fits(session, "ada", PASSWORD)
        assert not password_fits(session, "ada", PASSWORD + " ")
    for _ in range(2):  # the second time changes nothing
        with with_ada.write() as session:
            renew_hash(session, "ada", PASSWORD, b"u" * 16)
        with with_ada.read() as session:
            stored = get_person(session, "ada").password_hash
        assert stored == hash_password(PASSWORD, b"u" * 16)
        assert verify_password(PASSWORD, stored)


def test_a_hash_that_is_none_fits_no_password() -> None:
    assert not verify_password("", "$argon2id$")
    assert not verify_password(PASSWORD, "")


def get_person(session: Session, name: str) -> Administrator:
    person = find(session, name)
    assert person is not None
    return person


def test_a_name_twice_or_a_short_password_is_refused(with_ada: Store, change: Change) -> None:
    for name, password, told in (
        ("ada", PASSWORD, "exists"),
        ("bob", "too short", "at least 12"),
        ("bob", "\udcff" * 12, "in UTF-8"),
    ):
        with pytest.raises(WrongState, match=told), with_ada.write() as session:
            add_administrator(session, name, password, b"t" * 16, change)
    with with_ada.read() as session:
        assert [row.name for row in administrators(session)] == ["ada"]


def test_a_removed_administrator_is_gone_and_the_audit_says_so(with_ada: Store, change: Change) -> None:
    with with_ada.write() as session:
        remove_administrator(session, "ada", change)
    with with_ada.read() as session:
        assert not password_fits(session, "ada", PASSWORD)
        assert [row.after for row in audit_trail(session)] == ["removed", "added as admin"]
    with pytest.raises(NotFound), with_ada.write() as session:
        remove_administrator(session, "ada", change)
