"""Each figure of the phantom belongs to the label under whose name it stands, and each bleed looks like its label.

The figures stand here a second time. All other tests compare the phantom with its own tables, so an exchange of two
labels in a table would pass them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation.labels import LABELS, SUBTYPES

from site_client.phantom.bleeds import shift_points
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.lesions import STUDY_PERCENT, Lesion, draw_lesions
from site_client.phantom.mimics import draw_mimics
from site_client.phantom.profiles import PROFILES
from site_client.phantom.sheet import WINDOWS, first_with, largest_and_neighbors
from site_client.phantom.skew import skewed
from site_client.phantom.statistics import LESION_HU, LESION_ML, LESIONS_PER_STUDY, QUANTILES, SUBTYPE_SETS
from site_client.phantom.streams import PhantomStreams
from site_client.phantom.study import Study, Wishes, make_study

EDH, IPH, IVH, SAH, SDH = "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"
MEDIAN = QUANTILES.index(0.5)
TINY = Wishes(size_px=64, thickness_mm=8.0, difficulty=0.3)


def only(label: str) -> dict[str, float]:
    """A mix in which every study is positive, practically always for this subtype alone."""
    return {**dict.fromkeys(SUBTYPES, 0.01), label: 98.0, "any": 100.0}


def lesions_of(label: str, count: int = 300) -> list[Lesion]:
    random = np.random.Generator(np.random.Philox(key=5))
    drawn = [draw_lesions(random, only(label), 0.5, 1.0) for _ in range(count)]
    return [lesion for lesions in drawn for lesion in lesions if {other.subtype for other in lesions} == {label}]


@pytest.mark.parametrize(
    ("mix", "percent"),
    [
        ("T", {EDH: 6, IPH: 12, IVH: 4, SAH: 14, SDH: 18, "any": 35}),
        ("S", {EDH: 0.5, IPH: 18, IVH: 10, SAH: 6, SDH: 7, "any": 30}),
        ("N", {EDH: 2, IPH: 20, IVH: 24, SAH: 30, SDH: 14, "any": 55}),
        ("C", {EDH: 0.3, IPH: 2, IVH: 0.8, SAH: 1.8, SDH: 2.5, "any": 6}),
        ("R", {EDH: 0.5, IPH: 4, IVH: 1.5, SAH: 2.5, SDH: 4, "any": 10}),
        ("U", {EDH: 1, IPH: 6, IVH: 4, SAH: 5, SDH: 12, "any": 20}),
        ("rsna", {EDH: 2, IPH: 17, IVH: 13, SAH: 16, SDH: 15, "any": 40}),
        ("natural", {EDH: 0.3, IPH: 2, IVH: 0.9, SAH: 1.8, SDH: 2.6, "any": 6}),
        ("balanced", {EDH: 14, IPH: 20, IVH: 16, SAH: 20, SDH: 20, "any": 50}),
    ],
)
def test_each_site_and_mix_has_its_percent_of_studies_by_label(mix: str, percent: dict[str, float]) -> None:
    assert (PROFILES[mix].patients.percent if mix in PROFILES else STUDY_PERCENT[mix]) == percent


@pytest.mark.parametrize(
    ("label", "ml", "hu", "most_in_a_study"),
    [
        (EDH, 3.933, 56.7, 3),
        (IPH, 1.243, 47.7, 17),
        (IVH, 0.54, 39.6, 8),
        (SAH, 0.183, 43.3, 41),
        (SDH, 0.542, 51.2, 12),
    ],
)
def test_the_published_figures_stand_under_their_labels(label: str, ml: float, hu: float, most_in_a_study: int) -> None:
    assert (LESION_ML[label][MEDIAN], LESION_HU[label][MEDIAN]) == (ml, hu)
    assert LESIONS_PER_STUDY[label][-1] == most_in_a_study


def test_the_published_sets_count_each_label_as_often_as_the_source() -> None:
    alone = {names[0]: studies for names, studies in SUBTYPE_SETS.items() if len(names) == 1}
    assert alone == {IPH: 11, EDH: 11, SDH: 10, IVH: 9, SAH: 9}
    with_label = {name: sum(count for names, count in SUBTYPE_SETS.items() if name in names) for name in SUBTYPES}
    assert with_label == {EDH: 23, IPH: 126, IVH: 104, SAH: 109, SDH: 70}
    # Single sets, which tell an exchange of two labels whose counts are alike.
    assert (SUBTYPE_SETS[(IPH, IVH)], SUBTYPE_SETS[(IPH, SAH, SDH)], SUBTYPE_SETS[(EDH, SAH)]) == (27, 17, 3)


@pytest.mark.parametrize(
    ("label", "styles"),
    [
        (EDH, {"lens"}),
        (IPH, {"deep", "lobar", "hind"}),
        (IVH, {"level", "cast"}),
        (SAH, {"sulcal", "sylvian", "basal"}),
        (SDH, {"convexity", "falcine", "tentorial"}),
    ],
)
def test_each_label_bleeds_in_its_own_space(label: str, styles: set[str]) -> None:
    lesions = lesions_of(label)
    assert {lesion.style for lesion in lesions} == styles
    assert any(lesion.edema_mm > 0 for lesion in lesions) == (label == IPH)


@pytest.mark.parametrize(("label", "above_mean_hu"), [(EDH, 4), (IPH, 8), (IVH, 12), (SAH, 16), (SDH, 6)])
def test_each_labels_core_is_denser_than_its_published_mean(label: str, above_mean_hu: float) -> None:
    random = np.random.Generator(np.random.Philox(key=6))
    studies = [draw_lesions(random, only(label), 0.0, 1.0) for _ in range(4000)]
    cores = [lesions[0].hu for lesions in studies if {lesion.subtype for lesion in lesions} == {label}]
    assert np.median(cores) - LESION_HU[label][MEDIAN] == pytest.approx(above_mean_hu, abs=1.0)


def test_only_subdural_bleeds_are_chronic() -> None:
    for label in SUBTYPES:
        random = np.random.Generator(np.random.Philox(key=7))
        acute = [draw_lesions(random, only(label), 0.0, 1.0) for _ in range(1500)]
        random = np.random.Generator(np.random.Philox(key=7))
        chronic = [draw_lesions(random, only(label), 1.0, 1.0) for _ in range(1500)]
        median_hu = [np.median([lesions[0].hu for lesions in studies if lesions]) for studies in (acute, chronic)]
        assert (median_hu[1] < median_hu[0] - 10) == (label == SDH), label


def test_an_epidural_bleed_alone_brings_a_fracture_to_its_own_place() -> None:
    patients = replace(PROFILES["T"].patients, fracture=0.0)
    for label in SUBTYPES:
        lesion = Lesion(label, "lens", 10.0, 60.0, (60.0, 1.0, 2.0))
        fractures = 0
        for key in range(100):
            mimics = draw_mimics(np.random.Generator(np.random.Philox(key=key)), patients, 40.0, (lesion,))
            fractures += sum(mimic.kind == "fracture" and mimic.center_mm == lesion.center_mm for mimic in mimics)
        assert fractures == pytest.approx(80 if label == EDH else 0, abs=15), label


def test_bleeds_in_folds_and_ventricles_push_nothing_aside() -> None:
    points = (np.zeros(1, np.float32), np.zeros(1, np.float32), np.full(1, 10.0, np.float32))
    for label in SUBTYPES:
        lesion = Lesion(label, "lens", 60.0, 60.0, (40.0, 0.0, 10.0))
        (x, _, _) = shift_points((lesion,), points, np.full(1, 60.0, np.float32))
        assert (x[0] != 0) == (label in {EDH, IPH, SDH}), label


def study_of(label: str) -> Study:
    """The first study whose only bleeds are of this label."""
    patients = replace(PROFILES["S"].patients, percent=only(label), mimics=0.0)
    index = 0
    while True:
        streams = PhantomStreams.of("S", 3, index)
        lesions = draw_lesions(streams.generator("lesion"), patients.percent, patients.chronic_subdural, 0.3)
        if {lesion.subtype for lesion in lesions} == {label}:
            return make_study(streams, streams, patients, PROFILES["S"].scanner, TINY)
        index += 1


@pytest.mark.parametrize("label", SUBTYPES)
def test_a_bleed_of_one_label_is_positive_in_that_labels_column_only(label: str) -> None:
    study = study_of(label)
    positive = {name for name, column in zip(LABELS, study.truth.slice_labels.T, strict=True) if column.any()}
    assert positive == {label, "any"}


def test_the_hidden_masks_bear_the_names_of_the_bleeds(tmp_path: Path) -> None:
    make_set(
        Order("S", 6, 4, Wishes(size_px=64, thickness_mm=10.0, prevalence="balanced", difficulty=0.3)), tmp_path / "set"
    )
    compared = 0
    for path in (tmp_path / "set" / "hidden").glob("*.npz"):
        with np.load(path) as hidden:
            masks = {name.removeprefix("mask_") for name in hidden.files if name.startswith("mask_")}
            millilitres = dict(zip(SUBTYPES, hidden["ml"].sum(axis=0), strict=True))
        assert masks == {name for name, ml in millilitres.items() if ml > 0}
        compared += len(masks)
    assert compared


def test_label_skew_moves_each_share_around_its_own_labels() -> None:
    mix = {EDH: 1.0, IPH: 40.0, IVH: 2.0, SAH: 4.0, SDH: 8.0, "any": 50.0}
    drawn = [skewed(np.random.default_rng(seed), mix, 200.0) for seed in range(60)]
    means = {label: float(np.mean([share[label] for share in drawn])) for label in LABELS}
    assert means == pytest.approx(mix, rel=0.35)


@pytest.mark.parametrize(("column", "label"), list(enumerate(SUBTYPES)))
def test_the_contact_sheet_shows_the_largest_slice_of_its_label(column: int, label: str) -> None:
    study = study_of(label)
    assert (
        largest_and_neighbors(study, label)[1] == study.truth.ml[:, column].argmax() == study.truth.ml.sum(1).argmax()
    )


@pytest.mark.parametrize("label", SUBTYPES)
def test_a_row_of_the_contact_sheet_shows_bleeds_of_its_label(label: str) -> None:
    streams, patients = PhantomStreams.of("S", 7, first_with(label, 7, 0.5)), PROFILES["S"].patients
    lesions = draw_lesions(streams.generator("lesion"), STUDY_PERCENT["balanced"], patients.chronic_subdural, 0.5)
    assert {lesion.subtype for lesion in lesions} == {label}


def test_the_window_for_subdural_bleeds_is_centered_at_80_and_200_wide() -> None:
    assert WINDOWS[SDH] == (80, 200)
