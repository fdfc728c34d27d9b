"""The egress ledger in segments: ten years of messages, and a start that reads the newest of them only.

    <state>/agent/ledger.jsonl                     the newest entries; the only file that grows
    <state>/agent/ledger.segments/000001.jsonl     the first entries, byte for byte as they were in ledger.jsonl
    <state>/agent/ledger.segments/segments.jsonl   a signed line a segment: first and last entry, head, size, SHA-256

The chain of entries goes on from one file to the next, so all files one after the other are the ledger as one file, as
`ledger export` writes it. Sealing takes three steps, in this order, each durable before the next:

    1. the signed line of the segment
    2. ledger.jsonl gets its second name in ledger.segments
    3. an empty ledger.jsonl takes the first name

After a crash between them ledger.jsonl still begins with the first entry of the last segment in the list. It is read as
that segment, and the next start takes the steps that are missing.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

from msgspec import Meta

from site_client.agent.chained_file import (
    START,
    Chain,
    ChainedFile,
    Position,
    Signature,
    canonical,
    last_line_hash,
    open_to_read,
)
from site_client.errors import LedgerBroken, StateUnreadable
from site_client.files import DISK_ERRORS, private_folder, sha256_of, sync_folder
from site_client.typed_json import Digest, decode

LIST_CHAIN: Final = Chain("list of the egress ledger's segments", "hemofed ledger segments v1")
_LIST: Final = "segments.jsonl"


@dataclass(frozen=True)
class Segment:
    """A line of the list.

    Attributes:
        seq: Number of the segment: 1, 2, 3 ...
        utc: Time of sealing.
        first: Its first entry.
        last: Its last entry.
        head: Hash of the last entry's line.
        size_bytes: Of its file.
        sha256: Of its file.
        key: That signed this line.
        prev_hash: Hash of the line before.
        sig: Over this line.
    """

    seq: Annotated[int, Meta(ge=1)]
    utc: Annotated[datetime, Meta(tz=True)]
    first: Annotated[int, Meta(ge=1)]
    last: Annotated[int, Meta(ge=1)]
    head: Digest
    size_bytes: Annotated[int, Meta(ge=1)]
    sha256: Digest
    key: Digest
    prev_hash: Digest
    sig: Signature

    @property
    def end(self) -> Position:
        """The position that the next segment continues."""
        return self.last, self.head.hex()

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.seq:06}.jsonl"


class Segments:
    """The sealed segments of one ledger. Reading changes nothing, and works beside a running agent."""

    def __init__(self, path: Path, chain: Chain) -> None:
        """Take the ledger's path and the form of its lines; `path` itself is the file that grows."""
        self._path, self._chain = path, chain
        self._folder = path.with_suffix(".segments")

    def listed(self) -> list[Segment]:
        """Return all sealed segments, oldest first, each with its signature verified.

        Raises:
            LedgerBroken: A line of the list does not verify.
        """
        segments: list[Segment] = []
        for number, (record, line) in enumerate(LIST_CHAIN.lines(self._folder / _LIST), 1):
            try:
                segment = decode(Segment, line, whole=True)
            except ValueError:
                raise LIST_CHAIN.broken(number) from None
            follows = segment.first == (segments[-1].last if segments else 0) + 1 and segment.last >= segment.first
            if not follows or not LIST_CHAIN.is_authentic(record):
                raise LIST_CHAIN.broken(number)
            segments.append(segment)
        return segments

    def file_of(self, segment: Segment) -> Path:
        """Return the path of a sealed segment."""
        return self._folder / segment.name

    def lines(self, since: int = 1) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield records and lines of the whole ledger, as `Chain.lines` does for one file.

        Args:
            since: Entries before the segment that holds this one are left out.

        Raises:
            LedgerBroken: An entry or a line of the list does not verify, or a segment is missing.
        """
        # First: a running agent may seal it before the list is read, and it is then the last segment in the list.
        growing = open_to_read(self._path)
        try:
            segments = self.listed()
            position = START
            for segment in segments:
                is_growing = segment is segments[-1] and _begins_with(growing, segment.first)
                if segment.last >= since:
                    file = growing if is_growing else open_to_read(self.file_of(segment))
                    if file is None:
                        raise self._missing(segment)
                    with file:
                        yield from self._lines_of(segment, file, position)
                elif is_growing and growing is not None:
                    growing.close()  # all of its entries are left out
                position = segment.end
            if growing is not None and not growing.closed:
                yield from self._chain.lines_in(growing, position)
        finally:
            if growing is not None:
                growing.close()

    def check_shapes(self, segments: list[Segment]) -> None:
        """Check that every segment is there, with its size and its last entry. Reads the end of each file only.

        Raises:
            LedgerBroken: A segment is missing, was exchanged, or has another length.
        """
        for segment in segments:
            file = open_to_read(self.file_of(segment))
            if file is None:
                raise self._missing(segment)
            with file:
                is_whole = os.fstat(file.fileno()).st_size == segment.size_bytes
                if not is_whole or last_line_hash(file) != segment.head.hex():
                    raise self._changed(segment)

    def check_digest(self, segment: Segment) -> None:
        """Compare a segment's bytes with the SHA-256 in the list.

        Raises:
            LedgerBroken: It is missing, or was changed.
            StateUnreadable: It cannot be read.
        """
        try:
            digest = sha256_of(self.file_of(segment))
        except FileNotFoundError:
            raise self._missing(segment) from None
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise
            raise StateUnreadable.of(segment.name, error) from error
        if digest != segment.sha256:
            raise self._changed(segment)

    def kept(self, segments: list[Segment]) -> list[Segment]:
        """Return those of the listed segments whose sealing is complete: all, or all but the newest."""
        growing = open_to_read(self._path)
        if growing is None:
            return segments
        with growing:
            is_pending = bool(segments) and _begins_with(growing, segments[-1].first)
        return segments[:-1] if is_pending else segments

    def add(self, file: ChainedFile, signed_list: ChainedFile) -> Segment:
        """Take the first step of sealing.

        Raises:
            OSError: The disk is full, and nothing was sealed.
        """
        facts = {
            "first": file.after[0] + 1,
            "last": file.entries,
            "head": file.head,
            "size_bytes": file.size_bytes,
            "sha256": sha256_of(self._path).hex(),
        }
        record = signed_list.append(facts)
        # The list's own name, and the folder's.
        sync_folder(self._folder)
        sync_folder(self._folder.parent)
        return decode(Segment, canonical(record), whole=True)

    def keep(self, segment: Segment, file: ChainedFile) -> None:
        """Take the other two steps of sealing, those of them that are missing.

        Raises:
            LedgerBroken: Another file has the segment's name.
            OSError: The disk is full; the next call goes on.
        """
        kept = self.file_of(segment)
        if not kept.exists():
            kept.hardlink_to(self._path)
        elif not kept.samefile(self._path):
            raise self._changed(segment)
        sync_folder(self._folder)
        file.begin_anew()

    def list_path(self) -> Path:
        """Return the path of the list, in a folder that exists."""
        return private_folder(self._folder) / _LIST

    def _lines_of(self, segment: Segment, file: BinaryIO, position: Position) -> Iterator[tuple[dict[str, Any], bytes]]:
        last, size_bytes = position[0], 0
        for record, line in self._chain.lines_in(file, position):
            last, size_bytes = record["seq"], size_bytes + len(line) + 1
            if last > segment.last:
                raise self._chain.broken(last)
            yield record, line
        if last < segment.last:
            raise self._chain.broken(last + 1)
        file.seek(0)
        if size_bytes != os.fstat(file.fileno()).st_size or last_line_hash(file) != segment.head.hex():
            raise self._chain.broken(last)

    def _missing(self, segment: Segment) -> LedgerBroken:
        return self._refusal(segment, "is missing")

    def _changed(self, segment: Segment) -> LedgerBroken:
        return self._refusal(segment, "was changed outside the agent, or exchanged")

    def _refusal(self, segment: Segment, why: str) -> LedgerBroken:
        name = f"{self._folder.name}/{segment.name}"
        return LedgerBroken(
            f"{name}, which holds entries {segment.first} to {segment.last} of the {self._chain.name}, {why}; keep the "
            "folder for the investigation, and restore the file from the backup",
            segment.first,
        )


def _begins_with(file: BinaryIO | None, seq: int) -> bool:
    """Whether the first line of an open file is the entry `seq`."""
    if file is None:
        return False
    line = file.readline()
    file.seek(0)
    try:
        return bool(json.loads(line)["seq"] == seq)
    except (ValueError, TypeError, KeyError, RecursionError):  # no line, or a damaged one, which reading it names
        return False
