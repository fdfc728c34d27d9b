"""Blobs over a wire that breaks: continued where they stopped, hashed at the end, at the hospital's rate."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.encoding import Layout
from federation.plan import TrainingPlan
from federation.v1 import blobs_pb2, rounds_pb2
from federation.v1.blobs_pb2 import RoundRef
from federation.wire import parse, serialize
from hypothesis import given, settings
from hypothesis import strategies as st

from site_client.agent.egress.egress import Cleared, Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.egress.rate_limit import RateLimit
from site_client.agent.egress.transfer import download, upload
from site_client.config import PolicySettings
from site_client.errors import ModelDamaged, StepRefused, Unreachable

REF = RoundRef(run_id=bytes(16), round=1, attempt=1)


@dataclass
class Breaking:
    """The aggregator's blobs behind a wire that breaks after so many bytes, each time."""

    cuts: list[int] = field(default_factory=list)
    blob: bytes = b""
    held: bytearray = field(default_factory=bytearray)
    asked_from: list[int] = field(default_factory=list)
    piece: int = 1000
    peer: str = "hub:1"

    def unary(self, path: str, request: Cleared) -> bytes:
        offer = parse(blobs_pb2.BlobOffer, request.data)
        return serialize(blobs_pb2.BlobProgress(held_bytes=len(self.held), complete=len(self.held) == offer.size_bytes))

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes:
        left = self.cuts.pop(0) if self.cuts else 1 << 40
        for request in requests:
            chunk = parse(blobs_pb2.BlobChunk, request.data)
            assert chunk.offset <= len(self.held)
            self.held[chunk.offset :] = chunk.data[:left]
            if len(chunk.data) > left:
                raise Unreachable("the line is cut")
            left -= len(chunk.data)
        return serialize(blobs_pb2.BlobProgress(held_bytes=len(self.held), complete=True))

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        at = parse(blobs_pb2.BlobRequest, request.data).offset
        self.asked_from.append(at)
        left = self.cuts.pop(0) if self.cuts else 1 << 40
        digest = hashlib.sha256(self.blob).digest()
        while at < len(self.blob):
            data = self.blob[at : at + self.piece]
            if len(data) > left:
                raise Unreachable("the line is cut")
            left -= len(data)
            yield serialize(blobs_pb2.BlobChunk(digest=digest, offset=at, data=data))
            at += len(data)


def again(act: Callable[[], None], times: int) -> None:
    """As the agent's loop does."""
    for _ in range(times):
        try:
            act()
        except Unreachable:
            continue
        return
    raise AssertionError(f"not through after {times} tries")


@pytest.mark.parametrize("cuts", [[], [0], [1, 1, 1], [999, 2000, 500, 3]])
def test_an_upload_is_continued_from_where_the_line_was_cut(
    plan: TrainingPlan,
    guard: Guard,
    ledger: Ledger,
    random_bytes: Callable[[int], bytes],
    cuts: list[int],
) -> None:
    app, layout = Breaking(list(cuts)), Layout.of(plan, plan.manifest.size)
    egress, masked = Egress(guard, ledger, app), random_bytes(layout.bytes)
    digest = hashlib.sha256(masked).digest()
    with guard.upload_of(layout, memoryview(masked), digest):
        again(lambda: upload(egress, REF, memoryview(masked), digest), len(cuts) + 1)
    assert bytes(app.held) == masked


