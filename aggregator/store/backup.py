"""A backup of the state folder while the service works, and the way back.

hub.sqlite       first, by SQLite's own copy of one moment
blobs, uploads   afterwards: a file is whole before the database names it
ca               the keys
audit.mark       how far the audit of this backup goes
"""

import os
import shutil
import sqlite3
from pathlib import Path

from aggregator.config import AggregatorSettings
from aggregator.errors import StateFolderRefused
from aggregator.store import audit_mark
from aggregator.store.audit_mark import Mark
from aggregator.store.engine import open_store

DATABASE = "hub.sqlite"
FOLDERS = ("ca", "blobs", "uploads")


def back_up(settings: AggregatorSettings, target: Path) -> Mark:
    """Copy the state of a running or stopped aggregator.

    Args:
        settings: Of the aggregator.
        target: A folder that does not exist yet, or is empty.

    Returns:
        The head of the audit in the backup.

    Raises:
        StateFolderRefused: When the database is not the folder's own, is damaged, or `target` holds files.
    """
    _expect_own_database(settings)
    folder = settings.state.folder
    if not (folder / DATABASE).exists():
        raise StateFolderRefused(f"{folder} holds no {DATABASE}; run `hemofed-aggregator init` first")
    _expect_empty(target)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True) as source:
        with sqlite3.connect(target / DATABASE) as copy:
            source.backup(copy)
            _end_sessions(copy)
        copy.close()
    source.close()  # `with` ends a transaction of sqlite3 and closes nothing
    for name in FOLDERS:
        (folder / name).mkdir(mode=0o700, exist_ok=True)  # blobs are none before the first `serve`
        _copy(folder / name, target / name)
    mark = _checked(target)
    os.sync()
    return mark


def restore(settings: AggregatorSettings, source: Path) -> Mark:
    """Make the state folder from a backup. The service is stopped.

    Args:
        settings: Of the aggregator; its state folder does not exist yet, or is empty.
        source: What `back_up` made.

    Returns:
        The head of the audit in the backup.

    Raises:
        StateFolderRefused: When `source` is no whole backup, or the state folder holds files.
    """
    _expect_own_database(settings)
    for name in (DATABASE, *FOLDERS, audit_mark.NAME):
        if not (source / name).exists():
            raise StateFolderRefused(f"expected {source} to be made by `hemofed-aggregator backup`, {name} is missing")
    folder = settings.state.folder
    _expect_empty(folder)
    mark = _checked(source)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _copy(source, folder)
    os.sync()
    return mark


def _end_sessions(copy: sqlite3.Connection) -> None:
    """Forget the sessions of the dashboard: restored later, they would bring those back that were ended meanwhile."""
    if copy.execute("SELECT 1 FROM sqlite_master WHERE name = 'sessions'").fetchone():  # not before revision 0011
        copy.execute("DELETE FROM sessions")


def _checked(folder: Path) -> Mark:
    """Note and compare the audit of a copy."""
    store = open_store(f"sqlite:///{folder.absolute() / DATABASE}")
    try:
        audit_mark.check(store, folder)
        return audit_mark.note(store, folder)
    finally:
        store.close()


def _copy(source: Path, target: Path) -> None:
    """Copy a folder. A file that is deleted meanwhile is an upload of an attempt that is over, and is left out."""
    target.mkdir(mode=0o700, exist_ok=True)
    for entry in sorted(source.iterdir()):
        if entry.is_symlink():
            continue
        if entry.is_dir():
            _copy(entry, target / entry.name)
            continue
        try:
            shutil.copy2(entry, target / entry.name)
        except FileNotFoundError:
            (target / entry.name).unlink(missing_ok=True)


def _expect_own_database(settings: AggregatorSettings) -> None:
    if settings.state.database:
        raise StateFolderRefused(
            "expected the database in the state folder, got another in [state] database; back it up and restore it by "
            f"its own means (pg_dump), and then copy {', '.join(FOLDERS)}"
        )


def _expect_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise StateFolderRefused(f"expected {folder} to be empty or not to exist, got files in it; name another folder")
