"""The migrations lead to exactly what tables.py says."""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from aggregator.migrations import _config, revision_of, upgrade
from aggregator.states import SiteStanding
from aggregator.store import open_store, site_rows
from aggregator.store.tables import Base


def test_a_migrated_database_has_the_tables_of_tables_py(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    upgrade(store.engine)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    store.close()


def test_the_migrations_keep_every_comment() -> None:
    """SQLite stores no comments, so the migrations' own text is what can be compared."""
    versions = sorted((Path(upgrade.__code__.co_filename).parent / "versions").glob("*.py"))
    written = "".join(path.read_text() for path in versions)
    joined = "".join(written.replace('"\n            "', "").split())
    for table in Base.metadata.tables.values():
        for column in table.columns:
            if column.comment is not None:
                assert "".join(column.comment.split()) in joined, f"{table.name}.{column.name}"


def test_a_database_of_version_0_1_keeps_its_sites_and_nobody_has_left(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    with store.engine.connect() as connection, connection.begin():
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        columns = "name, csr_der, signing_key, sealing_key, fingerprint, joined_at, approved_at, recoveries_left"
        values = "'mercy', x'', x'', x'', 'six words', '2026-11-23 09:00:00', '2026-11-23 09:00:00', 5"
        connection.execute(text(f"INSERT INTO sites ({columns}) VALUES ({values})"))
    upgrade(store.engine)
    with store.read() as session:
        (site,) = site_rows.all_sites(session)
        assert (site.name, site_rows.standing(site)) == ("mercy", SiteStanding.APPROVED)
    store.close()


def test_upgrading_twice_changes_nothing(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    assert revision_of(store.engine) is None
    upgrade(store.engine)
    first = revision_of(store.engine)
    upgrade(store.engine)
    assert first == revision_of(store.engine) is not None
    assert set(inspect(store.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    store.close()
