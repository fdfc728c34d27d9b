"""The simulation: the same bits for the same seed, exact statistics, and no patient in two places."""

import subprocess
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from deploy.simulation.arms import TaskContext, Trained, federate, train_pooled
from deploy.simulation.patients import SimulatedSite, records_of, wanted_set
from deploy.simulation.pools import start_pool
from deploy.simulation.scoring import Scores
from deploy.simulation.seeds import CENTRAL, FEDERATED, MODELS, SeedResult, local, result_of, save
from deploy.simulation.settings import SITES, UNSEEN, SimulationSettings
from deploy.simulation.summary import summarize
from site_client.inference.intervals import draw_patients
from site_client.inference.measures import Measure, of_draws
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.training.cache import StudyCache

ROOT = Path(__file__).resolve().parents[2]
TINY = SimulationSettings(
    studies=3, test_studies=2, rounds=2, epochs=1, image_size_px=64, slices_max=8, learning_rate=0.003
)


def square_study(name: str, cache: Path, rng: np.random.Generator, bleeds: bool) -> StudyRecord:
    """Put a square of brain into the cache; when it bleeds, its middle slices have a bright square."""
    hu = np.full((8, 64, 64), -1000, np.int16)
    hu[:, 8:56, 8:56] = 30 + rng.integers(-5, 6, (8, 48, 48))
    labels = np.zeros((8, 6), np.int8)
    if bleeds:
        hu[2:5, 24:40, 24:40] = 70
        labels[2:5, [1, 5]] = 1
    volume = Volume(hu, (3.6, 3.6), np.arange(0.0, 40.0, 5.0), np.full(8, 5.0))
    series = SeriesRecord(SeriesKey(name), name, ())
    StudyCache(cache, 1 << 30, TINY.image_size_px, TINY.slices_max, lambda _: volume).get(series)
    return StudyRecord(StudyKey(name), PatientKey(name), series, labels, labels.max(axis=0))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def context(cache: Path) -> TaskContext:
    return TaskContext(TINY, cache, "cpu")


@pytest.fixture
def sites(cache: Path) -> list[SimulatedSite]:
    rng = np.random.default_rng(0)

    def some(site: str, purpose: str, count: int) -> tuple[StudyRecord, ...]:
        return tuple(square_study(f"{site}-{purpose}-{i}", cache, rng, i % 2 == 0) for i in range(count))

    names = (*SITES[:3], UNSEEN)
    return [SimulatedSite(name, some(name, "t", 3), some(name, "v", 2), some(name, "e", 2)) for name in names]


def federated(context: TaskContext, seed: int, sites: list[SimulatedSite], *, ray: bool = False) -> Trained:
    with start_pool(workers=1, ray=ray) as pool:
        return federate(context, seed, [site for site in sites if site.name != UNSEEN], pool)


