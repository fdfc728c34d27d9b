"""Files that a hostile process may leave where another one reads: by name, each a function that spoils a path."""

import os
from collections.abc import Callable
from pathlib import Path


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return spoil


def _sparse(path: Path) -> None:
    """A terabyte that takes no block of the disk."""
    path.touch()
    os.truncate(path, 1 << 40)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "nested": _replaced(lambda path: path.write_bytes(b"[" * 200_000)),
    "nested_within_the_limit": _replaced(lambda path: path.write_bytes(b'{"a":' * 10_000)),
    "digits": _replaced(lambda path: path.write_bytes(b'{"studies":' + b"9" * 5000 + b"}")),
    "digits_in_a_known_key": _replaced(lambda path: path.write_bytes(b'{"round":-' + b"9" * 5000 + b"}")),
    "not_utf8": _replaced(lambda path: path.write_bytes(b'{"state":"\xff\xfe"}')),
    "pipe": _replaced(os.mkfifo),
    "link_to_zeros": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "link_to_nowhere": _replaced(lambda path: path.symlink_to("nowhere")),
    "link_to_itself": _replaced(lambda path: path.symlink_to(path.name)),
    "folder": _replaced(Path.mkdir),
    "terabyte": _replaced(_sparse),
    "empty": _replaced(Path.touch),
    "missing": _replaced(lambda path: None),
}
