"""Training in stages over cached embeddings: the same numbers as over pixels, without reading any."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from federation.plan import LocalTraining
from numpy.typing import NDArray

from site_client.errors import SeriesUnreadable
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.model.network import SequenceNet
from site_client.model.registry import build
from site_client.training.array_cache import ArrayCache
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import Compute, choose
from site_client.training.data import Loader, Sample
from site_client.training.embeddings import EmbeddingLoader, hash_of
from site_client.training.loop import Stopped
from site_client.training.stages import Stages, train_in_stages
from site_client.training.streams import RandomStreams
from tests.site_client.training.stopping import stop_after

PLAN = LocalTraining(
    epochs=1, learning_rate=0.003, weight_decay=1e-4, proximal_mu=0.0, studies_per_step=2, studies_min=1
)
STAGES = Stages(backbone=1, sequence_head=3, end_to_end=1)


def _read(series: SeriesRecord) -> Volume:
    random = np.random.default_rng(int(series.content_hash, 16))
    hu = random.integers(-100, 200, (4, 64, 64)).astype(np.int16)
    return Volume(hu, (3.0, 3.0), np.arange(4, dtype=np.float64) * np.float64(5.0), np.full(4, 5.0))


def _unread(series: SeriesRecord) -> Volume:
    raise SeriesUnreadable("expected no read of this series", "PIXELS_TOUCHED")


def _record(number: int) -> StudyRecord:
    series = SeriesRecord(SeriesKey(f"series-{number}"), f"{number:064x}", ())
    labels = np.full((4, 6), number % 2, np.int8)
    return StudyRecord(StudyKey(f"s{number}"), PatientKey(f"p{number}"), series, labels, labels[0])


STUDIES = [_record(number) for number in range(4)]


@pytest.fixture
def compute() -> Compute:
    return choose("cpu", 1, 64)


def _net(seed: int = 1) -> SequenceNet:
    net = build("lite", seed)
    assert isinstance(net, SequenceNet)
    return net


def _loader(folder: Path, read: Callable[[SeriesRecord], Volume] = _read) -> Loader:
    return Loader(StudyCache(folder, 1 << 30, 64, 16, read), Augmentation(), torch.device("cpu"))


def _logits(net: torch.nn.Module, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        output = net(sample.x, sample.mask, sample.geometry)
    return output.slice_logits, output.study_logits


def test_outputs_from_cached_embeddings_are_those_from_pixels_to_the_bit(tmp_path: Path, compute: Compute) -> None:
    net, loader = _net().eval(), _loader(tmp_path / "pixels")
    embeddings = EmbeddingLoader(net, loader, compute, ArrayCache(tmp_path / "embeddings", 1 << 30))
    whole = loader.sample(STUDIES[1], None)
    for sample in (embeddings.sample(STUDIES[1], None), embeddings.sample(STUDIES[1], None)):  # made, then kept
        pairs = zip(_logits(net.reader, sample), _logits(net, whole), strict=True)
        assert all(torch.equal(kept, direct) for kept, direct in pairs)
        assert torch.equal(sample.slice_labels, whole.slice_labels)
        assert torch.equal(sample.study_labels, whole.study_labels)


def test_cached_embeddings_need_no_pixels_and_are_not_used_for_another_backbone(
    tmp_path: Path, compute: Compute
) -> None:
    net, cache = _net().eval(), ArrayCache(tmp_path / "embeddings", 1 << 30)
    made = EmbeddingLoader(net, _loader(tmp_path / "pixels"), compute, cache).sample(STUDIES[0], None)
    blind = _loader(tmp_path / "no pixels", _unread)
    assert torch.equal(EmbeddingLoader(net, blind, compute, cache).sample(STUDIES[0], None).x, made.x)
    with torch.no_grad():
        next(net.backbone.parameters()).add_(1e-6)
    with pytest.raises(SeriesUnreadable):
        EmbeddingLoader(net, blind, compute, cache).sample(STUDIES[0], None)


def test_the_hash_of_a_backbone_covers_its_weights_and_not_those_of_the_head() -> None:
    net, again, other = _net(), _net(), _net(2)
    with torch.no_grad():
        again.reader.study_bias.add_(1)
    assert hash_of(net.backbone) == hash_of(again.backbone)
    assert hash_of(net.backbone) != hash_of(other.backbone)


class Watched(Loader):
    """A loader that records the stage of every read of pixels."""

    stage = "backbone"

    def __init__(self, folder: Path) -> None:
        super().__init__(StudyCache(folder, 1 << 30, 64, 16, _read), Augmentation(), torch.device("cpu"))
        self.asked: list[tuple[str, str]] = []

    def pixels(self, study: StudyRecord) -> tuple[torch.Tensor, NDArray[np.float32], tuple[range, ...]]:
        self.asked.append((self.stage, study.study_key))
        return super().pixels(study)


def _run(tmp_path: Path, compute: Compute, loader: Loader, name: str, stops: tuple[int, ...] = ()) -> SequenceNet:
    """`stops`: after how many studies each attempt is told to stop, whatever its stage."""
    for budget in (*stops, None):
        net = _net()
        try:
            train_in_stages(
                net,
                PLAN,
                STAGES,
                STUDIES,
                loader,
                ArrayCache(tmp_path / name / "embeddings", 1 << 30),
                RandomStreams(bytes(16), 1, "north"),
                compute,
                lambda stage: Checkpoints(
                    tmp_path / name, CheckpointIdentity(stage, "00", 1, "base", "d", "c"), every_s=1e9
                ),
                lambda stage, at: setattr(loader, "stage", "after " + stage if at.step == at.steps else stage),
                stop_after(budget),
            )
        except Stopped:
            continue
        return net
    raise AssertionError("the last attempt is never stopped")


def test_the_sequence_heads_stage_reads_each_studys_pixels_once(tmp_path: Path, compute: Compute) -> None:
    loader = Watched(tmp_path / "pixels")
    trained = _run(tmp_path, compute, loader, "one")
    embedded = [study for stage, study in loader.asked if stage in {"after backbone", "sequence-head"}]
    assert sorted(embedded) == sorted(study.study_key for study in STUDIES)
    start = _net().state_dict()
    assert all(not torch.equal(value, start[name]) for name, value in trained.state_dict().items() if "weight" in name)


def test_stopped_in_every_stage_it_ends_with_the_bits_of_an_undisturbed_run(tmp_path: Path, compute: Compute) -> None:
    loader = _loader(tmp_path / "pixels")
    whole, pieces = _run(tmp_path, compute, loader, "whole"), _run(tmp_path, compute, loader, "pieces", (3, 2, 7, 1))
    for (name, expected), got in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        assert torch.equal(expected, got), name
