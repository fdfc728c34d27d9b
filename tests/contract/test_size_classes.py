"""Counts leave as size classes: what many rounds with other cohorts could tell is no more than a class."""

import numpy as np
import pytest
from federation.encoding import HISTOGRAM_SHAPE, Layout, SiteHeader, coarse_header, size_class
from federation.encoding.layout import COUNT_MAX
from federation.vocabulary import Metric
from hypothesis import given
from hypothesis import strategies as st

LAYOUT = Layout(
    parameters=0,
    bits=8,
    members_max=16,
    clip_norm=1.0,
    weight_cap=1000,
    rotation_seed=bytes(32),
    metrics=frozenset({Metric.LOSS, Metric.HISTOGRAMS}),
    count_cap=10_000,
)


def header_of(studies: int, examples: int, seed: int, most: int) -> SiteHeader:
    counts = np.random.default_rng(seed).integers(0, most, HISTOGRAM_SHAPE)
    return SiteHeader(studies, 0.25 * examples, examples, clipped=False, histograms=counts)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (1000, 512), (1024, 1024)])
def test_a_class_is_the_largest_power_of_two_and_few_count_as_none(count: int, expected: int) -> None:
    assert size_class(count) == expected


@given(st.integers(1, 10**6), st.integers(0, COUNT_MAX), st.integers(0, 2**32), st.sampled_from([1, 2, 9, 5000]))
def test_every_count_that_leaves_is_a_class_within_the_caps(studies: int, examples: int, seed: int, most: int) -> None:
    exact = header_of(studies, examples, seed, most)
    coarse = coarse_header(LAYOUT, exact)
    assert coarse.studies == max(1, size_class(min(studies, LAYOUT.weight_cap)))
    assert coarse.example_count == size_class(min(examples, LAYOUT.count_cap))
    exact_totals, totals = exact.histograms.sum(axis=2), coarse.histograms.sum(axis=2)
    for total, exact_total in zip(totals.ravel(), exact_totals.ravel(), strict=True):
        assert total == size_class(min(int(exact_total), LAYOUT.count_cap))
    assert (coarse.histograms <= exact.histograms + 1).all()


@given(st.integers(0, 2**32))
def test_loss_and_form_of_the_histograms_stay(seed: int) -> None:
    exact = header_of(100, 777, seed, 50)
    coarse = coarse_header(LAYOUT, exact)
    assert coarse.loss_sum / coarse.example_count == pytest.approx(0.25)
    fractions = [header.histograms / header.histograms.sum(axis=2, keepdims=True) for header in (exact, coarse)]
    assert np.abs(fractions[0] - fractions[1]).max() < 2 / coarse.histograms.sum(axis=2).min()
