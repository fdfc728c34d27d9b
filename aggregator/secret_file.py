"""Files that only their owner reads: keys and their certificates."""

import os
from pathlib import Path


def write_secret(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 atomically: no reader sees half of it, and it survives a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    # Made with its mode and not changed to it later: at no moment may another user read it.
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "wb") as writer:
        writer.write(content)
        writer.flush()
        os.fsync(writer.fileno())
    temporary.rename(path)
    # Without it a power cut may undo the rename, and a key would be another one than others hold.
    _sync(path.parent)


def destroy_secret(path: Path) -> None:
    """Overwrite a file and remove it, durably. On a copy-on-write disk or in a backup an older copy may remain."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
