"""What a chunk counts for, without writing it out."""

import pytest
from federation.v1.blobs_pb2 import BlobChunk

from aggregator.store.traffic import size_of_chunk


@pytest.mark.parametrize("offset", [0, 1, 1 << 40])
@pytest.mark.parametrize("data_bytes", [0, 1, 127, 128, 16_383, 16_384, 1 << 20])
def test_a_chunk_counts_for_its_size_as_a_message(data_bytes: int, offset: int) -> None:
    chunk = BlobChunk(digest=b"d" * 32, offset=offset, data=bytes(data_bytes))
    assert size_of_chunk(chunk, data_bytes) == chunk.ByteSize()
