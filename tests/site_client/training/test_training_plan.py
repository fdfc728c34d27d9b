"""A plan's trainable parts, rates, average and early stop, as the loop carries them out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation.plan import LocalTraining, Trainable

from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.model.network import SequenceNet
from site_client.model.parts import Part, is_trainable, parts_of
from site_client.model.registry import build
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import choose
from site_client.training.data import Loader
from site_client.training.early_stop import EarlyStop, split_tuning
from site_client.training.loop import Stopped, TrainingProgress, train
from site_client.training.state import TrainingPosition
from site_client.training.streams import RandomStreams
from tests.site_client.training.stopping import stop_after

PLAN = LocalTraining(epochs=2, learning_rate=0.003, studies_per_step=2, studies_min=1, slices_per_study=2)


def _read(series: SeriesRecord) -> Volume:
    random = np.random.default_rng(int(series.content_hash, 16))
    hu = random.integers(-100, 200, (4, 64, 64)).astype(np.int16)
    return Volume(hu, (3.0, 3.0), np.arange(4, dtype=np.float64) * np.float64(5.0), np.full(4, 5.0))


def _study(number: int) -> StudyRecord:
    labels = np.full((4, 6), number % 2, np.int8)
    series = SeriesRecord(SeriesKey(f"series-{number}"), f"{number:064x}", ())
    return StudyRecord(StudyKey(f"s{number}"), PatientKey(f"p{number}"), series, labels, labels[0])


STUDIES, TUNING = [_study(number) for number in range(4)], [_study(number) for number in range(4, 6)]


def _train(
    folder: Path,
    plan: LocalTraining,
    name: str = "one",
    *,
    early_stop: EarlyStop | None = None,
    stops: tuple[int, ...] = (),
    progress: list[TrainingProgress] | None = None,
) -> tuple[SequenceNet, TrainingPosition]:
    """`stops` are the numbers of studies after which each attempt is told to stop."""
    loader = _loader(folder)
    for budget in (*stops, None):
        net = build("lite", 1)
        assert isinstance(net, SequenceNet)
        checkpoints = Checkpoints(folder / name, CheckpointIdentity("train", "", 1, "", "", ""), every_s=1e9)
        try:
            at = train(
                net,
                plan,
                STUDIES,
                loader.for_training(net, STUDIES),
                RandomStreams(bytes(16), 1, "north"),
                choose("cpu", 1, 64),
                checkpoints,
                (lambda at: None) if progress is None else progress.append,
                stop_after(budget),
                early_stop,
            )
        except Stopped:
            continue
        return net, at
    raise AssertionError("the last attempt is never stopped")


def _loader(folder: Path) -> Loader:
    return Loader(StudyCache(folder / "cache", 1 << 30, 64, 8, _read), Augmentation(), torch.device("cpu"), 2)


@pytest.mark.parametrize("trainable", [*Trainable])
def test_training_moves_the_parts_that_the_plan_names_and_no_other_tensor(trainable: Trainable, tmp_path: Path) -> None:
    trained, _ = _train(tmp_path, replace(PLAN, trainable=trainable))
    start = dict(build("lite", 1).named_parameters())
    moved = {name: not torch.equal(value, start[name]) for name, value in trained.named_parameters()}
    for name, part in parts_of(trained).items():
        if not is_trainable(part, trainable):
            assert not moved[name], name
    for part in Part:
        if is_trainable(part, trainable):
            assert any(moved[name] for name, own in parts_of(trained).items() if own is part), part
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_a_smaller_rate_of_the_trunk_moves_it_less(tmp_path: Path) -> None:
    start = dict(build("lite", 1).named_parameters())

    def moved(name: str, plan: LocalTraining) -> dict[str, float]:
        trained, _ = _train(tmp_path, plan, name)
        parts = parts_of(trained)
        return {
            part.name: sum(
                float((value - start[key]).detach().norm())
                for key, value in trained.named_parameters()
                if parts[key] is part
            )
            for part in Part
        }

    plain, slow = moved("plain", PLAN), moved("slow", replace(PLAN, trunk_rate=0.01))
    assert slow["TRUNK"] < 0.05 * plain["TRUNK"]
    assert slow["NORMS"] < 0.05 * plain["NORMS"]
    assert slow["HEADS"] > 0.5 * plain["HEADS"]


def test_the_result_is_the_average_of_the_weights_and_reports_show_it(tmp_path: Path) -> None:
    progress: list[TrainingProgress] = []
    averaged, _ = _train(tmp_path, replace(PLAN, ema_decay=0.5), "averaged", progress=progress)
    last, _ = _train(tmp_path, PLAN, "last")
    start = build("lite", 1)
    name = "reader.slice_head.weight"
    weights = [dict(net.named_parameters())[name] for net in (averaged, last, start)]
    assert 0 < (weights[0] - weights[2]).norm() < (weights[1] - weights[2]).norm()
    assert torch.equal(dict(progress[-1].net.named_parameters())[name], weights[0])
    assert progress[-1].net is not averaged


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, ema_decay=0.9)], ids=["last", "averaged"])
def test_an_early_stop_gives_the_best_weights_and_survives_stops(plan: LocalTraining, tmp_path: Path) -> None:
    rule = EarlyStop(TUNING, _loader(tmp_path), choose("cpu", 1, 64), patience=2)
    many = replace(plan, epochs=30, learning_rate=0.03)
    net, at = _train(tmp_path, many, "whole", early_stop=rule)
    assert at.epoch < 29
    assert at.finished
    assert rule.loss(net) == pytest.approx(at.best_loss, rel=1e-6)
    resumed, position = _train(tmp_path, many, "stopped", early_stop=rule, stops=(3, 5, 2))
    assert position == at
    for (name, expected), got in zip(net.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, got), name


def test_a_finished_training_is_loaded_and_not_trained_again(tmp_path: Path) -> None:
    plan = replace(PLAN, ema_decay=0.9)
    net, at = _train(tmp_path, plan)
    again, position = _train(tmp_path, plan, stops=(0,))
    assert position == at
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_tuning_patients_are_no_training_patients_and_none_moves_when_others_arrive() -> None:
    few, more = [_study(number) for number in range(40)], [_study(number) for number in range(80)]
    (training, tuning), (_, later) = split_tuning(few), split_tuning(more)
    assert {study.patient_key for study in training}.isdisjoint(study.patient_key for study in tuning)
    assert len(training) + len(tuning) == 40
    assert 0 < len(tuning) < 15
    assert {study.study_key for study in tuning} <= {study.study_key for study in later}
    assert split_tuning(few[:1])[1] == []
