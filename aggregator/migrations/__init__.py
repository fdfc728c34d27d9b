"""The database's schema through time. `upgrade` brings any older one to that of `store/tables.py`.

A new revision: change tables.py, then `python -m aggregator.migrations "what changed"` writes a draft into versions/
from the difference; read it, correct it, commit both. A test fails when the two disagree.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

FOLDER = Path(__file__).resolve().parent


def upgrade(engine: Engine) -> None:
    """Create every table or bring it up to date, in one transaction where the database allows it."""
    with engine.connect() as connection, connection.begin():
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revision_of(engine: Engine) -> str | None:
    """Return the revision of a database; None when it holds no tables of the aggregator."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str | None:
    """Return the revision that this version's tables have."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
