"""Administrators: who may log in, and that a password is nowhere."""

import pytest

from aggregator.errors import NotFound, WrongState
from aggregator.store import Change, Store
from aggregator.store.people import (
    add_administrator,
    administrators,
    audit_trail,
    password_fits,
    remove_administrator,
    verify_password,
)
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
    assert row.password_hash.split("$")[:4] == ["scrypt", "32768", "8", "1"]
    assert "horse" not in row.password_hash
    assert verify_password(PASSWORD, row.password_hash)


def test_a_name_twice_or_a_short_password_is_refused(with_ada: Store, change: Change) -> None:
    for name, password, told in (("ada", PASSWORD, "exists"), ("bob", "too short", "at least 12")):
        with pytest.raises(WrongState, match=told), with_ada.write() as session:
            add_administrator(session, name, password, b"t" * 16, change)
    with with_ada.read() as session:
        assert [row.name for row in administrators(session)] == ["ada"]


def test_a_removed_administrator_is_gone_and_the_audit_says_so(with_ada: Store, change: Change) -> None:
    with with_ada.write() as session:
        remove_administrator(session, "ada", change)
    with with_ada.read() as session:
        assert not password_fits(session, "ada", PASSWORD)
        assert [row.after for row in audit_trail(session)] == ["removed", "added"]
    with pytest.raises(NotFound), with_ada.write() as session:
        remove_administrator(session, "ada", change)