def test_a_seed_gives_the_same_bits_and_another_seed_gives_others(
    context: TaskContext, sites: list[SimulatedSite]
) -> None:
    once, again, other = (federated(context, seed, sites) for seed in (1, 1, 2))
    assert once.model.digest == again.model.digest
    assert once.curve == again.curve
    assert once.model.digest != other.model.digest
    assert (
        train_pooled(context, 1, "T", sites[:1]).model.digest == train_pooled(context, 1, "T", sites[:1]).model.digest
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_gives_the_same_bits_as_one_process(context: TaskContext, sites: list[SimulatedSite]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: .venv/bin/pip install 'hemofed[ray]'")
    here, there = federated(context, 1, sites), federated(context, 1, sites, ray=True)
    assert here.model.digest == there.model.digest
    assert here.curve == there.curve


def test_every_arm_starts_from_the_same_weights_and_is_evaluated_after_every_pass(
    context: TaskContext, sites: list[SimulatedSite]
) -> None:
    # The first entry of a curve is that of the initial weights, the last one that of the last model.
    together, central = federated(context, 3, sites), train_pooled(context, 3, CENTRAL, sites[:3])
    assert len(together.curve) == len(central.curve) == TINY.rounds + 1
    assert together.curve[0] == central.curve[0]
    assert len(together.clipped) == TINY.rounds


def test_a_finished_seed_is_read_and_not_trained_again(
    context: TaskContext, sites: list[SimulatedSite], tmp_path: Path
) -> None:
    result = made_up(1)
    save(tmp_path / "seed-1.npz", result)
    with start_pool(workers=1, ray=False) as pool:
        read = result_of(context, 1, [], pool, tmp_path)  # without sites there is nothing to train on
    assert read.digests == result.digests
    assert read.curves == result.curves
    key = (CENTRAL, "T")
    np.testing.assert_array_equal(read.scores[key].logits, result.scores[key].logits)


def scores_of(rng: np.random.Generator, quality: float, patients: int = 8) -> Scores:
    """Five slices of each patient; with an even number some of them are positive, else none."""
    labels = np.zeros((5 * patients, 6), np.int8)
    patient = np.repeat(np.arange(patients), 5)
    labels[:, 5] = (np.arange(5 * patients) % 5 < rng.integers(1, 5, patients)[patient]) & (patient % 2 == 0)
    logits = np.round(rng.normal(size=labels.shape) + quality * labels, 1).astype(np.float32)
    return Scores(logits, labels, patient, patient)


def made_up(seed: int, patients: int = 24) -> SeedResult:
    quality = {CENTRAL: 4.0, FEDERATED: 2.0, **{local(site): 0.5 for site in SITES}}
    scores = {
        (model, site): scores_of(np.random.default_rng([seed, number]), quality[model], patients)
        for model in MODELS
        for number, site in enumerate((*SITES, UNSEEN))
    }
    return SeedResult(
        seed, scores, {model: (0.5, 0.6) for model in MODELS}, (0,), {model: "00" for model in MODELS}, 1.0
    )


def test_the_bootstrap_draws_whole_patients_and_gives_the_exact_auc_of_each_draw() -> None:
    scores = scores_of(np.random.default_rng(5), 1.0)
    drawn = draw_patients(8, 20, np.random.default_rng(1))
    whole = [np.flatnonzero(scores.patient == patient) for patient in range(8)]
    rows = [np.concatenate([np.tile(whole[p], int(times)) for p, times in enumerate(m)]) for m in drawn]
    expected = [roc_auc_score(scores.labels[row, 5], scores.logits[row, 5]) for row in rows]
    np.testing.assert_allclose(of_draws(scores.column(), Measure.AUC, drawn), expected, rtol=1e-12)
    assert (drawn.sum(axis=1) == 8).all()


def test_the_summary_pairs_differences_and_takes_the_worst_site() -> None:
    summary = summarize([made_up(1), made_up(2)], draws=200)
    assert summary.in_order
    for measure, row in summary.auc.items():
        for figure in row.values():
            assert figure.low is not None
            assert figure.high is not None
            assert figure.low <= figure.value <= figure.high, measure
    gap = summary.differences["central - federated"]
    assert gap.value == pytest.approx(summary.auc["sites"][CENTRAL].value - summary.auc["sites"][FEDERATED].value)
    worst = np.mean([min(summary.by_site[site]["local"].per_seed[seed] for site in SITES) for seed in range(2)])
    assert summary.auc["worst"]["local"].value == pytest.approx(worst)
    assert summary.test_patients["T"] == 24


def test_a_site_with_nine_patients_of_a_kind_has_a_figure_and_no_interval() -> None:
    summary = summarize([made_up(1, patients=18)], draws=200)
    assert summary.by_site["T"][CENTRAL].value > 0.5
    assert summary.by_site["T"][CENTRAL].low is None
    assert summary.auc["sites"][CENTRAL].low is not None  # five sites have 45 of each


def test_training_and_test_patients_are_others_and_are_prepared_once(cache: Path) -> None:
    cache.mkdir()
    settings = replace(TINY, studies=2, test_studies=1)
    with start_pool(workers=1, ray=False) as pool:
        made = [
            records_of(settings, wanted_set(settings, "R", purpose), cache, pool) for purpose in ("training", "test")
        ]
    files = {path: path.stat().st_mtime_ns for path in cache.glob("labels-*")}
    training, test = made
    assert (len(training), len(test)) == (2, 1)
    assert {study.patient_key for study in training}.isdisjoint(study.patient_key for study in test)
    assert len({study.series.content_hash for study in (*training, *test)}) == 3

    # A bare Executor refuses every task: nothing is made a second time.
    again = records_of(settings, wanted_set(settings, "R", "training"), cache, Executor())
    assert [study.study_key for study in again] == [study.study_key for study in training]
    np.testing.assert_array_equal(again[0].slice_labels, training[0].slice_labels)
    assert files == {path: path.stat().st_mtime_ns for path in cache.glob("labels-*")}


@pytest.mark.slow
def test_the_command_writes_its_report_and_goes_on_where_it_was(tmp_path: Path) -> None:
    command: list[str | Path] = [
        ROOT / "deploy" / "simulate",
        "--studies",
        "6",
        "--test-studies",
        "4",
        "--rounds",
        "1",
        "--seeds",
        "1",
    ]
    command += ["--epochs", "1", "--slices-max", "8", "--state", tmp_path / "state", "--out", tmp_path / "out"]
    first = subprocess.run(command, check=True, capture_output=True, text=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"simulation.{kind}" for kind in ("md", "json", "svg")
    }
    second = subprocess.run(command, check=True, capture_output=True, text=True)
    assert first.stdout.split("# Federated")[1] == second.stdout.split("# Federated")[1]


def test_more_passes_than_a_plan_may_have_are_refused_before_any_work(tmp_path: Path) -> None:
    command = ["./deploy/simulate", "--rounds", "26", "--epochs", "4", "--state", str(tmp_path / "state")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    # Before it the command may have said that it installs what it needs.
    *_, said = done.stderr.splitlines()
    assert said == "Error: plan.training.epochs: expected a whole number from 1 to 100, got 104"
    assert not (tmp_path / "state").exists()
