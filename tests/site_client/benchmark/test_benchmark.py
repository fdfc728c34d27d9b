"""The benchmark keeps finished arms, resumes, survives a failed arm, and splits by patient."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from federation.manifest import load_model

from site_client.benchmark.arms import Bench, run_arm
from site_client.benchmark.command import benchmark
from site_client.benchmark.document import BenchmarkOrigin
from site_client.benchmark.finished import load_arm
from site_client.benchmark.grid import BenchmarkData, Grid
from site_client.benchmark.results import pairs_of
from site_client.benchmark.settings import TWINS, BenchmarkSettings
from site_client.benchmark.slice_head import slice_head_of
from site_client.benchmark.table import write_table
from site_client.calibration.model import Calibrations
from site_client.errors import EvaluationRefused, SeriesUnreadable
from site_client.inference.intervals import draw_patients
from site_client.inference.model_file import load
from site_client.inference.patients import at_most, by_content, limit_patients, split_stratified
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.model import registry
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.compute import choose
from site_client.training.data import Loader, Split
from site_client.training.loop import Stopped
from site_client.training.prepare import prepare_all
from site_client.training.stages import Stages
from tests.site_client.training.stopping import stop_after

SLICES = 3


def _read(series: SeriesRecord) -> Volume:
    random = np.random.default_rng(int(series.content_hash, 16))
    hu = random.integers(-100, 200, (SLICES, 64, 64)).astype(np.int16)
    return Volume(hu, (3.0, 3.0), np.arange(SLICES, dtype=np.float64) * np.float64(5.0), np.full(SLICES, 5.0))


def _study(number: int, patient: int | None = None, positive: int | None = None) -> StudyRecord:
    """Make a study. `positive` is the index of a label; with None every second study has the first label."""
    label = (0 if number % 2 else None) if positive is None else positive
    labels = np.zeros((SLICES, 6), np.int8)
    if label is not None and label >= 0:
        labels[0, [label, 5]] = 1
    series = SeriesRecord(SeriesKey(f"x{number}"), f"{number + 1:02x}" * 32, (Path("unread"),) * SLICES)
    keys = StudyKey(f"s{number}"), PatientKey(f"p{number if patient is None else patient}")
    return StudyRecord(*keys, series, labels, labels.max(axis=0))


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[str], Bench]:
    def make(name: str) -> Bench:
        split = Split(tuple(_study(n) for n in range(4)), tuple(_study(n) for n in range(4, 14)))
        compute = choose("cpu", 1, 64)
        loader = Loader(StudyCache(tmp_path / "cache", 1 << 30, 64, 8, _read), Augmentation(), torch.device("cpu"))
        settings = BenchmarkSettings(epochs=2, image_size_px=64, slices_max=8)
        return Bench(settings, "00ff" * 4, split, loader, compute, tmp_path / name, 4 * SLICES)

    return make


def _silent(_: str) -> None:
    pass


def test_an_arm_stopped_anywhere_goes_on_to_the_model_and_the_curve_of_an_undisturbed_one(
    bench: Callable[[str], Bench],
) -> None:
    whole = run_arm(bench("whole"), "lite-slices", _silent, lambda: False)
    pieces = bench("pieces")
    for budget in (1, 3):
        with pytest.raises(Stopped):
            run_arm(pieces, "lite-slices", _silent, stop_after(budget))
    done = run_arm(pieces, "lite-slices", _silent, lambda: False)
    assert (done.digest, done.epochs) == (whole.digest, whole.epochs)
    assert [epoch.number for epoch in done.epochs] == [1, 2]
    assert all(np.isfinite([epoch.train_loss, epoch.validation_loss]).all() for epoch in done.epochs)


def test_the_row_of_the_slice_head_is_the_arm_before_its_recurrence_and_is_scored_once(
    bench: Callable[[str], Bench],
) -> None:
    made = bench("one")
    run_arm(made, "lite", _silent, lambda: False)
    head = slice_head_of(made, "lite")
    assert head is not None
    net = made.network("lite")
    registry.load_weights(net, load_model(made.path("lite", ".safetensors")).named())
    net.eval()
    samples = [made.loader.sample(study, None) for study in made.split.validation]
    own = [net(sample.x, sample.mask, sample.geometry).by_slice.slice_logits[0, :, 0] for sample in samples]
    shown = torch.from_numpy(head.slices.probabilities[:, 0]).logit().reshape(len(own), SLICES)
    # Offsets depend on the height alone: between studies of equally many slices they are equal.
    offsets = shown - torch.stack(own).double()
    assert torch.allclose(offsets, offsets[:1].expand_as(offsets), atol=1e-4)
    made.path("lite", ".safetensors").unlink()
    again = slice_head_of(made, "lite")
    assert again is not None
    assert np.array_equal(again.slices.probabilities, head.slices.probabilities)
    assert slice_head_of(made, "lite-slices") is None


def test_stages_are_for_arms_with_a_recurrence_and_go_on_where_they_were_stopped(bench: Callable[[str], Bench]) -> None:
    def staged(name: str) -> Bench:
        made = bench(name)
        return replace(made, settings=replace(made.settings, stages=Stages(1, 2, 1)))

    whole = run_arm(staged("whole"), "lite", _silent, lambda: False)
    pieces = staged("pieces")
    for budget in (3, 6, 3):  # studies: in the backbone's epoch, in the head's first and in its second
        with pytest.raises(Stopped):
            run_arm(pieces, "lite", _silent, stop_after(budget))
    done = run_arm(pieces, "lite", _silent, lambda: False)
    assert (done.digest, done.epochs) == (whole.digest, whole.epochs)
    assert [epoch.number for epoch in done.epochs] == [1, 2, 3, 4]
    left = {path.suffix for path in pieces.path("lite", "").parent.iterdir()}
    assert left == {".npz", ".safetensors"}
    # Its sequence head has read whole studies, so its offsets are theirs: for slices, they do not depend on the height.
    description = load(pieces.path("lite", ".safetensors"), None, None).description
    assert description.slices_per_study == 0
    assert Calibrations.from_json(description.calibration).slices.by_height == ()
    assert done.digest != run_arm(bench("at once"), "lite", _silent, lambda: False).digest
    assert [epoch.number for epoch in run_arm(pieces, "lite-slices", _silent, lambda: False).epochs] == [1, 2]


def test_evaluations_between_epochs_change_no_weight_and_the_last_epoch_has_one(bench: Callable[[str], Bench]) -> None:
    def evaluated_every(epochs: int) -> Bench:
        made = bench(f"every {epochs}")
        return replace(made, settings=replace(made.settings, epochs=6, evaluate_every=epochs))

    often, seldom = (run_arm(evaluated_every(n), "lite-slices", _silent, lambda: False) for n in (1, 4))
    assert seldom.digest == often.digest
    assert [epoch.number for epoch in seldom.epochs] == [1, 4, 6]
    assert seldom.epochs == tuple(epoch for epoch in often.epochs if epoch.number in (1, 4, 6))


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4", "0,1,1", "a,1,1", "1,1,1001", ""])
def test_stages_that_are_not_three_numbers_are_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(benchmark, ["--out", str(tmp_path), "--stages", text])
    assert result.exit_code == 2
    assert "expected three numbers of epochs" in result.output


def test_a_finished_arm_is_read_and_not_trained_again(bench: Callable[[str], Bench]) -> None:
    def never() -> bool:
        raise AssertionError("training was entered")

    first = run_arm(bench("one"), "lite-slices", _silent, lambda: False)
    again = run_arm(bench("one"), "lite-slices", _silent, never)
    assert again.digest == first.digest
    assert np.array_equal(again.slices.probabilities, first.slices.probabilities)
    path = bench("one").path("lite-slices", ".npz")
    path.write_bytes(path.read_bytes()[:-100])
    assert load_arm(path) is None


def test_another_precision_is_another_result_of_the_same_draws(bench: Callable[[str], Bench]) -> None:
    full = bench("one")
    half = replace(full, compute=choose("cpu", 1, 64, precision="bf16"))
    first, other = (run_arm(context, "lite-slices", _silent, lambda: False) for context in (full, half))
    assert first.digest != other.digest
    assert other.epochs[0].train_loss == pytest.approx(first.epochs[0].train_loss, rel=0.05)


def _grid(
    folder: Path, settings: BenchmarkSettings, seeds: tuple[int, ...] = (1,), sizes: tuple[int, ...] = (0,)
) -> Grid:
    """14 studies of as many patients, every second one positive, at two sites."""
    folder.mkdir(exist_ok=True)
    studies = tuple(_study(n) for n in range(14))
    cache = StudyCache(folder / "cache", 1 << 30, 64, 8, _read)
    loader = Loader(cache, Augmentation(), torch.device("cpu"), settings.slices_per_study)
    sites = {study.patient_key: "north" if number < 7 else "south" for number, study in enumerate(studies)}
    data = BenchmarkData(studies, {study.study_key: SLICES for study in studies}, sites, loader)
    return Grid(settings, seeds, sizes, data, choose("cpu", 1, 64), folder / "state", folder / "log.jsonl", ())


def _epochs(log: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event for event in events if event["event"] == "epoch ended"]


SMALL = BenchmarkSettings(epochs=2, image_size_px=64, slices_max=8)
ORIGIN = BenchmarkOrigin("the command", True, "2", "x")


def test_an_arm_that_fails_loses_no_other_and_stands_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large() -> None:
        raise RuntimeError("not enough memory:\n64 GiB")

    arms = {**registry.ARCHITECTURES, "huge": too_large}
    monkeypatch.setattr(registry, "ARCHITECTURES", arms)
    grid = _grid(tmp_path, replace(SMALL, validation_fraction=0.5))
    results = grid.run(["huge", "lite-slices", "lite"], lambda: False)
    trained = ["lite-slices", "lite", "lite, slice head alone"]
    assert [arm.name for arm in results.arms] == ["position", "position + histogram", *trained]
    assert [arm.name for arm in results.failed] == ["huge"]
    text = write_table(tmp_path / "out", grid.benches, results, ORIGIN)
    assert "| `huge` | failed: RuntimeError: not enough memory: 64 GiB |" in text
    assert "never clinical evidence" in text
    lines = [line for line in text.splitlines() if line.startswith(("| model | data", "| `lite` | 42"))]
    row = dict(zip(*[[cell.strip() for cell in line.strip("|").split("|")] for line in lines], strict=True))
    split = grid.benches[0].split
    positive = sum(int(study.study_labels[5]) for study in split.validation)
    assert row["all negative"] == f"{1 - 2 * positive / (SLICES * 6 * len(split.validation)):.3f}"  # epidural and any
    assert row["train"] == str(SLICES * len(split.training))
    assert row["parameters"] == "277,740"
    report = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [pair["other"] for pair in report["twins"]] == ["lite-slices", "lite, slice head alone"]
    losses = {arm["arm"]: arm["log_loss"]["value"] for arm in report["arms"]}
    for pair in report["twins"]:
        assert pair["arm"] == "lite"
        assert pair["log_loss"]["value"] == pytest.approx(losses["lite"] - losses[pair["other"]])
    assert [pair["arm"] for pair in report["against"]] == ["lite-slices", "lite"]
    full_size = replace(results.arms[2], name="resnet50")
    against, _ = pairs_of([*results.arms, full_size], draw_patients(len(results.sites), 10, np.random.default_rng(1)))
    assert [pair.other for pair in against if pair.arm == "resnet50"] == ["position + histogram", "lite"]
    assert set(report["sites"]["lite"]) == {"north", "south"}
    assert sum(site["patients"] for site in report["sites"]["lite"].values()) == len(split.validation)
    # A site with fewer patients than an interval needs has a number of patients and no figure.
    assert {site["auc_study"]["value"] for site in report["sites"]["lite"].values()} == {None}
    assert "below 10 positive or negative patients" in text.split("## By site")[1]
    svg = (tmp_path / "out" / "benchmark.svg").read_text()
    assert all(text in svg for text in ("lite-slices", "AUC, 95 % interval over patients", "7 patients", "epoch"))
    write_table(tmp_path / "again", grid.benches, results, ORIGIN)
    assert (tmp_path / "again" / "benchmark.svg").read_text() == svg


def test_a_stopped_run_has_a_table_of_its_last_evaluation_and_goes_on_to_the_undisturbed_end(tmp_path: Path) -> None:
    settings = replace(SMALL, epochs=3, validation_fraction=0.5)  # seven studies train
    stopped = _grid(tmp_path / "stopped", settings)
    results = stopped.run(["lite-slices", "lite"], stop_after(10))
    assert results.stopped
    assert [arm.name for arm in results.arms] == ["position", "position + histogram", "lite-slices"]
    assert [epoch.number for epoch in results.arms[-1].runs[0].epochs] == [1]
    text = write_table(tmp_path / "out", stopped.benches, results, ORIGIN)
    assert "**Unfinished: the run was stopped.**" in text
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["stopped"]
    early = _grid(tmp_path / "early", settings).run(["lite-slices"], stop_after(2))
    assert [arm.reason for arm in early.failed] == ["stopped before its first evaluation"]
    finished, whole = (
        _grid(tmp_path / name, settings).run(["lite-slices"], lambda: False) for name in ("stopped", "whole")
    )
    assert not finished.stopped
    assert finished.arms[-1].runs[0].digest == whole.arms[-1].runs[0].digest


def test_every_patient_is_held_out_once_by_folds_and_each_seed_is_a_model_of_its_own(tmp_path: Path) -> None:
    grid = _grid(tmp_path, replace(SMALL, epochs=1, folds=2), seeds=(1, 2))
    results = grid.run(["lite-slices"], lambda: False)
    held_out = [study.patient_key for bench in grid.benches for study in bench.split.validation]
    assert sorted(held_out) == sorted({f"p{n}" for n in range(14)})
    (arm,) = results.arms[2:]
    assert len(arm.runs) == 2
    for run in arm.runs:
        assert len(run.studies.patients) == len(set(run.studies.patients)) == 14
        assert len(run.slices.patients) == 14 * SLICES
    first, second = (run.studies.probabilities for run in arm.runs)
    assert not np.array_equal(first, second)
    log = _epochs(tmp_path / "log.jsonl")
    assert {(line["seed"], line["fold"], line["number"]) for line in log} == {(s, f, 1) for s in (1, 2) for f in (0, 1)}
    report = write_table(tmp_path / "out", grid.benches, results, ORIGIN)
    assert "2 folds by patient" in report
    assert "±" in report


def test_a_learning_curve_trains_on_nested_patients_and_validates_on_the_same_ones(tmp_path: Path) -> None:
    grid = _grid(tmp_path, replace(SMALL, epochs=1, validation_fraction=0.5), sizes=(2, 4, 0))
    results = grid.run(["lite-slices"], lambda: False)
    assert list(results.sizes) == [2, 4, 7]
    text = write_table(tmp_path / "out", grid.benches, results, ORIGIN)
    rows = [
        line.split("|")[2].strip() for line in text.split("## Learning curve")[1].splitlines() if "lite-slices" in line
    ]
    assert rows[:3] == ["2", "4", "7"]
    log = _epochs(tmp_path / "log.jsonl")
    assert [line["patients"] for line in log] == [2, 4, 0]


def test_a_smaller_set_of_patients_is_a_part_of_a_larger_one_with_its_shares_of_findings() -> None:
    studies = [_study(n, positive=n % 4 - 1) for n in range(80)]  # none, epidural, intraparenchymal, intraventricular
    chosen = [{study.patient_key for study in limit_patients(studies, count, 5)} for count in (8, 20, 40)]
    assert [len(patients) for patients in chosen] == [8, 20, 40]
    assert chosen[0] < chosen[1] < chosen[2]
    kept = [study for study in studies if study.patient_key in chosen[1]]
    shares = np.mean([study.study_labels[:3] for study in kept], axis=0)
    assert np.abs(shares - 0.25).max() <= 0.1


def test_every_twin_is_an_architecture_and_has_fewer_parameters() -> None:
    for arm, twin in {"lite": TWINS["lite"]}.items():
        sizes = [registry.manifest_of(registry.build(name, 1)).size for name in (arm, twin)]
        assert sizes[0] > sizes[1]
    assert {*TWINS, *TWINS.values()} <= {*registry.ARCHITECTURES}


def test_a_split_shares_no_patient_and_holds_out_the_same_part_of_each_finding() -> None:
    studies = [_study(n, patient=n // 2, positive=(n // 2) % 3 - 1) for n in range(120)]  # three kinds, two visits each
    split = split_stratified(studies, 0.25, 3)
    sides = [{study.patient_key for study in side} for side in (split.training, split.validation)]
    assert not sides[0] & sides[1]
    assert len(split.training) + len(split.validation) == 120
    for label in (0, 1):
        held_out = sum(int(study.study_labels[label]) for study in split.validation)
        assert held_out in (8, 10, 12)  # of 40 studies, a quarter
    assert split == split_stratified(list(studies), 0.25, 3)
    assert split != split_stratified(studies, 0.25, 4)


def test_a_split_that_leaves_nobody_to_judge_is_refused() -> None:
    with pytest.raises(EvaluationRefused, match="give more studies"):
        split_stratified([_study(1), _study(2, patient=1)], 0.3, 1)


def _read_most(series: SeriesRecord) -> Volume:
    if series.series_key == "x1":
        raise SeriesUnreadable("expected pixels, got none", "no_pixels")
    return _read(series)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_prepares_studies_alike_and_leaves_out_an_unreadable_one(
    tmp_path: Path, workers: int
) -> None:
    loader = Loader(StudyCache(tmp_path, 1 << 30, 64, 8, _read_most), Augmentation(), torch.device("cpu"))
    sentences: list[str] = []
    studies = [_study(n) for n in range(4)]
    readable, slices = prepare_all(studies, loader, sentences.append, workers)
    assert readable == (studies[0], studies[2], studies[3])
    assert slices == 3 * SLICES
    assert sentences == ["one study is left out: no_pixels"]


def test_a_data_set_of_a_given_size_is_made_of_whole_patients() -> None:
    studies = [_study(n, patient=n // 2) for n in range(40)]
    some = at_most(studies, 5 * SLICES, 1)
    assert len(some) == 6
    assert len({study.patient_key for study in some}) == 3


def test_the_same_images_have_the_same_names_under_any_secret() -> None:
    studies = [_study(n, patient=n // 2) for n in range(6)]
    renamed = [_study(n, patient=100 - n // 2) for n in reversed(range(6))]
    for a, b in zip(by_content(studies), by_content(renamed), strict=True):
        assert (a.study_key, a.patient_key) == (b.study_key, b.patient_key)
    assert len({study.patient_key for study in by_content(studies)}) == 3
