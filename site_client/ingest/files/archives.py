"""ZIP archives: their lists of members, and single members in memory. Nothing is ever written to a disk.

It unpacks files of strangers, so it runs in a reader process only (`reader_process`). The source of the format is
PKWARE's APPNOTE 6.3; `zipfile` reads it, also beyond 4 GiB.
"""

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Final

from site_client.errors import SeriesUnreadable
from site_client.ingest.files.addresses import Address, ListedMember, MemberStep, name_inside
from site_client.ingest.files.slices import unreadable
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import ARCHIVE_MEMBERS_MAX
from site_client.untrusted_files import open_regular

INNER_BYTES_MAX: Final = 256 << 20  # of a member that is unpacked as a whole, such as an archive inside an archive
_ANY_SIZE: Final = 1 << 62
# Traditional and strong encryption, and an encrypted list of members (APPNOTE 4.4.4: bits 0, 6 and 13).
_LOCKED: Final = 1 | 1 << 6 | 1 << 13
_STARTS: Final = (b"PK\x03\x04", b"PK\x05\x06")  # of a first member; of an archive without members


def begins_as_archive(start: bytes) -> bool:
    """Tells whether these are the first bytes of a ZIP archive."""
    return start.startswith(_STARTS)


class Archives:
    """The archive that was read last, kept for its next member: its list may take a second to parse."""

    def __init__(self) -> None:
        self._stamp: tuple[object, ...] = ()
        self._levels: list[zipfile.ZipFile] = []
        self._members: tuple[MemberStep, ...] = ()
        self._unpacked: tuple[tuple[MemberStep, ...], bytes] = ((), b"")

    def members(self, address: Address) -> list[ListedMember]:
        """Lists the files in an archive; its folders are no members of their own.

        Raises:
            SeriesUnreadable: Q_READ, Q_ARCHIVE_DAMAGED, Q_ARCHIVE_LIMIT or Q_ARCHIVE_LOCKED.
        """
        with _as_codes():
            archive = self._archive(address, address.members)
            if len(archive.infolist()) > ARCHIVE_MEMBERS_MAX:
                raise unreadable(Reason.Q_ARCHIVE_LIMIT)
            return [
                ListedMember(place, name_inside(info.filename) or "", info.file_size, _code(info))
                for place, info in enumerate(archive.infolist())
                if not info.is_dir()
            ]

    def member(self, address: Address, limit_bytes: int, keep: bool = False) -> bytes:
        """Unpacks one member.

        Args:
            address: Of the member.
            limit_bytes: It may have.
            keep: It will be asked for again, frame by frame.

        Raises:
            SeriesUnreadable: Also Q_DECODE_LIMIT, for a member that is larger.
        """
        with _as_codes():
            archive = self._archive(address, address.members[:-1])
            # `_archive` emptied it if the file is no longer the one that was unpacked.
            if self._unpacked[0] == address.members:
                return self._unpacked[1]
            data = _unpack(archive, address.members[-1], limit_bytes, Reason.Q_DECODE_LIMIT)
            if keep:
                self._unpacked = (address.members, data)
            return data

    def _archive(self, address: Address, way: Sequence[MemberStep]) -> zipfile.ZipFile:
        """Opens the archive to which the members lead, or finds it open."""
        file = open_regular(address.file, _ANY_SIZE)
        stamp = address.file, *_stamp(file)
        if stamp == self._stamp:
            file.close()
        else:
            self._forget()
            self._levels = [zipfile.ZipFile(file)]
            self._stamp = stamp
        shared = 0
        while shared < min(len(way), len(self._members)) and way[shared] == self._members[shared]:
            shared += 1
        del self._levels[shared + 1 :]
        self._members = tuple(way[:shared])
        for member in way[shared:]:
            self._levels.append(zipfile.ZipFile(_inner(self._levels[-1], member)))
            self._members = (*self._members, member)
        return self._levels[-1]

    def _forget(self) -> None:
        self._stamp, self._members, self._unpacked = (), (), ((), b"")
        for archive in self._levels:
            archive.close()
        self._levels = []


@contextmanager
def _as_codes() -> Iterator[None]:
    """Turns all that a damaged archive makes `zipfile` raise into a code."""
    try:
        yield
    except SeriesUnreadable:
        raise
    except (MemoryError, RecursionError):
        raise unreadable(Reason.Q_ARCHIVE_LIMIT) from None
    except Exception as error:  # nearly any, with names of members in it: only the kind of failure goes on
        # bz2 raises an OSError without a number for damaged bytes.
        of_the_disk = isinstance(error, OSError) and error.errno is not None
        raise unreadable(Reason.Q_READ if of_the_disk else Reason.Q_ARCHIVE_DAMAGED) from None


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _code(info: zipfile.ZipInfo) -> str:
    if name_inside(info.filename) is None:
        return Reason.S_OUTSIDE_ROOT.name
    return Reason.Q_ARCHIVE_LOCKED.name if info.flag_bits & _LOCKED else ""


def _info(archive: zipfile.ZipFile, member: MemberStep) -> zipfile.ZipInfo:
    """Finds a member by its place. Another name there: the archive was replaced since it was listed."""
    listed = archive.infolist()
    if member.place >= len(listed) or name_inside(listed[member.place].filename) != member.name:
        raise unreadable(Reason.Q_READ)
    return listed[member.place]


def _inner(archive: zipfile.ZipFile, member: MemberStep) -> BinaryIO:
    return io.BytesIO(_unpack(archive, member, INNER_BYTES_MAX, Reason.Q_ARCHIVE_LIMIT))


def _unpack(archive: zipfile.ZipFile, member: MemberStep, limit_bytes: int, of_a_larger_one: Reason) -> bytes:
    info = _info(archive, member)
    if info.flag_bits & _LOCKED:
        raise unreadable(Reason.Q_ARCHIVE_LOCKED)
    if info.file_size > limit_bytes:
        raise unreadable(of_a_larger_one)
    # `zipfile` unpacks no more than the list says, and compares the checksum.
    with archive.open(info) as packed:
        data = packed.read(limit_bytes + 1)
    if len(data) != info.file_size:
        raise unreadable(Reason.Q_ARCHIVE_DAMAGED)
    return data
