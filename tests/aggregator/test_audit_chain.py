"""The audit trail is a chain: a row that is changed, put in or taken out breaks it, and its head is shown."""

import re
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text

from aggregator.errors import AuditBroken, LostRace, StateFolderRefused
from aggregator.migrations import _config, upgrade
from aggregator.store import Cause, Store, audit_chain, audit_mark, open_store, record, site_rows
from tests.aggregator.conftest import StandingClock
from tests.aggregator.test_cli_aggregator import Console, console, fresh

__all__ = ["console", "fresh"]  # fixtures


def act(store: Store, clock: StandingClock, *what: str) -> None:
    with store.write() as session:
        for after in what:
            record(session, Cause(clock(), "person:ada", "a test").of("site:north"), None, after)
    clock.advance(seconds=1)


def verified(store: Store) -> audit_chain.ChainHead:
    with store.read() as session:
        return audit_chain.verify(session)


def test_rows_of_one_and_of_several_transactions_are_one_chain(store: Store, clock: StandingClock) -> None:
    assert verified(store) == (0, audit_chain.ORIGIN)
    act(store, clock, "one", "two")
    act(store, clock, "three")
    head = verified(store)
    assert head.entries == 3
    with store.read() as session:
        assert audit_chain.head(session) == head


def test_a_transaction_that_fails_leaves_no_row_and_no_gap(store: Store, clock: StandingClock) -> None:
    act(store, clock, "one")
    change = Cause(clock(), "person:ada", "a test").of("site:north")

    def fail() -> None:
        with store.write() as session:
            record(session, change, None, "lost")
            site_rows.suspend(session, "north", change)  # there is no such site

    with pytest.raises(LostRace):
        fail()
    act(store, clock, "two")
    assert verified(store).entries == 2


@pytest.mark.parametrize(
    ("statement", "first_wrong"),
    [
        ("UPDATE audit SET actor = 'person:bob' WHERE id = 2", 2),
        ("UPDATE audit SET at = '2020-01-01 00:00:00' WHERE id = 3", 3),
        ("DELETE FROM audit WHERE id = 2", 3),
        ("UPDATE audit SET digest = NULL WHERE id = 4", 4),
        ("UPDATE audit SET at = 'junk' WHERE id = 2", 2),
        ("UPDATE audit SET before = x'ff' WHERE id = 3", 3),
        ("UPDATE audit SET why = CAST(x'ff' AS TEXT) WHERE id = 4", 4),
        ("UPDATE audit SET why = (SELECT why FROM audit WHERE id = 1), subject = 'x' WHERE id = 1", 1),
    ],
)
def test_a_row_that_was_touched_breaks_the_chain_there(
    store: Store, clock: StandingClock, statement: str, first_wrong: int
) -> None:
    act(store, clock, "one", "two", "three", "four")
    with store.write() as session:
        session.connection().exec_driver_sql(statement)
    with pytest.raises(AuditBroken, match=f"expected audit row {first_wrong} to follow from the row before"):
        verified(store)


def test_a_head_that_was_noted_elsewhere_shows_a_lost_end_and_a_chain_made_anew(
    store: Store, clock: StandingClock
) -> None:
    act(store, clock, "one", "two", "three")
    noted = verified(store)
    act(store, clock, "four")
    with store.read() as session:
        assert audit_chain.verify(session, noted).entries == 4
    with store.write() as session:
        session.connection().exec_driver_sql("UPDATE audit SET after = 'other' WHERE id = 1")
        audit_chain.chain_all(session.connection())
    assert verified(store).entries == 4
    with store.read() as session, pytest.raises(AuditBroken, match=r"row 3 .* got one that has another head there"):
        audit_chain.verify(session, noted)
    with store.write() as session:
        session.connection().exec_driver_sql("DELETE FROM audit WHERE id > 2")
    with store.read() as session, pytest.raises(AuditBroken, match=r"row 3 .* got one that ends at row 2"):
        audit_chain.verify(session, noted)


def test_numbers_that_a_database_left_out_are_no_break_and_the_head_has_the_row_s_number(
    store: Store, clock: StandingClock
) -> None:
    act(store, clock, "one", "two")
    with store.write() as session:
        session.connection().exec_driver_sql("UPDATE audit SET id = 7 WHERE id = 2")
    with store.read() as session:
        assert audit_chain.verify(session) == audit_chain.head(session)
        assert audit_chain.head(session).entries == 7


