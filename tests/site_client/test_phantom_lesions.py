"""What bleeds, how much, and what a reader would call positive."""

import numpy as np
import pytest
from federation.labels import SUBTYPES

from site_client.phantom.delivery import noisy, slice_ids
from site_client.phantom.lesions import CLOT_HU_MAX, STUDY_PERCENT, draw_lesions, set_weights
from site_client.phantom.profiles import PROFILES
from site_client.phantom.statistics import LESION_HU, LESION_ML, QUANTILES, draw_hu, draw_ml
from site_client.phantom.truth import labels_of


@pytest.mark.parametrize("name", [*PROFILES, *STUDY_PERCENT])
def test_subtype_shares_come_out_as_asked(name: str) -> None:
    percent = PROFILES[name].patients.percent if name in PROFILES else STUDY_PERCENT[name]
    weights = set_weights(percent)
    shares = {name: sum(weight for names, weight in weights.items() if name in names) for name in SUBTYPES}
    assert shares == pytest.approx({name: percent[name] / percent["any"] for name in SUBTYPES}, rel=0.03)


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_drawn_volumes_and_densities_follow_the_published_quantiles(subtype: str) -> None:
    random = np.random.Generator(np.random.Philox(key=1))
    ml = [draw_ml(random, subtype) for _ in range(20000)]
    hu = [draw_hu(random, subtype) for _ in range(20000)]
    for q in (0.1, 0.5, 0.9):
        at = QUANTILES.index(q)
        assert np.quantile(ml, q) == pytest.approx(LESION_ML[subtype][at], rel=0.15)
        assert np.quantile(hu, q) == pytest.approx(LESION_HU[subtype][at], rel=0.05)


def test_the_share_of_positive_studies_is_the_profiles() -> None:
    random = np.random.Generator(np.random.Philox(key=2))
    drawn = [draw_lesions(random, PROFILES["T"].patients.percent, 0.2, 1.0) for _ in range(3000)]
    assert np.mean([bool(lesions) for lesions in drawn]) == pytest.approx(0.35, rel=0.1)


def test_an_easy_set_has_larger_bleeds_of_the_same_density_and_a_hard_one_fainter_ones() -> None:
    def drawn(difficulty: float) -> tuple[float, list[float]]:
        random = np.random.Generator(np.random.Philox(key=3))
        studies = [draw_lesions(random, STUDY_PERCENT["balanced"], 0.0, difficulty) for _ in range(400)]
        largest = [max(lesion.ml for lesion in lesions) for lesions in studies if lesions]
        return float(np.median(largest)), [lesion.hu for lesions in studies for lesion in lesions]

    (easy_ml, easy_hu), (plain_ml, plain_hu), (_, hard_hu) = drawn(0.4), drawn(1.0), drawn(2.0)
    assert easy_ml > 1.5 * plain_ml
    assert easy_hu == plain_hu
    assert np.mean(hard_hu) < np.mean(plain_hu) - 5


@pytest.mark.parametrize("difficulty", [0.2, 0.5, 1.0, 3.0])
def test_no_bleed_is_denser_than_clotted_blood(difficulty: float) -> None:
    """Beyond 80 HU, the top of the brain window, an extra-axial bleed would melt into the skull."""
    random = np.random.Generator(np.random.Philox(key=5))
    bleeds = [bleed for _ in range(500) for bleed in draw_lesions(random, STUDY_PERCENT["balanced"], 0.2, difficulty)]
    assert max(bleed.hu for bleed in bleeds) <= CLOT_HU_MAX == 80
    acute = np.array([bleed.hu for bleed in bleeds if bleed.subtype == "epidural"])
    assert difficulty > 1 or 50 <= np.median(acute) <= 70


@pytest.mark.parametrize(
    ("ml", "area_mm2", "contrast_hu", "positive"),
    [
        (0.03, 6.0, 6.0, True),
        (0.03, 6.0, -6.0, True),
        (0.0299, 6.0, 6.0, False),
        (0.03, 5.9, 6.0, False),
        (0.03, 6.0, 5.9, False),
    ],
)
def test_a_slice_is_positive_from_its_thresholds_on(
    ml: float, area_mm2: float, contrast_hu: float, positive: bool
) -> None:
    cells = [np.zeros((1, 5), np.float32) for _ in range(3)]
    for cell, value in zip(cells, (ml, area_mm2, contrast_hu), strict=True):
        cell[0, 3] = value
    assert labels_of(*cells).tolist() == [[0, 0, 0, int(positive), 0, int(positive)]]


def test_label_noise_moves_ends_but_never_a_study() -> None:
    truth = np.zeros((30, 6), np.int8)
    truth[8:18, [1, 5]] = 1
    random = np.random.Generator(np.random.Philox(key=4))
    flips = 0
    for _ in range(400):
        labels = noisy(random, truth, 0.05)
        assert np.array_equal(labels[:, 5], labels[:, :5].max(axis=1))
        assert np.array_equal(labels.max(axis=0), truth.max(axis=0))
        assert set(np.flatnonzero(labels[:, 1] != truth[:, 1])) <= {7, 8, 17, 18}
        flips += int((labels[:, 1] != truth[:, 1]).sum())
    assert flips / (400 * 10) == pytest.approx(0.05, rel=0.2)


def test_slice_names_never_collide() -> None:
    names = [name for index in range(3000) for name in slice_ids(7, index, 40)]
    assert len(set(names)) == len(names)
    assert all(len(name) == 12 for name in names)
