"""Scores of validation patients, kept from one round to the next: what is compared, and what is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation.gate import Gate
from federation.labels import LABEL_WEIGHTS

from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.records import AucLoss, RunId
from site_client.training.patient_scores import EvaluatedModel, by_patient, compare_with_last, study_loss
from site_client.typed_json import Digest

GATE = Gate(clip=0.25)


def _study(number: int, patient: int, label: int = 0) -> StudyRecord:
    series = SeriesRecord(SeriesKey(f"series-{number}"), f"{number:064x}", (Path("unread"),))
    labels = np.full((2, 6), label, np.int8)
    return StudyRecord(StudyKey(f"study-{number}"), PatientKey(f"patient-{patient}"), series, labels, labels[0])


def _evaluated(model: int, losses: dict[str, float], bins: dict[str, tuple[int, int]] | None = None) -> EvaluatedModel:
    """`bins` gives each patient the bins of its five negative and five positive slices of the first label."""
    histograms = np.zeros((len(losses), 6, 2, 64), np.uint16)
    for place, patient in enumerate(losses):
        histograms[place, 0, (0, 1), (bins or {}).get(patient, (0, 0))] = 5 if bins else 0
    run, digest, values = RunId(bytes(16)), Digest(bytes([model]) * 32), np.array(list(losses.values()))
    return EvaluatedModel(run, digest, "cpu", tuple(losses), values, histograms)


def test_a_studys_loss_is_the_weighted_cross_entropy_of_its_known_labels() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((5, 6)).astype(np.float32), rng.integers(-1, 2, (5, 6)).astype(np.int8)
    cells = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(np.maximum(labels, 0)).float(), reduction="none"
    )
    weights = torch.tensor(LABEL_WEIGHTS) * torch.from_numpy(labels != -1)
    assert study_loss(logits, labels) == pytest.approx(float((cells * weights).sum() / weights.sum()), rel=1e-5)
    assert np.isnan(study_loss(logits, np.full((5, 6), -1, np.int8)))


def _by_patient(studies: list[StudyRecord], losses: list[float]) -> EvaluatedModel:
    histograms = np.ones((len(studies), 6, 2, 64), np.int16)
    return by_patient(RunId(bytes(16)), Digest(bytes(32)), "cpu", studies, np.array(losses), histograms)


def test_a_patient_has_the_mean_of_its_studies_and_is_another_one_with_other_labels() -> None:
    studies = [_study(1, 1), _study(2, 1), _study(3, 2), _study(4, 3)]
    scores = _by_patient(studies, [0.2, 0.4, 0.5, np.nan])
    assert sorted(scores.losses) == pytest.approx([0.3, 0.5])
    assert sorted(scores.histograms.max(axis=(1, 2, 3))) == [1, 2]
    relabelled = _by_patient([_study(1, 1, label=1), *studies[1:]], [0.2, 0.4, 0.5, np.nan])
    assert len(set(scores.patients) & set(relabelled.patients)) == 1


def test_a_label_s_loss_of_auc_is_over_the_slices_of_common_patients_alone(tmp_path: Path) -> None:
    order = {"0" * 16: (10, 20), "1" * 16: (10, 20), "2" * 16: (60, 1)}
    compare_with_last(tmp_path, _evaluated(1, dict.fromkeys(order, 0.5), order), GATE)
    # The third patient is another one now, and one of the common two is scored the wrong way round.
    now = {"0" * 16: (10, 20), "1" * 16: (20, 10), "3" * 16: (60, 1)}
    compared = compare_with_last(tmp_path, _evaluated(2, dict.fromkeys(now, 0.5), now), GATE)
    assert compared is not None
    assert compared.patients == 2
    # Of four pairs of patients one is wrong, and two are ties.
    assert compared.labels[0].auc == pytest.approx(1 - (1 + 2 * 0.5) / 4)
    assert compared.labels[0].positives == 10
    assert compared.labels[1:] == (AucLoss(),) * 5, "labels without slices"


def test_a_model_is_compared_with_the_one_evaluated_before_it_on_common_patients(tmp_path: Path) -> None:
    first = _evaluated(1, {"0" * 16: 0.5, "1" * 16: 0.5, "2" * 16: 0.5})
    assert compare_with_last(tmp_path, first, GATE) is None
    assert compare_with_last(tmp_path, first, GATE) is None  # the same job again
    second = _evaluated(2, {"1" * 16: 0.4, "2" * 16: 9.0, "3" * 16: 0.1})
    compared = compare_with_last(tmp_path, second, GATE)
    assert compared is not None
    assert (compared.earlier_digest, compared.patients) == (first.model_digest, 2)
    assert (compared.difference_sum, compared.square_sum) == pytest.approx((-0.1 + 0.25, 0.01 + 0.0625))
    assert compare_with_last(tmp_path, second, GATE) == compared
    # The round that follows a refusal begins from the first model again.
    back = compare_with_last(tmp_path, first, GATE)
    assert back is not None
    assert back.earlier_digest == second.model_digest
    assert back.difference_sum == pytest.approx(0.1 - 0.25)


@pytest.mark.parametrize("change", ["run", "compute", "patients", "damage"])
def test_nothing_is_compared_across_runs_and_machines_or_with_a_damaged_file(tmp_path: Path, change: str) -> None:
    compare_with_last(tmp_path, _evaluated(1, {"0" * 16: 0.5}), GATE)
    second = _evaluated(2, {"0" * 16: 0.4})
    if change == "run":
        second = replace(second, run_id=RunId(bytes(15) + b"1"))
    elif change == "compute":
        second = replace(second, compute="cuda")
    elif change == "patients":
        second = replace(second, patients=("1" * 16,))
    else:
        file = tmp_path / "patient_scores.bin"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    assert compare_with_last(tmp_path, second, GATE) is None
    # The next model finds these losses.
    assert compare_with_last(tmp_path, replace(second, model_digest=Digest(bytes([3]) * 32)), GATE) is not None