def test_rows_of_before_there_was_a_chain_join_it_on_the_upgrade_and_the_note_fits(
    tmp_path: Path, clock: StandingClock
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    with store.engine.connect() as connection, connection.begin():
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        for number in range(3):
            values = f"'2026-11-23 09:00:0{number}.000000', 'operator', 'site:north', NULL, 'seen', 'a test'"
            connection.execute(text(f'INSERT INTO audit (at, actor, subject, "before", after, why) VALUES ({values})'))
    noted = audit_mark.note(store, tmp_path)  # as version 0.1.0 did
    upgrade(store.engine)
    audit_mark.check(store, tmp_path)
    assert verified(store).entries == 3
    act(store, clock, "after the upgrade")
    assert audit_mark.note(store, tmp_path) == (4, verified(store).digest.hex()) != noted
    audit_mark.check(store, tmp_path)
    store.close()


def test_the_command_prints_the_head_that_a_backup_prints_and_finds_a_change(console: Console) -> None:
    console("site", "invite", "st-mary")
    said = console("audit", "--verify").stdout
    head = console.json("audit", "--verify")["head"]
    assert said == f"The chain of 1 rows is intact; its head is {head}.\n"
    assert head in console("backup", str(console.folder / "backup")).stdout
    database = sqlite3.connect(console.folder / "state" / "hub.sqlite")
    database.execute("UPDATE audit SET why = 'invited by nobody'")
    database.commit()
    database.close()
    assert "expected audit row 1 to follow from the row before" in console.refused("audit", "--verify")


def test_the_command_finds_a_lost_end_by_the_note_and_by_an_anchor(console: Console) -> None:
    console("site", "invite", "st-mary")
    console("site", "invite", "charite")
    head = console.json("audit", "--verify")["head"]
    anchored = ("audit", "--verify", "--anchor", f"2:{head}")
    assert console(*anchored).exit_code == 0
    assert console("audit", "--verify", "--csv").stdout == f"entries,head\n2,{head}\n"
    assert "expected ENTRIES:HEAD" in console.refused("audit", "--verify", "--anchor", head)
    assert console("audit", "--anchor", f"2:{head}").exit_code == 2
    store = open_store(f"sqlite:///{console.folder / 'state' / 'hub.sqlite'}")
    audit_mark.note(store, console.folder / "state")
    with store.write() as session:
        session.connection().exec_driver_sql("DELETE FROM audit WHERE id = 2")
    store.close()
    assert "ends at row 1" in console.refused("audit", "--verify")
    assert "got one that ends at row 1" in console.refused(*anchored)


@pytest.mark.parametrize("left", [b"", b"no database at all", None])
def test_a_database_that_is_lost_or_damaged_is_one_sentence_for_every_command(
    console: Console, left: bytes | None
) -> None:
    console("site", "invite", "st-mary")
    database = console.folder / "state" / "hub.sqlite"
    store = open_store(f"sqlite:///{database}")
    audit_mark.note(store, console.folder / "state")
    store.close()
    for part in ("", "-wal", "-shm"):
        database.with_name(database.name + part).unlink(missing_ok=True)
    if left is not None:
        database.write_bytes(left)
    for command_ in (("site", "list"), ("audit", "--verify"), ("doctor",), ("backup", str(console.folder / "b"))):
        assert "restore the whole folder from a backup" in console.refused(*command_)


def test_a_restored_backup_goes_on_with_its_chain(console: Console) -> None:
    console("site", "invite", "st-mary")
    console("backup", str(console.folder / "backup"))
    (console.folder / "state").rename(console.folder / "lost")
    restored = console("restore", str(console.folder / "backup")).stdout
    assert console.json("audit", "--verify")["head"] in restored
    console("site", "invite", "charite")
    assert console.json("audit", "--verify")["entries"] == 2


def test_a_database_of_an_older_version_is_named_by_every_command_but_serve(console: Console) -> None:
    database = sqlite3.connect(console.folder / "state" / "hub.sqlite")
    database.execute("UPDATE alembic_version SET version_num = '0006'")
    database.commit()
    database.close()
    assert re.search(
        r"expected a database of revision \d+, got 0006; start `hemofed-aggregator serve`", console.refused("audit")
    )


def test_a_note_ahead_of_the_chain_is_refused(store: Store, clock: StandingClock, tmp_path: Path) -> None:
    act(store, clock, "one", "two")
    audit_mark.note(store, tmp_path)
    with store.write() as session:
        session.connection().exec_driver_sql("DELETE FROM audit WHERE id = 2")
    clock.advance(seconds=timedelta(hours=1).total_seconds())
    with pytest.raises(StateFolderRefused, match="audit row 2"):
        audit_mark.check(store, tmp_path)
