"""The migrations lead to exactly what tables.py says."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from aggregator.migrations import revision_of, upgrade
from aggregator.store import open_store
from aggregator.tables import Table


def test_a_migrated_database_has_the_tables_of_tables_py(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    upgrade(store.engine)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
    store.close()


def test_the_migrations_keep_every_comment() -> None:
    """SQLite stores no comments, so the migrations' own text is what can be compared."""
    versions = sorted((Path(upgrade.__code__.co_filename).parent / "versions").glob("*.py"))
    text = "".join(path.read_text() for path in versions)
    joined = "".join(text.replace('"\n            "', "").split())
    for table in Table.metadata.tables.values():
        for column in table.columns:
            if column.comment is not None:
                assert "".join(column.comment.split()) in joined, f"{table.name}.{column.name}"


def test_upgrading_twice_changes_nothing(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    assert revision_of(store.engine) is None
    upgrade(store.engine)
    first = revision_of(store.engine)
    upgrade(store.engine)
    assert first == revision_of(store.engine) is not None
    assert set(inspect(store.engine).get_table_names()) == {*Table.metadata.tables, "alembic_version"}
    store.close()