@settings(deadline=None)
@given(size=st.integers(1, 9_000), cuts=st.lists(st.integers(0, 4_000), max_size=5))
def test_a_download_is_continued_and_nothing_is_fetched_twice(
    tmp_path_factory: pytest.TempPathFactory, signer: Ed25519PrivateKey, size: int, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("download")
    blob = hashlib.shake_256(bytes([size % 251])).digest(size)
    app = Breaking(list(cuts), blob)
    ledger = Ledger(folder / "ledger.jsonl", signer, lambda: datetime(2026, 11, 23, tzinfo=UTC))
    egress = Egress(Guard(PolicySettings()), ledger, app)
    ref = rounds_pb2.BlobRef(digest=hashlib.sha256(blob).digest(), size_bytes=size)
    again(lambda: download(egress, ref, folder / "model", size), len(cuts) + 1)
    ledger.close()
    assert (folder / "model").read_bytes() == blob
    assert app.asked_from == sorted(app.asked_from)
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.jsonl", "model"]


def test_a_download_that_is_not_what_was_announced_is_dropped(ledger: Ledger, guard: Guard, tmp_path: Path) -> None:
    blob = bytes(3000)
    app = Breaking(blob=blob)
    line = Egress(guard, ledger, app)
    wrong = rounds_pb2.BlobRef(digest=bytes(32), size_bytes=3000)
    with pytest.raises(StepRefused):
        download(line, wrong, tmp_path / "model", 3000)
    short = rounds_pb2.BlobRef(digest=hashlib.sha256(blob).digest(), size_bytes=2500)
    with pytest.raises(StepRefused):
        download(line, short, tmp_path / "model", 3000)
    with pytest.raises(StepRefused, match="at most 100 bytes"):
        download(line, short, tmp_path / "model", 100)
    part = tmp_path / f".{hashlib.sha256(blob).hexdigest()}.part"
    part.write_bytes(b"x" * 3000)
    with pytest.raises(ModelDamaged):
        download(
            line, rounds_pb2.BlobRef(digest=hashlib.sha256(blob).digest(), size_bytes=3000), tmp_path / "model", 3000
        )
    assert not part.exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("left", [b"", bytes(3000)])
def test_a_file_whose_bytes_a_power_cut_took_is_fetched_again(
    ledger: Ledger, guard: Guard, tmp_path: Path, left: bytes
) -> None:
    blob = hashlib.shake_256(b"a model").digest(3000)
    ref = rounds_pb2.BlobRef(digest=hashlib.sha256(blob).digest(), size_bytes=3000)
    (tmp_path / "model").write_bytes(left)
    download(Egress(guard, ledger, Breaking(blob=blob)), ref, tmp_path / "model", 3000)
    assert (tmp_path / "model").read_bytes() == blob


@pytest.mark.parametrize("sizes", [[0], [1000, 0], [1000, 1000, 1001], [4001]])
def test_a_chunk_that_is_empty_or_goes_past_the_promised_size_ends_the_download(
    ledger: Ledger, guard: Guard, tmp_path: Path, sizes: list[int]
) -> None:
    class Offering(Breaking):
        def get(self, path: str, request: Cleared) -> Iterator[bytes]:
            at = 0
            for size in sizes:
                yield serialize(blobs_pb2.BlobChunk(digest=ref.digest, offset=at, data=bytes(size)))
                at += size

    ref = rounds_pb2.BlobRef(digest=hashlib.sha256(bytes(3000)).digest(), size_bytes=3000)
    with pytest.raises(StepRefused, match="got others"):
        download(Egress(guard, ledger, Offering()), ref, tmp_path / "model", 3000)
    assert sum(path.stat().st_size for path in tmp_path.glob(".*.part")) <= 3000


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(5000)])
def test_a_digest_of_another_length_names_no_file(ledger: Ledger, guard: Guard, tmp_path: Path, digest: bytes) -> None:
    with pytest.raises(StepRefused, match="digest of 32 bytes"):
        download(Egress(guard, ledger, Breaking()), rounds_pb2.BlobRef(digest=digest), tmp_path / "model", 3000)
    assert list(tmp_path.glob(".*")) == []


def test_a_limited_hospital_moves_so_many_bytes_a_second_and_no_more() -> None:
    now, waited = [0.0], []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    limit = RateLimit(1000, lambda: now[0], wait)
    for _ in range(5):
        now[0] += 0.1  # the chunk itself took that long
        limit.spend(500)
    assert now[0] == pytest.approx(5 * 0.6)
    now[0] += 100  # a pause is not saved up
    limit.spend(500)
    assert waited[-1] == pytest.approx(0.5)
    RateLimit(0, lambda: now[0], wait).spend(10**9)
    assert len(waited) == 6


def test_chunks_wait_for_the_rate_limit_in_both_directions(
    plan: TrainingPlan, guard: Guard, ledger: Ledger, tmp_path: Path
) -> None:
    waited: list[float] = []
    layout = Layout.of(plan, plan.manifest.size)
    app = Breaking(blob=bytes(4000))
    egress = Egress(guard, ledger, app, rate_limit=RateLimit(1000, lambda: 0.0, waited.append))
    ref = rounds_pb2.BlobRef(digest=hashlib.sha256(bytes(4000)).digest(), size_bytes=4000)
    download(egress, ref, tmp_path / "model", 4000)
    assert waited[-1] >= 4.0
    before, masked = waited[-1], bytes(layout.bytes)
    digest = hashlib.sha256(masked).digest()
    with guard.upload_of(layout, memoryview(masked), digest):
        upload(egress, REF, memoryview(masked), digest)
    assert waited[-1] - before >= layout.bytes / 1000


def test_progress_grows_when_something_arrived_and_only_then(
    plan: TrainingPlan, guard: Guard, ledger: Ledger, tmp_path: Path, random_bytes: Callable[[int], bytes]
) -> None:
    layout = Layout.of(plan, plan.manifest.size)
    app, masked = Breaking([0, 0, 700, 0]), random_bytes(layout.bytes)
    egress, seen = Egress(guard, ledger, app), []
    digest = hashlib.sha256(masked).digest()
    with guard.upload_of(layout, memoryview(masked), digest):
        for _ in range(4):
            with pytest.raises(Unreachable):
                upload(egress, REF, memoryview(masked), digest)
            seen.append(egress.progress)
    assert seen == [0, 0, 0, 1]  # what the third try moved is known when the fourth asks where to go on
    egress = Egress(guard, ledger, Breaking([2000, 0], bytes(4000)))
    ref = rounds_pb2.BlobRef(digest=hashlib.sha256(bytes(4000)).digest(), size_bytes=4000)
    for moved in (2, 2):
        with pytest.raises(Unreachable):
            download(egress, ref, tmp_path / "model", 4000)
        assert egress.progress == moved
