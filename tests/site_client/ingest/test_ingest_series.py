"""Stacks: split by what cannot be one block, ordered along the normal, checked, scored."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.wording import kernel_class
from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.records import PatientKey, SeriesKey, SliceKey, StudyKey
from site_client.ingest.rules import Rules
from site_client.ingest.series.gaps import gaps
from site_client.ingest.series.stacks import Image, along_normal, split

TILTED = (1.0, 0.0, 0.0, 0.0, 0.9483, -0.3173)


def header(index: int, z: float, **changes: Any) -> DicomHeader:
    plain = DicomHeader(
        study_key=StudyKey("S"), patient_key=PatientKey("P"), series_key=SeriesKey("E"),
        slice_key=SliceKey(f"I{index:03}"), frame_key="F", kernel_key="K", kernel="soft", origin="original",
        acquisition=1, instance=index + 1, rows=512, columns=512, spacing_mm=(0.45, 0.45),
        position=(-115.0, -115.0, z), orientation=(1.0, 0, 0, 0, 1.0, 0), thickness_mm=5.0, expected=0, native=True,
        reasons=(), warnings=(),
    )  # fmt: skip
    return replace(plain, **changes)


def stack_of(heights: list[float], **changes: Any) -> list[Image]:
    return [Image(index, header(index, z, **changes)) for index, z in enumerate(heights)]


UPRIGHT = [5.0 * index for index in range(30)]


@given(st.permutations(range(30)))
def test_the_order_of_the_files_and_their_numbers_mean_nothing(order: list[int]) -> None:
    images = stack_of(UPRIGHT)
    shuffled = [replace(images[i], header=replace(images[i].header, instance=order[i])) for i in order]
    (stack,) = split(shuffled, Rules())
    assert [image.file for image in stack.images] == list(range(30))
    assert stack.reasons == ()


@given(
    heights=st.lists(st.integers(-400, 400), min_size=1, max_size=40),
    kernels=st.lists(st.sampled_from("AB"), min_size=40, max_size=40),
    seed=st.integers(0, 9),
)
def test_every_image_ends_in_exactly_one_stack_whatever_the_order(
    heights: list[int], kernels: list[str], seed: int
) -> None:
    images = [Image(i, header(i, float(z), kernel_key=kernels[i])) for i, z in enumerate(heights)]
    stacks = split(images, Rules())
    placed = [image.file for stack in stacks for image in stack.images] + [f for s in stacks for f in s.repeats]
    assert sorted(placed) == list(range(len(images)))
    assert all(np.all(np.diff(stack.positions_mm) > 0) for stack in stacks)
    again = random.Random(seed).sample(images, len(images))
    assert split(again, Rules()) == stacks


@pytest.mark.parametrize("flip", [False, True])
def test_positions_rise_cranially_for_either_direction_of_the_columns(flip: bool) -> None:
    orientation = (1.0, 0, 0, 0, -1.0 if flip else 1.0, 0)
    assert along_normal(orientation, [(0, 0, -10.0), (0, 0, 20.0)]).tolist() == [-10.0, 20.0]


def test_under_tilt_distances_are_along_the_normal_and_not_along_z() -> None:
    steps = np.diff(along_normal(TILTED, [(0, 0, 0), (0, 0, 4.218)]))
    assert steps == pytest.approx([4.0], abs=0.001)


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_key": "other"},
        {"rows": 256},
        {"spacing_mm": (0.5, 0.5)},
        {"orientation": TILTED},
        {"frame_key": "other"},
        {"reasons": (Reason.R_LOCALIZER,)},
    ],
)
def test_what_cannot_be_one_block_is_split(changes: dict[str, Any]) -> None:
    images = stack_of(UPRIGHT)
    mixed = [replace(i, header=replace(i.header, **changes)) if i.file % 2 else i for i in images]
    assert sorted(len(stack.images) for stack in split(mixed, Rules())) == [15, 15]


def test_acquisition_numbers_split_nothing_but_the_higher_one_wins_a_repeated_position() -> None:
    images = [*stack_of(UPRIGHT), Image(30, header(30, 25.0, acquisition=2))]
    images[7] = replace(images[7], header=replace(images[7].header, acquisition=9))
    (stack,) = split(images, Rules())
    assert [image.file for image in stack.images][5] == 30
    assert stack.repeats == (5,)


def test_a_lossy_copy_loses_to_its_original_and_refuses_nothing() -> None:
    images = [*stack_of(UPRIGHT), Image(30, header(30, 25.0, acquisition=2, reasons=(Reason.R_LOSSY,)))]
    (stack,) = split(images, Rules())
    assert (stack.repeats, stack.reasons) == ((30,), ())


def test_a_series_over_time_is_named() -> None:
    images = [Image(i, header(i, 5.0 * (i % 24))) for i in range(96)]
    assert split(images, Rules())[0].reasons == (Reason.R_PERFUSION,)


@pytest.mark.parametrize(
    ("steps", "thickness", "missing_after"),
    [
        ([5, 5, 10, 5, 5], 5, [2]),
        ([5, 5, 5, 5], 5, []),
        ([10, 10, 10, 10], 5, []),  # slices apart throughout: so it was taken
        ([4, 4, 4, 1.08, 7, 7, 7], [4, 4, 4, 4, 7, 7, 7, 7], []),  # thin block, overlap, thick block
        ([2.5, 2.5, 5, 5, 5], [2.5, 2.5, 2.5, 5, 5, 5], []),
        ([5, 15, 5, 5, 10, 5], 5, [1, 4]),
        ([5, 5], 5, []),
    ],
)
def test_a_gap_is_a_missing_slice_and_not_a_change_of_spacing(
    steps: list[float], thickness: float | list[float], missing_after: list[int]
) -> None:
    positions = np.concatenate([[0.0], np.cumsum(steps)])
    slabs = np.broadcast_to(np.array(thickness, dtype=float), positions.shape)
    assert gaps(positions, slabs).tolist() == missing_after


@pytest.mark.parametrize(
    ("heights", "changes", "reasons"),
    [
        (UPRIGHT, {}, set()),
        (UPRIGHT[:11], {}, {Reason.R_TOO_FEW, Reason.R_EXTENT}),
        ([2.0 * i for i in range(30)], {}, {Reason.R_EXTENT}),
        ([10.0 * i for i in range(30)], {"thickness_mm": 10.0}, {Reason.R_EXTENT}),
        (UPRIGHT, {"spacing_mm": (0.8, 0.8)}, {Reason.R_EXTENT}),
        (UPRIGHT, {"thickness_mm": 20.0}, {Reason.R_EXTENT}),
        (UPRIGHT[:10] + UPRIGHT[11:], {}, {Reason.Q_GAP}),
        (UPRIGHT, {"orientation": (0, 1.0, 0, 0, 0, -1.0)}, {Reason.R_NOT_AXIAL, Reason.R_EXTENT, Reason.R_TOO_FEW}),
        (UPRIGHT, {"orientation": (1.0, 0, 0, 1.0, 0, 0)}, {Reason.Q_GEOMETRY}),
        (UPRIGHT, {"reasons": (Reason.Q_TRUNCATED,)}, {Reason.Q_TRUNCATED}),
    ],
)
def test_each_criterion_has_its_reason(heights: list[float], changes: dict[str, Any], reasons: set[Reason]) -> None:
    stacks = split(stack_of(heights, **changes), Rules())
    assert len(stacks) == 1
    assert set(stacks[0].reasons) == reasons


def test_one_truncated_slice_condemns_its_series_and_splits_nothing() -> None:
    images = stack_of(UPRIGHT)
    images[3] = replace(images[3], header=replace(images[3].header, reasons=(Reason.Q_TRUNCATED,)))
    assert [stack.reasons for stack in split(images, Rules())] == [(Reason.Q_TRUNCATED,)]


def test_what_is_unusual_is_noticed_and_used() -> None:
    images = stack_of(UPRIGHT[:15]) + [
        Image(i, header(i + 1, 70.0 + (i - 14) * 8, thickness_mm=8.0)) for i in range(15, 25)
    ]
    (stack,) = split(images, Rules())
    assert stack.reasons == ()
    assert set(stack.warnings) == {Warn.W_VARIABLE_SPACING, Warn.W_MIXED_THICKNESS, Warn.W_INSTANCE_HOLE}


def test_soft_kernel_outweighs_thickness_and_thickness_outweighs_the_rest() -> None:
    def score(thickness_mm: float, **changes: object) -> int:
        return split(stack_of(UPRIGHT, thickness_mm=thickness_mm, **changes), Rules())[0].score

    assert score(1.0) > score(5.0, kernel="bone")
    assert score(5.0) > score(2.5) > score(1.0)
    assert score(5.0) > score(5.0, origin="derived") > score(5.0, origin="reformatted") > score(2.5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("STD+", "soft"), ("SOFT", "soft"), ("H31s", "soft"), ("HR40F", "soft"), ("UB", "soft"), ("FC21", "soft"),
        ("BONEPLUS", "bone"), ("H70H", "bone"), ("YA", "bone"), ("FC81", "bone"), ("", "unknown"), ("QX", "unknown"),
    ],
)  # fmt: skip
def test_kernels_are_sorted_by_the_vendors_habits(name: str, kind: str) -> None:
    assert kernel_class((name.upper(),) if name else ()) == kind
