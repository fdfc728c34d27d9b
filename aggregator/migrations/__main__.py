"""Draft a revision: python -m aggregator.migrations "add such and such"."""

import sys
import tempfile
from pathlib import Path

from alembic import command

from aggregator.migrations import _config, upgrade
from aggregator.store import open_store


def main() -> None:
    """Compare tables.py with a database made by the revisions so far, and write the difference as a new revision."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'draft.sqlite'}")
        upgrade(store.engine)
        with store.engine.connect() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.revision(config, sys.argv[1], autogenerate=True)
        store.close()


main()
