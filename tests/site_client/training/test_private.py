"""One private step: what one patient can change, which coins decide, and what a stop and a restart keep."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from federation.labels import ANY
from federation.plan import (
    CohortBounds,
    Deadlines,
    Encoding,
    Inputs,
    LocalTraining,
    ServerOptimizer,
    Trainable,
    TrainingPlan,
)
from federation.privacy import Privacy
from federation.vocabulary import Metric

from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.model.network import Network
from site_client.model.parts import is_trainable, parts_of
from site_client.model.registry import build, manifest_of
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import choose
from site_client.training.data import Loader
from site_client.training.loop import Stopped
from site_client.training.private import (
    PrivateStep,
    clipped_gradient,
    patient_histograms,
    patients_of,
    private_gradient,
)
from tests.site_client.training.stopping import stop_after

SECRET = bytes(range(32))


def _read(series: SeriesRecord) -> Volume:
    random = np.random.default_rng(int(series.content_hash, 16))
    hu = random.integers(-100, 200, (4, 64, 64)).astype(np.int16)
    return Volume(hu, (3.0, 3.0), np.arange(4, dtype=np.float64) * np.float64(5.0), np.full(4, 5.0))


def _study(number: int, patient: int | None = None) -> StudyRecord:
    labels = np.full((4, 6), number % 2, np.int8)
    series = SeriesRecord(SeriesKey(f"series-{number}"), f"{number:064x}", ())
    key = PatientKey(f"p{number if patient is None else patient:03d}")
    return StudyRecord(StudyKey(f"s{number:03d}"), key, series, labels, labels[0])


def _plan(trainable: Trainable = Trainable.HEADS, *, slices_per_study: int = 2, rate: float = 0.5) -> TrainingPlan:
    net = build("lite", 1)
    places = [place for place, part in enumerate(parts_of(net).values()) if is_trainable(part, trainable)]
    return TrainingPlan(
        run_id=bytes(16),
        name="private",
        purpose="",
        architecture="lite",
        manifest=manifest_of(net),
        initial_model_digest=bytes(32),
        rounds=1,
        inputs=Inputs(64, 8),
        training=LocalTraining(studies_min=1, slices_per_study=slices_per_study, trainable=trainable),
        server=ServerOptimizer(),
        cohort=CohortBounds(),
        deadlines=Deadlines(),
        encoding=Encoding(rotation_seed=bytes(32)),
        metrics=(Metric.HISTOGRAMS,),
        privacy=Privacy(
            clip_norm=0.05,
            sampling_rate=rate,
            noise_multiplier=8.0,
            patients_expected=8,
            batch_max=8,
            epsilon_train=10.0,
            validation_multiplier=8.0,
            epsilon_validation=10.0,
        ),
        moving_tensors=() if trainable is Trainable.ALL else tuple(places),
    )


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    return Loader(StudyCache(tmp_path / "cache", 1 << 30, 64, 8, _read), Augmentation(), torch.device("cpu"), 2)


def _step(loader: Loader, plan: TrainingPlan, net: Network | None = None) -> PrivateStep:
    net = net or build("lite", 1)
    for part, parameter in zip(parts_of(net).values(), net.parameters(), strict=True):
        parameter.requires_grad_(is_trainable(part, plan.training.trainable))
    net.train()
    return PrivateStep(net, plan, loader.for_private_training(net), choose("cpu", 1, 64))


def _run(
    folder: Path, loader: Loader, studies: list[StudyRecord], stops: tuple[int, ...] = (), rate: float = 0.5
) -> npt.NDArray[np.float32]:
    identity = CheckpointIdentity("private", "", 1, "", "", "")
    for budget in (*stops, None):
        step = _step(loader, _plan(rate=rate))
        checkpoints = Checkpoints(folder, identity, every_s=1e9)
        try:
            return private_gradient(
                step, patients_of(studies), checkpoints, lambda done, total: None, stop_after(budget)
            )
        except Stopped:
            continue
    raise AssertionError("the last attempt is never stopped")


def test_studies_of_one_patient_are_one_unit() -> None:
    studies = [_study(3), _study(0, patient=7), _study(1, patient=7), _study(2)]
    assert [[study.study_key for study in patient] for patient in patients_of(studies)] == [
        ["s002"],
        ["s003"],
        ["s000", "s001"],
    ]


@pytest.mark.parametrize("trainable", [Trainable.HEADS, Trainable.READER, Trainable.NORMS, Trainable.ALL])
def test_a_patients_gradient_is_of_the_moving_part_and_never_longer_than_the_clip_norm(
    loader: Loader, trainable: Trainable
) -> None:
    plan = _plan(trainable)
    step = _step(loader, plan)
    for patient in patients_of([_study(0), _study(1), _study(2, patient=1)]):
        gradient = clipped_gradient(step, patient, 0.05, SECRET)
        assert gradient.shape == (plan.moving.size,)
        assert 0 < np.linalg.norm(gradient) <= 0.05 * (1 + 1e-12)


def test_many_studies_of_one_patient_weigh_as_one(loader: Loader) -> None:
    """The mean over a patient's studies, clipped once: ten studies do not move the sum ten times as far."""
    step = _step(loader, _plan())
    patient = tuple(_study(number, patient=1) for number in range(10))
    assert np.linalg.norm(clipped_gradient(step, patient, 0.05, SECRET)) <= 0.05 * (1 + 1e-12)
    unclipped = clipped_gradient(step, patient, 1e6, SECRET)
    each = [clipped_gradient(step, (study,), 1e6, SECRET) for study in patient]
    assert np.linalg.norm(unclipped) <= max(np.linalg.norm(gradient) for gradient in each) * 1.01


