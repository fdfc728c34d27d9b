"""Stored values -> HU: by the file's own scale, with padding gone, and the 12-bit repair only where it applies."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from site_client.ingest.files.hounsfield import Scale, has_wrapped, may_have_wrapped, to_hu, unwrap
from site_client.ingest.reasons import Reason
from site_client.ingest.series import content


@given(
    stored=arrays(np.int32, 20, elements=st.integers(-32768, 65535)),
    slope=st.sampled_from([0.5, 1.0, 2.0]),
    intercept=st.integers(-2000, 100),
    padding=st.sampled_from([(), (-2000,), (0,), (-2000, -1500)]),
)
def test_hu_are_always_within_range(stored: np.ndarray, slope: float, intercept: int, padding: tuple[int, ...]) -> None:
    hu = to_hu(stored, Scale(slope, intercept, 16, True, padding))
    assert hu.dtype == np.int16
    assert hu.min() >= -1024
    assert hu.max() <= 3071
    if padding:
        assert (hu[(stored >= min(padding)) & (stored <= max(padding))] == -1024).all()


def test_padding_is_compared_in_stored_units() -> None:
    # -2000 stored means padding here; what rescales to -2000 HU is something else, and 24 stored is tissue.
    stored = np.array([-2000, 1024, 1064, 24], dtype=np.int32)
    assert to_hu(stored, Scale(1, -1024, 16, True, (-2000,))).tolist() == [-1024, 0, 40, -1000]
    assert to_hu(stored, Scale(1, -1024, 16, True, (1064,))).tolist() == [-1024, 0, -1024, -1000]


@given(arrays(np.int32, 50, elements=st.integers(-1000, 3095)))
def test_unwrapping_undoes_the_wrap(hu: np.ndarray) -> None:
    assert np.array_equal(unwrap(hu % 4096), hu)


@pytest.mark.parametrize(
    ("scale", "possible"),
    [
        (Scale(1, 0, 12, False), True),
        (Scale(1, -1, 12, False), True),
        (Scale(1, -1024, 12, False), False),
        (Scale(1, 0, 16, True), False),  # GE: signed, intercept 0, sound
        (Scale(1, 0, 12, True), False),
        (Scale(1, 0, 16, False), False),
    ],
)
def test_only_unsigned_12_bits_without_an_offset_can_have_wrapped(scale: Scale, possible: bool) -> None:
    assert may_have_wrapped(scale) is possible


def test_the_histogram_tells_wrapped_air_from_none(make_head: Callable[..., np.ndarray]) -> None:
    hu = make_head(3).astype(np.int32)
    assert has_wrapped(hu % 4096)
    assert not has_wrapped(np.maximum(hu, 0))
    assert not has_wrapped(hu + 1024)


def test_a_head_is_a_head(make_head: Callable[..., np.ndarray]) -> None:
    contents = [content.measure(image, (2.4, 2.4)) for image in make_head(5)]
    assert content.assess(contents) == ()
    assert contents[0].brain_mode_hu == pytest.approx(32, abs=3)
    assert contents[0].air_hu == pytest.approx(-1000, abs=5)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda hu: hu + 60, {Reason.R_NO_BRAIN}),
        (lambda hu: np.where(hu < -500, hu, hu + 25), {Reason.Q_HU_RANGE}),
        (lambda hu: np.where(hu < -500, hu + 250, hu), {Reason.Q_HU_RANGE}),
        (lambda hu: np.where(hu > 500, 40, hu), {Reason.R_NOT_HEAD}),
        (lambda hu: np.where(abs(hu) < 200, 120, hu), {Reason.R_NO_BRAIN}),
        (lambda hu: np.full_like(hu, -1000), {Reason.R_NOT_HEAD, Reason.R_NO_BRAIN}),
        (lambda hu: -hu, {Reason.R_NOT_HEAD, Reason.R_NO_BRAIN}),
    ],
)
def test_what_is_not_a_head_in_hounsfield_units_is_told_apart(
    make_head: Callable[..., np.ndarray], change: Callable[[np.ndarray], np.ndarray], reasons: set[Reason]
) -> None:
    contents = [content.measure(change(image).astype(np.int16), (2.4, 2.4)) for image in make_head(5)]
    assert set(content.assess(contents)) == reasons


def test_a_body_as_wide_as_a_chest_is_not_a_head(make_head: Callable[..., np.ndarray]) -> None:
    contents = [content.measure(image, (4.6, 4.6)) for image in make_head(5)]
    assert Reason.R_NOT_HEAD in content.assess(contents)
