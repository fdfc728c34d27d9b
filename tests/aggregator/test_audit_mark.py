"""The note beside the database: a database that lost its end, or was damaged, is not served."""

import json
import sqlite3
from pathlib import Path

import pytest

from aggregator.errors import StateFolderRefused
from aggregator.store import Cause, Store, audit_mark, record
from tests.aggregator.conftest import StandingClock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def act(store: Store, clock: StandingClock, times: int = 1, what: str = "renamed") -> None:
    for _ in range(times):
        with store.write() as session:
            record(session, Cause(clock(), "operator", "a test").of("site:north"), None, what)


def test_a_database_that_goes_on_fits_its_note(store: Store, clock: StandingClock, folder: Path) -> None:
    audit_mark.check(store, folder)
    audit_mark.note(store, folder)
    audit_mark.check(store, folder)
    act(store, clock, 3)
    audit_mark.note(store, folder)
    assert json.loads((folder / "audit.mark").read_bytes())["entries"] == 3
    act(store, clock, 2)  # after the last note, as before a kill
    audit_mark.check(store, folder)


def test_a_database_that_lost_its_end_is_refused_until_the_note_is_deleted(
    store: Store, clock: StandingClock, folder: Path
) -> None:
    act(store, clock, 3)
    audit_mark.note(store, folder)
    with store.write() as session:
        session.connection().exec_driver_sql("DELETE FROM audit WHERE id = 3")
    with pytest.raises(
        StateFolderRefused, match=r"hold audit row 3 .*got one that ends at row 2: .*deleting audit\.mark"
    ):
        audit_mark.check(store, folder)
    act(store, clock, what="another history")
    with pytest.raises(StateFolderRefused, match="got another row in its place"):
        audit_mark.check(store, folder)
    (folder / "audit.mark").unlink()
    audit_mark.check(store, folder)


def test_an_empty_database_beside_a_note_is_refused(
    store: Store, clock: StandingClock, folder: Path, tmp_path: Path
) -> None:
    act(store, clock)
    audit_mark.note(store, folder)
    with store.write() as session:
        session.connection().exec_driver_sql("DROP TABLE audit")
    with pytest.raises(StateFolderRefused, match="got one that ends at row 0"):
        audit_mark.check(store, folder)


def test_a_note_is_never_taken_back(store: Store, clock: StandingClock, folder: Path) -> None:
    act(store, clock, 3)
    audit_mark.note(store, folder)
    noted = (folder / "audit.mark").read_bytes()
    with store.write() as session:
        session.connection().exec_driver_sql("DELETE FROM audit WHERE id = 3")
    audit_mark.note(store, folder)
    assert (folder / "audit.mark").read_bytes() == noted


def test_a_damaged_note_is_one_sentence(store: Store, folder: Path) -> None:
    for content in (b"", b"[]", b'{"entries": 1}', b"\xff"):
        (folder / "audit.mark").write_bytes(content)
        with pytest.raises(StateFolderRefused, match="got something else; the disk may be failing"):
            audit_mark.check(store, folder)


def test_a_damaged_page_of_the_database_is_noticed(store: Store, clock: StandingClock, folder: Path) -> None:
    act(store, clock, 200, what="x" * 200)
    path = Path(str(store.engine.url.database))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    audit_mark.check(store, folder)
    store.close()
    with path.open("r+b") as file:
        for page in range(4, path.stat().st_size // 4096, 5):  # not the first one: a file without it is no database
            file.seek(page * 4096)
            file.write(b"\x99" * 64)
    with pytest.raises(StateFolderRefused, match="expected an intact database"):
        audit_mark.check(store, folder)
