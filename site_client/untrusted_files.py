"""Files that another process wrote, which may be anything: each is checked before a byte of it is read.

The trainer reads files that came from outside (images), and the agent talks to the network. So each side takes the
other one's files for hostile: a link into its own folders, a pipe that never ends, a device, a file of a terabyte.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

from site_client.errors import SpoolRefused

# No link is followed. Without O_NONBLOCK the opening of a pipe would wait for a writer, and the agent with it.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_regular(path: str | Path, size_max: int, folder: int | None = None) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        path: The file; its last component is not followed if it is a link.
        size_max: Bytes that it may have at most.
        folder: Descriptor of the open folder that `path` begins in; None: the working directory.

    Raises:
        ValueError: It is a link, a folder, a pipe, a socket or a device, or larger than `size_max`. The message is a
            clause.
        OSError: It is not there, or may not be read.
    """
    try:
        handle = os.open(path, _READ, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise ValueError("it is no regular file") from None
        raise
    try:
        # The open file and not its name: the name may lead to another file by now.
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > size_max:
            raise ValueError(f"it is larger than {size_max} bytes")
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: str | Path, size_max: int, folder: int | None = None) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: As for `open_regular`.
        size_max: Likewise. A file that grows meanwhile gives one byte more at most, which `typed_json.decode` refuses.
        folder: Likewise.

    Raises:
        ValueError: As from `open_regular`.
        OSError: Likewise.
    """
    with open_regular(path, size_max, folder) as file:
        return file.read(size_max + 1)


@contextmanager
def open_folder(root: Path, *names: str) -> Iterator[int]:
    """Open a folder below `root`, one component after the other, none of them a link.

    Args:
        root: A path that the administrator chose; it may hold links.
        names: Of the folders below it, the outermost first.

    Yields:
        A descriptor for `open_regular` and `os.scandir`. It stays at this folder when another process exchanges the
        name for a link.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A component is a link or no folder. The message is a clause.
        OSError: It may not be read.
    """
    handle = os.open(root, _FOLDER)
    try:
        for name in names:
            try:
                inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
            except NotADirectoryError:  # also for a link: O_DIRECTORY is checked first
                raise ValueError(f"{name} is no folder") from None
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


class UntrustedFolder:
    """A folder that another process writes, as its reader sees it: a street of the spool."""

    def __init__(self, root: Path, name: str, record_bytes_max: int) -> None:
        """Take the folder `name` in `root`; nothing is read yet.

        Args:
            root: The spool.
            name: Of the folder, which may not be a link.
            record_bytes_max: The size of the largest record.
        """
        self.root, self.path = root, root / name
        self._record_bytes_max = record_bytes_max

    def names(self) -> list[str]:
        """List the folder; empty when there is none.

        Raises:
            SpoolRefused: It is a link or no folder, or may not be read.
        """
        try:
            with open_folder(self.root, self.path.name) as folder:
                return os.listdir(folder)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise SpoolRefused(f"the spool's {self.path.name} cannot be listed ({_why(error)}); mend it") from None

    def has(self, name: str) -> bool:
        """Whether something in the folder has this name."""
        try:
            with open_folder(self.root, self.path.name) as folder:
                os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (OSError, ValueError):  # also a folder that may not be entered: reading from it says why
            return False
        return True

    def read(self, *names: str) -> bytes:
        """Return a record's bytes. The last name is the file's; the others are those of folders.

        Raises:
            FileNotFoundError: There is none.
            SpoolRefused: It is no regular file, too large, or may not be read.
        """
        with self.open(*names, size_max=self._record_bytes_max) as file:
            return file.read(self._record_bytes_max + 1)

    @contextmanager
    def open(self, *names: str, size_max: int) -> Iterator[BufferedReader]:
        """Open a file of at most `size_max` bytes; otherwise as `read`.

        Raises:
            FileNotFoundError: There is none.
            SpoolRefused: As from `read`, also while the block reads.
        """
        *folders, name = names
        try:
            with (
                open_folder(self.root, self.path.name, *folders) as folder,
                open_regular(name, size_max, folder) as file,
            ):
                yield file
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            why = _why(error)
            raise SpoolRefused(f"{name} in the spool's {self.path.name} cannot be read ({why}); remove it") from None


def _why(error: OSError | ValueError) -> str:
    # Not str() of an OSError, which repeats the path.
    return os.strerror(error.errno or errno.EIO).lower() if isinstance(error, OSError) else str(error)
