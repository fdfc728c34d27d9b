"""Which labels train which parts of a network, how studies are drawn, and how patients are split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from federation.labels import ANY, MISSING

from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.model.network import CHANNELS, Network, Output
from site_client.model.registry import build
from site_client.training.data import Sample, passes, split_patients
from site_client.training.histogram_auc import auc_of_histogram
from site_client.training.loss import reported_loss, training_loss
from site_client.training.sampling import epoch_order, sampling_weights
from site_client.training.study_labels import complete, study_labels


def _record(number: int, patient: int, positive: bool | None) -> StudyRecord:
    label = MISSING if positive is None else int(positive)
    series = SeriesRecord(SeriesKey(f"series-{number}"), f"{number:064x}", (Path("unread"),))
    slices = np.full((2, 6), MISSING, np.int8)
    slices[:, ANY] = label
    keys = StudyKey(f"study-{number}"), PatientKey(f"patient-{patient}")
    return StudyRecord(*keys, series, slices, np.full(6, MISSING, np.int8))


def _sample(slice_labels: torch.Tensor, study: torch.Tensor, *, anchored: bool = True) -> Sample:
    count = slice_labels.shape[1]
    mask = torch.ones(1, count).bool()
    return Sample(torch.zeros(1), mask, torch.zeros(1, count, 4), slice_labels, study, torch.tensor([anchored]))


def test_a_missing_label_has_no_gradient_and_no_weight() -> None:
    logits = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[[0.0, 1, 0, 0, 0, 1], [-1.0] * 6, [1.0, -1, -1, -1, -1, 1]]])
    study = torch.full((1, 6), float(MISSING))
    loss = reported_loss(Output(logits, torch.zeros(1, 6), torch.zeros(1)), _sample(labels, study))
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, labels != MISSING)


def test_without_any_label_the_loss_is_0_and_finite() -> None:
    unknown = torch.full((1, 2, 6), float(MISSING))
    output = Output(torch.ones(1, 2, 6), torch.ones(1, 6), torch.zeros(1))
    assert reported_loss(output, _sample(unknown, unknown[:, 0])).item() == 0


def _gradients(net: Network, slice_label: float, study_label: float, *, anchored: bool = True) -> dict[str, bool]:
    """Return which parts of `net` get a gradient from a study with one label in all slices and one of its own."""
    x = torch.rand(1, 3, CHANNELS, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.full((1, 3, 6), slice_label), torch.full((1, 6), study_label)
    sample = _sample(*labels, anchored=anchored)
    net.zero_grad()
    output = net(x, sample.mask, sample.geometry)
    torch.autograd.backward(training_loss(output, sample))
    return {
        part: any(
            bool((value.grad != 0).any()) for value in net.get_submodule(name).parameters() if value.grad is not None
        )
        for part, name in [("backbone", "backbone"), ("recurrence", "reader.sequence")]
    }


def test_a_studys_label_trains_the_backbone_only_if_no_slice_has_a_label() -> None:
    net = build("lite", 1)
    assert _gradients(net, float(MISSING), 1.0) == {"backbone": True, "recurrence": True}
    assert _gradients(net, float(MISSING), float(MISSING)) == {"backbone": False, "recurrence": False}
    output = net(torch.zeros(1, 2, CHANNELS, 64, 64), torch.ones(1, 2).bool(), torch.zeros(1, 2, 4))
    net.zero_grad()
    (output.slice_logits.sum() + output.study_logits.sum()).backward()
    assert all(
        value.grad is None for value in net.get_submodule("backbone").parameters()
    )  # neither recurrence nor study head reach it


def test_a_slab_without_an_anchor_trains_what_lies_behind_the_backbone_only() -> None:
    parts = _gradients(build("lite", 1), 1.0, 1.0, anchored=False)
    assert parts == {"backbone": False, "recurrence": True}


def _whole_sample(slices: int, seed: int, label: float) -> Sample:
    random = torch.Generator().manual_seed(seed)
    labels = torch.full((1, slices, 6), label)
    return Sample(
        torch.rand(1, slices, CHANNELS, 64, 64, generator=random) * 2 - 1,
        torch.ones(1, slices).bool(),
        torch.rand(1, slices, 4, generator=random),
        labels,
        torch.ones(1, 6),
        torch.ones(1).bool(),
    )


@pytest.mark.parametrize("architecture", ["lite", pytest.param("densenet121-3d", marks=pytest.mark.slow)])
def test_studies_in_one_pass_have_the_losses_and_gradients_of_separate_passes(architecture: str) -> None:
    samples = [_whole_sample(3, 1, 1.0), _whole_sample(5, 2, float(MISSING)), _whole_sample(2, 3, 0.0)]
    results = []
    for slices in (1, 100):
        net = build(architecture, 1).eval()  # without dropout, which is drawn in another order
        losses = []
        for sample in passes(samples, slices):
            output = net(sample.x, sample.mask, sample.geometry)
            torch.autograd.backward(training_loss(output, sample).sum())
            losses.append(reported_loss(output, sample).detach())
        results.append((torch.cat(losses), [parameter.grad for parameter in net.parameters()]))
    (separate, gradients), (together, others) = results
    assert separate.shape == together.shape == (3,)
    torch.testing.assert_close(together, separate)
    torch.testing.assert_close(others, gradients, rtol=1e-3, atol=1e-5)


def test_a_pass_takes_studies_until_it_holds_its_slices() -> None:
    samples = [_whole_sample(slices, 1, 1.0) for slices in (3, 5, 2, 4)]
    assert [tuple(sample.mask.sum(dim=1)) for sample in passes(samples, 1)] == [(3,), (5,), (2,), (4,)]
    assert [tuple(sample.mask.sum(dim=1)) for sample in passes(samples, 7)] == [(3, 5), (2, 4)]
    assert [tuple(sample.mask.sum(dim=1)) for sample in passes(samples, 99)] == [(3, 5, 2, 4)]


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ([1, -1, -1, -1, -1, -1], [1, -1, -1, -1, -1, 1]),
        ([-1, -1, -1, -1, -1, 0], [0, 0, 0, 0, 0, 0]),
        ([-1, -1, -1, -1, -1, 1], [-1, -1, -1, -1, -1, 1]),
        ([0, 0, 0, 0, 0, -1], [0, 0, 0, 0, 0, -1]),
    ],
)
def test_only_certain_labels_are_filled_in(given: list[int], completed: list[int]) -> None:
    assert complete(np.array(given, np.int8)).tolist() == completed


def test_a_study_takes_from_its_slices_what_its_own_label_leaves_open() -> None:
    assert study_labels(_record(1, 1, True))[ANY] == 1
    assert study_labels(_record(1, 1, False)).tolist() == [0] * 6


def test_no_patient_is_on_both_sides_and_none_moves_when_others_arrive() -> None:
    few = [_record(number, number // 2, number % 3 == 0) for number in range(60)]
    more = few + [_record(number, number // 2, True) for number in range(60, 120)]
    split, later = split_patients(few, 0.3), split_patients(more, 0.3)
    patients = [{study.patient_key for study in part} for part in (split.training, split.validation)]
    assert patients[0]
    assert patients[1]
    assert not patients[0] & patients[1]
    assert patients[1] <= {study.patient_key for study in later.validation}
    assert patients[0] <= {study.patient_key for study in later.training}


def test_a_study_without_labels_is_neither_in_training_nor_in_validation() -> None:
    split = split_patients([_record(number, number, None) for number in range(20)], 0.5)
    assert split.training == split.validation == ()


def test_half_of_an_epoch_is_positive_and_nothing_comes_twice_before_all_came_once() -> None:
    studies = [_record(number, number, number < 5) for number in range(40)]
    order = epoch_order(studies, np.random.default_rng(0))
    positive = [index for index in order if index < 5]
    assert len(order) == 40
    assert len(positive) == 20
    assert {positive.count(index) for index in range(5)} == {4}


def test_sampling_weights_are_the_mean_draws_of_many_epochs() -> None:
    studies = [_record(number, number, number < 5) for number in range(17)]
    studies[0].slice_labels[0] = 1  # epidural too: shown twice as often
    rng = np.random.default_rng(0)
    draws = [np.bincount(epoch_order(studies, rng), minlength=17) for _ in range(400)]
    weights = sampling_weights(studies)
    assert weights.sum() == pytest.approx(17)
    assert weights[0] == pytest.approx(2 * weights[1])
    assert np.mean(draws, axis=0) == pytest.approx(weights, abs=0.15)


def test_auc_of_a_histogram_counts_pairs_and_ties_half() -> None:
    assert auc_of_histogram(np.array([1, 1, 0]), np.array([0, 1, 1])) == pytest.approx(3.5 / 4)
    assert np.isnan(auc_of_histogram(np.array([1, 2]), np.zeros(2)))
