"""An echo at the aggregator: bounded in size, and in what one site may move in a minute."""

import zlib

import pytest
from federation.bandwidth import sequence
from federation.limits import CHUNK_BYTES_MAX
from federation.v1 import bandwidth_pb2

from aggregator.errors import Busy, MessageRefused
from aggregator.sites.bandwidth import CALL_BYTES, WINDOW_BYTES_MAX, WINDOW_S, BandwidthTest


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def echoes(seconds: Seconds) -> BandwidthTest:
    return BandwidthTest(seconds)


@pytest.mark.parametrize("wanted", [0, 1, 65_536, CHUNK_BYTES_MAX])
def test_as_many_bytes_come_back_as_were_wanted(echoes: BandwidthTest, wanted: int) -> None:
    assert echoes.answer("mercy", bandwidth_pb2.EchoRequest(wanted_bytes=wanted)).data == sequence(wanted)


def test_more_than_a_mebibyte_either_way_is_refused_and_costs_the_site_nothing(echoes: BandwidthTest) -> None:
    for _ in range(20):
        for request in (
            bandwidth_pb2.EchoRequest(wanted_bytes=CHUNK_BYTES_MAX + 1),
            bandwidth_pb2.EchoRequest(wanted_bytes=2**32 - 1),
            bandwidth_pb2.EchoRequest(data=bytes(CHUNK_BYTES_MAX + 1)),
        ):
            with pytest.raises(MessageRefused, match=f"at most {CHUNK_BYTES_MAX} bytes"):
                echoes.answer("mercy", request)
    echoes.answer("mercy", bandwidth_pb2.EchoRequest(wanted_bytes=CHUNK_BYTES_MAX))


def test_a_site_that_has_moved_its_share_waits_for_the_minute_to_end_and_others_do_not(
    echoes: BandwidthTest, seconds: Seconds
) -> None:
    large = bandwidth_pb2.EchoRequest(data=sequence(CHUNK_BYTES_MAX), wanted_bytes=CHUNK_BYTES_MAX)
    for _ in range(WINDOW_BYTES_MAX // (2 * CHUNK_BYTES_MAX)):
        echoes.answer("mercy", large)
    with pytest.raises(Busy, match="try again in a minute"):
        echoes.answer("mercy", bandwidth_pb2.EchoRequest())
    echoes.answer("north", large)
    seconds.now += WINDOW_S - 1
    with pytest.raises(Busy):
        echoes.answer("mercy", bandwidth_pb2.EchoRequest())
    seconds.now += 1
    echoes.answer("mercy", large)


def test_the_number_of_empty_calls_is_bounded_too(echoes: BandwidthTest) -> None:
    for _ in range(WINDOW_BYTES_MAX // CALL_BYTES):
        echoes.answer("mercy", bandwidth_pb2.EchoRequest())
    with pytest.raises(Busy):
        echoes.answer("mercy", bandwidth_pb2.EchoRequest())


def test_the_sequence_cannot_be_made_shorter_on_the_way_and_begins_alike_at_every_length() -> None:
    whole = sequence(CHUNK_BYTES_MAX)
    assert len(zlib.compress(whole, 9)) >= len(whole)
    assert sequence(1000) == whole[:1000]
