"""Bytes received from and sent to each site, counted in memory and written down now and then.

A write at every call would cost more than the call. A crash loses a few seconds of a statistic.
"""

import threading
from collections import Counter
from typing import NamedTuple

from federation.v1.blobs_pb2 import BlobChunk
from sqlalchemy.orm import Session

from aggregator.store import round_rows


class SeatKey(NamedTuple):
    """A site in a round."""

    run_id: bytes
    round_number: int
    site: str


class Traffic:
    """Counts message and blob bytes, without framing and TLS. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._up: Counter[SeatKey] = Counter()
        self._down: Counter[SeatKey] = Counter()

    def add(self, key: SeatKey, *, up: int = 0, down: int = 0) -> None:
        """Count bytes received from the site (`up`) and sent to it (`down`)."""
        with self._lock:
            self._up[key] += up
            self._down[key] += down

    def write(self, session: Session) -> None:
        """Add the counts since the last call to the seats; counts of sites without that seat are dropped."""
        # Exchanged and not copied: calls keep counting while the database is written.
        with self._lock:
            up, down = self._up, self._down
            self._up, self._down = Counter(), Counter()
        keys = up.keys() | down.keys()
        # One statement a round: in masking all members of a cohort have counts.
        for run_id, number in {(key.run_id, key.round_number) for key in keys}:
            counts = [
                (key.site, up[key], down[key]) for key in keys if (key.run_id, key.round_number) == (run_id, number)
            ]
            for row in round_rows.find(session, run_id, number):
                round_rows.count_bytes(session, row.id, counts)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write down."""
        with self._lock:
            return not self._up and not self._down


def size_of_chunk(chunk: BlobChunk, data_bytes: int) -> int:
    """Compute `chunk.ByteSize()` from the length of its data.

    protobuf serializes the whole message to count it, which costs a copy of up to 1 MiB a chunk.
    """
    bare = BlobChunk(digest=chunk.digest, offset=chunk.offset).ByteSize()
    length_bytes = -(-data_bytes.bit_length() // 7)  # a varint holds seven bits a byte
    return bare + 1 + length_bytes + data_bytes if data_bytes else bare
