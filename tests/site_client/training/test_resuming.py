"""Training from the cache: images are read once, and interruptions change no bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation.plan import LocalTraining
from federation.sealing import SealedKind, SealedName

from site_client.errors import CheckpointRefused
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.model.network import SequenceNet
from site_client.model.registry import build
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache, forget_others
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints, CheckpointSeal
from site_client.training.compute import choose
from site_client.training.data import Loader
from site_client.training.loop import Stopped, train
from site_client.training.state import TrainingPosition
from site_client.training.streams import RandomStreams
from tests.site_client.training.stopping import stop_after

PLAN = LocalTraining(
    epochs=2, learning_rate=0.003, weight_decay=1e-4, proximal_mu=0.01, studies_per_step=2, studies_min=1
)
STUDIES = 6
FILE_BYTES = 4 * 3 * 64 * 64  # of a cached study, but for its geometry and header


class CountingReader:
    """Makes volumes, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, series: SeriesRecord) -> Volume:
        self.calls += 1
        random = np.random.default_rng(int(series.content_hash, 16))
        hu = random.integers(-100, 200, (4, 64, 64)).astype(np.int16)
        return Volume(hu, (3.0, 3.0), np.arange(4, dtype=np.float64) * np.float64(5.0), np.full(4, 5.0))


def _studies() -> list[StudyRecord]:
    return [_record(number) for number in range(STUDIES)]


def _record(number: int) -> StudyRecord:
    series = SeriesRecord(SeriesKey(f"series-{number}"), f"{number:064x}", ())
    labels = np.full((4, 6), number % 2, np.int8)
    return StudyRecord(StudyKey(f"s{number}"), PatientKey(f"p{number}"), series, labels, labels[0])


def _cache(folder: Path, reader: CountingReader, max_bytes: int = 1 << 30) -> StudyCache:
    return StudyCache(folder, max_bytes, 64, 16, reader)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[SequenceNet, TrainingPosition]]:
    """Trains from the same start; `stops` are the numbers of studies after which each attempt is told to stop."""
    compute = choose("cpu", 1, 64)
    loader = Loader(
        _cache(tmp_path / "cache", CountingReader()), Augmentation(), torch.device("cpu"), slices_per_study=2
    )

    def go(name: str, stops: tuple[int, ...] = (), every_s: float = 1e9) -> tuple[SequenceNet, TrainingPosition]:
        for budget in (*stops, None):
            net = build("lite", 1)
            assert isinstance(net, SequenceNet)
            checkpoints = Checkpoints(tmp_path / name, _identity(), every_s=every_s)
            streams = RandomStreams(bytes(16), 1, "north")
            try:
                position = train(
                    net,
                    PLAN,
                    _studies(),
                    loader,
                    streams,
                    compute,
                    checkpoints,
                    lambda at: None,
                    stop_after(budget),
                )
            except Stopped:
                continue
            return net, position
        raise AssertionError("the last attempt is never stopped")

    return go


def _identity(dataset_hash: str = "d") -> CheckpointIdentity:
    return CheckpointIdentity("train", "00", 1, "base", dataset_hash, "config")


@pytest.mark.parametrize("seed", [0])
def test_stops_at_random_positions_change_no_bit_of_the_result(
    run: Callable[..., tuple[SequenceNet, TrainingPosition]], seed: int
) -> None:
    stops = tuple(int(stop) for stop in np.random.default_rng(seed).integers(0, 5, size=4))
    (whole, position), (pieces, resumed) = run("whole"), run("pieces", stops)
    assert resumed == position
    for (name, expected), got in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        assert torch.equal(expected, got), name


def test_training_moves_the_network_and_counts_every_study(
    run: Callable[..., tuple[SequenceNet, TrainingPosition]],
) -> None:
    net, end = run("one")
    assert (end.position, end.step) == (STUDIES, PLAN.epochs * STUDIES // PLAN.studies_per_step)
    start = build("lite", 1).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in net.state_dict().items())


def test_the_second_read_of_a_study_never_opens_its_images(tmp_path: Path) -> None:
    reader = CountingReader()
    series = _record(1).series
    first = _cache(tmp_path, reader).get(series)
    again = _cache(tmp_path, reader).get(series)
    assert reader.calls == 1
    assert np.array_equal(first.windows, again.windows)
    assert np.array_equal(first.geometry, again.geometry)
    assert first.source_slices == again.source_slices


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    reader = CountingReader()
    expected = _cache(tmp_path, reader).get(_record(1).series)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(_cache(tmp_path, reader).get(_record(1).series).windows, expected.windows)
    assert reader.calls == 2


def test_the_cache_stays_within_its_bound(tmp_path: Path) -> None:
    bound = 4 * FILE_BYTES
    cache = _cache(tmp_path, CountingReader(), bound)
    for number in range(20):
        cache.get(_record(number).series)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= bound + FILE_BYTES // 10


def test_a_checkpoint_of_another_data_set_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, _identity()).save(1, {"step": 1}, {"x": torch.ones(1)})
    with pytest.raises(CheckpointRefused, match="dataset_hash"):
        Checkpoints(tmp_path, _identity("other")).load()


def test_a_sealed_checkpoint_gives_back_what_was_saved_and_opens_with_its_own_key_only(tmp_path: Path) -> None:
    name = SealedName(SealedKind.CHECKPOINT, bytes(32), bytes(32))
    weights = torch.arange(4096.0)
    Checkpoints(tmp_path, _identity(), seal=CheckpointSeal(bytes(32), name)).save(1, {"step": 1}, {"x": weights})
    (file,) = tmp_path.iterdir()
    assert weights.numpy().tobytes()[800:832] not in file.read_bytes()
    saved = Checkpoints(tmp_path, _identity(), seal=CheckpointSeal(bytes(32), name)).load()
    assert saved is not None
    assert torch.equal(saved.tensors["x"], weights)
    other = replace(name, model_digest=b"\x01" * 32)
    for seal in (CheckpointSeal(b"\x01" * 32, name), CheckpointSeal(bytes(32), other)):
        with pytest.raises(CheckpointRefused, match="damaged"):
            Checkpoints(tmp_path, _identity(), seal=seal).load()
    assert Checkpoints(tmp_path, _identity()).load() is None  # a file in the clear has another name


def test_a_torn_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, _identity())
    for step in (1, 2):
        checkpoints.save(step, {"step": step}, {"x": torch.full((1,), float(step))})
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    saved = checkpoints.load()
    assert saved is not None
    assert saved.numbers == {"step": 1}


def test_prepared_images_of_studies_that_left_the_dataset_are_removed_at_every_size(tmp_path: Path) -> None:
    reader = CountingReader()
    kept, gone = (study.series for study in _studies()[:2])
    for size_px in (32, 64):
        cache = StudyCache(tmp_path / "cache", 1 << 30, size_px, 16, reader)
        cache.get(kept)
        cache.get(gone)
    assert forget_others(tmp_path / "cache", [kept]) == 2
    assert reader.calls == 4
    for size_px in (32, 64):
        StudyCache(tmp_path / "cache", 1 << 30, size_px, 16, reader).get(kept)
    assert reader.calls == 4
    StudyCache(tmp_path / "cache", 1 << 30, 64, 16, reader).get(gone)
    assert reader.calls == 5
    assert forget_others(tmp_path / "no cache yet", [kept]) == 0
