"""Addresses: where an image lies. It may be a file, a member of an archive, or a frame of a file with several.

An address is a path that goes on inside the file, a zero byte before each step. No path of a file system holds one, so
an address is never another file's path. A step is `<number>/<name>` for a member of an archive, `<number>` for a frame.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STEP = "\0"


@dataclass(frozen=True, slots=True)
class MemberStep:
    """A step into an archive: the member's place in the archive's directory, and its name as a relative path."""

    place: int
    name: str


@dataclass(frozen=True, slots=True)
class ListedMember:
    """A file as its archive lists it. `code`: Reason's name why it is not read, or ""."""

    place: int
    name: str
    size_bytes: int
    code: str


@dataclass(frozen=True, slots=True)
class Address:
    """An address in its parts. `members`: the way through archives, the outermost first; `frame`: from 0, or None."""

    file: Path
    members: tuple[MemberStep, ...] = ()
    frame: int | None = None

    @property
    def is_file(self) -> bool:
        """Whether the image is a file of its own."""
        return not self.members and self.frame is None


def member_address(archive: str, member: MemberStep) -> str:
    """Gives the address of a member of an archive."""
    return f"{archive}{_STEP}{member.place}/{member.name}"


def frame_address(file: str, frame: int) -> str:
    """Gives the address of a frame, counted from 0."""
    return f"{file}{_STEP}{frame}"


def parse_address(path: str | Path) -> Address:
    """Takes an address apart.

    Raises:
        ValueError: It is none.
    """
    file, *steps = str(path).split(_STEP)
    members: list[MemberStep] = []
    frame: int | None = None
    for step in steps:
        number, slash, name = step.partition("/")
        if frame is not None:
            raise ValueError("a frame has no inside")
        if slash:
            members.append(MemberStep(int(number), name))
        else:
            frame = int(number)
    return Address(Path(file), tuple(members), frame)


def archives_deep(address: str) -> int:
    """Counts the archives around an image."""
    return sum("/" in step for step in address.split(_STEP)[1:])


def containers(address: str) -> Iterator[str]:
    """Yields the addresses of all that holds the image, the innermost first; none for a file of its own."""
    while _STEP in address:
        address = address.rpartition(_STEP)[0]
        yield address


def as_path(address: str) -> str:
    """Writes an address for people, an archive as the folder that it stands for: `a.zip/CT/1.dcm, frame 12`."""
    file, *steps = address.split(_STEP)
    for step in steps:
        number, slash, name = step.partition("/")
        file += f"/{name}" if slash else f", frame {int(number) + 1}"
    return file


def name_inside(name: str) -> str | None:
    """Reduces a member's name to a relative path; None if it leads out of the archive, or nowhere.

    Names are never used to open or write a file. A name that tries to leave is a sign of an archive made to harm.
    """
    name = name.replace("\\", "/").replace(_STEP, "")
    path = posixpath.normpath(name)
    leaves = path.startswith(("/", "../")) or path in ("..", ".") or path[1:2] == ":"
    return None if leaves else path