def test_one_patient_more_changes_the_sum_by_the_patients_part_alone(loader: Loader) -> None:
    """Same secret: the gradients of the others do not change with who else is there, in labels, pixels or order."""
    step = _step(loader, _plan())
    others = [_study(number) for number in (2, 4, 6)]
    more = [*others, _study(5)]
    alone = {p[0].patient_key: clipped_gradient(step, p, 0.05, SECRET) for p in patients_of(others)}
    together = {p[0].patient_key: clipped_gradient(step, p, 0.05, SECRET) for p in patients_of(more)}
    assert all((alone[key] == together[key]).all() for key in alone)


def test_a_slab_of_a_private_round_does_not_depend_on_where_other_patients_bleed(loader: Loader) -> None:
    negative, positive = _study(2), _study(1)
    assert positive.slice_labels[:, ANY].any()
    net = build("lite", 1)
    private = loader.for_private_training(net).sample(negative, np.random.default_rng(3))
    ordinary = [
        loader.for_training(net, studies).sample(negative, np.random.default_rng(seed))
        for seed in range(3)
        for studies in ([negative], [negative, positive])
    ]
    again = loader.for_private_training(net).sample(negative, np.random.default_rng(3))
    assert torch.equal(private.x, again.x)
    assert any(not torch.equal(a.x, b.x) for a, b in zip(ordinary[::2], ordinary[1::2], strict=True))


def test_a_stopped_step_resumes_with_the_same_patients_and_gives_the_same_bits(tmp_path: Path, loader: Loader) -> None:
    studies = [_study(number) for number in range(8)]
    whole = _run(tmp_path / "job", loader, studies, stops=(0,), rate=0.9)
    (first,) = (tmp_path / "job").glob("private-0000000000*")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / first.name).write_bytes(first.read_bytes())
    interrupted = _run(tmp_path / "copy", loader, studies, stops=(1, 1), rate=0.9)
    assert whole.any()
    assert (interrupted == whole).all()


def test_another_job_draws_other_patients(tmp_path: Path, loader: Loader) -> None:
    studies = [_study(number) for number in range(6)]
    sums = {_run(tmp_path / str(number), loader, studies).tobytes() for number in range(6)}
    assert len(sums) > 1


def test_an_empty_draw_gives_zeros_of_the_right_length(tmp_path: Path, loader: Loader) -> None:
    gradient = _run(tmp_path / "job", loader, [_study(0)], rate=1e-9)
    assert gradient.dtype == np.float32
    assert gradient.size == _plan().moving.size
    assert not gradient.any()
    assert not _run(tmp_path / "none", loader, []).any()


def test_a_gradient_that_is_not_finite_counts_as_zeros(loader: Loader) -> None:
    net = build("lite", 1)
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    assert not clipped_gradient(_step(loader, _plan(), net), (_study(1),), 0.05, SECRET).any()


def test_each_validation_patient_is_counted_once_a_label(loader: Loader) -> None:
    studies = [_study(0), _study(1), *(_study(number, patient=9) for number in range(2, 8))]
    net = build("lite", 1)
    counts = patient_histograms(net, patients_of(studies), loader, choose("cpu", 1, 64), lambda: False)
    assert (counts.sum(axis=(1, 2)) == 3).all()
    without = patient_histograms(net, patients_of(studies[:2]), loader, choose("cpu", 1, 64), lambda: False)
    changed = counts - without
    assert changed.sum() == 6
    assert np.abs(changed).sum() == 6


def test_a_score_that_is_not_finite_still_counts_its_patient(loader: Loader) -> None:
    net = build("lite", 1)
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    counts = patient_histograms(net, patients_of([_study(1)]), loader, choose("cpu", 1, 64), lambda: False)
    assert counts.sum() == 6


def test_evaluation_stops_between_patients(loader: Loader) -> None:
    stopping: Callable[[], bool] = stop_after(1)
    with pytest.raises(Stopped):
        patient_histograms(
            build("lite", 1), patients_of([_study(0), _study(1)]), loader, choose("cpu", 1, 64), stopping
        )
