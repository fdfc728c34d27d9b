"""Images of one series -> stacks: split, ordered, checked, scored. Pure functions.

A stack can be read as one block: it has one orientation, size, spacing, kernel, frame of reference and origin. A series
of a real archive often holds several (a localizer inside, two kernels, two tilts). Order and distance come from
position . normal only, never from a file's name or an instance number. The acquisition number changes within sound
series (step-and-shoot), so it splits nothing and only decides between repeats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from site_client.ingest.files.header import DicomHeader
from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.rules import Rules
from site_client.ingest.series.gaps import APART, gaps

SAME_POSITION_MM = 0.05
_TOLD = 5  # criteria of `_preference` by which one image of a position is better than another
_KERNEL_POINTS = {"soft": 4000, "unknown": 2000, "bone": 0}
_ORIGIN_POINTS = {"original": 60, "derived": 30, "reformatted": 0}


@dataclass(frozen=True)
class Image:
    """A header, and the number by which the caller knows the file."""

    file: int
    header: DicomHeader


@dataclass(frozen=True)
class Points:
    """One line of a score sheet."""

    criterion: str
    value: str
    points: int


@dataclass(frozen=True)
class Stack:
    """Images ordered caudal to cranial. `repeats`: files that show a position again and lost to another file.

    `positions_mm`: of each image along the normal, ascending. `ties`: an image and a repeat of it between which no
    header decides; they have to be one picture.
    """

    images: tuple[Image, ...]
    repeats: tuple[int, ...]
    positions_mm: tuple[float, ...]
    reasons: tuple[Reason, ...]
    warnings: tuple[Warn, ...]
    sheet: tuple[Points, ...]
    ties: tuple[tuple[Image, Image], ...] = ()

    @property
    def started_s(self) -> float | None:
        """Seconds from the study's begin to the first image; None when no image states a time."""
        times = [image.header.since_study_s for image in self.images]
        return min((time for time in times if time is not None), default=None)

    @property
    def score(self) -> int:
        """Sum of the score sheet."""
        return sum(line.points for line in self.sheet)


def split(images: Sequence[Image], rules: Rules) -> list[Stack]:
    """Splits a series into stacks.

    Args:
        images: Of one series, each SOP instance once, in any order.
        rules: The thresholds.

    Returns:
        Stacks in which every image is once, as a slice or as a repeat. The order of `images` does not matter.
    """
    images = _contrast_of_series(images)
    groups: list[list[Image]] = []
    # By key, because the first image of a group decides who belongs to it.
    for image in sorted(images, key=lambda image: image.header.slice_key):
        group = next((group for group in groups if _belongs(image.header, group[0].header)), None)
        if group is None:
            groups.append([image])
        else:
            group.append(image)
    stacks = [_stack(group, images, rules) for group in groups]
    return [
        replace(stack, reasons=_sorted({*stack.reasons, Reason.Q_SPLIT})) if _goes_on(stack, stacks) else stack
        for stack in stacks
    ]


def _goes_on(stack: Stack, stacks: Sequence[Stack]) -> bool:
    """Tells whether other stacks of the series hold slices of the head that this one lacks.

    Two reconstructions of one block overlap, and neither lacks a slice. A stack that another one goes on from is a part
    of a head, and so is one whose every second slice lies in the other.
    """
    if len(stack.positions_mm) < 2 or _is_refused(stack):
        return False
    own, head = np.array(stack.positions_mm), stack.images[0].header
    steps = np.diff(own)
    usual, extent = float(np.median(steps)), float(own[-1] - own[0])
    slab = _slab(stack.positions_mm, np.array([image.header.thickness_mm for image in stack.images]))
    for other in stacks:
        if other is stack or not other.positions_mm or _is_refused(other):
            continue
        places = np.sort(along_normal(head.orientation, [image.header.position for image in other.images]))
        overlap = min(own[-1], places[-1]) - max(own[0], places[0])
        outside = (places < own[0] - usual / 2) | (places > own[-1] + usual / 2)
        # Far away is another part of the body, or another frame of reference.
        near = (places > own[0] - extent) & (places < own[-1] + extent)
        if overlap < extent / 2 and (outside & near).any():
            return True
        holes = np.flatnonzero(steps > APART * slab)
        if any(((places > own[i] + SAME_POSITION_MM) & (places < own[i + 1] - SAME_POSITION_MM)).any() for i in holes):
            return True
    return False


def _is_refused(stack: Stack) -> bool:
    """Tells whether a header refuses the images: a localizer is no part of a head."""
    return any(reason.name.startswith("R_") for image in stack.images for reason in image.header.reasons)


def _contrast_of_series(images: Sequence[Image]) -> list[Image]:
    """Declares contrast for all images when one does: some scanners write it on a part of the images only."""
    if not any(Reason.R_CONTRAST in image.header.reasons for image in images):
        return list(images)
    return [
        replace(image, header=replace(head, reasons=_sorted({*head.reasons, Reason.R_CONTRAST})))
        for image in images
        for head in (image.header,)
    ]


def along_normal(orientation: Sequence[float], positions: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Computes distances along the slices' normal, which is turned to point cranially.

    Under a tilted gantry this is the distance between slices, and the difference in z is not. Source: DICOM PS3.3
    C.7.6.2.1.1, where +z points to the head.

    Args:
        orientation: Six direction cosines, (0020,0037) *Image Orientation (Patient)*.
        positions: T triples in mm, (0020,0032) *Image Position (Patient)*.

    Returns:
        f64[T] in mm.
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    if normal[2] < 0:
        normal = -normal
    return np.asarray(np.array(positions, dtype=np.float64).reshape(-1, 3) @ normal)


def _belongs(header: DicomHeader, first: DicomHeader) -> bool:
    return (
        (header.patient_key, header.study_key) == (first.patient_key, first.study_key)
        and _block(header) == _block(first)
        and _close(header.orientation, first.orientation, 0.01)
        and _close(header.spacing_mm, first.spacing_mm, 0.001)
    )


def _block(header: DicomHeader) -> tuple[object, ...]:
    """Gives the attributes that are equal in all images of a stack.

    Refusals (R_) are among them: a localizer inside a series must not condemn the other images. Lossy copies stay with
    their originals: as repeats they lose, whereas a stack of their own would compete.
    """
    refusals = tuple(r for r in header.reasons if r.name.startswith("R_") and r is not Reason.R_LOSSY)
    reformatted = header.origin == "reformatted"
    return header.rows, header.columns, header.kernel_key, header.frame_key, reformatted, refusals


def _close(values: Sequence[float], others: Sequence[float], tolerance: float) -> bool:
    return len(values) == len(others) and all(abs(a - b) <= tolerance for a, b in zip(values, others, strict=True))


def _stack(group: list[Image], series: Sequence[Image], rules: Rules) -> Stack:
    heads = [image.header for image in group]
    if not all(head.position and _is_frame(head.orientation) for head in heads):
        # Without a frame there is no order, and nothing can be measured. The files' own reasons say why.
        reasons = {reason for head in heads for reason in head.reasons} or {Reason.Q_GEOMETRY}
        return Stack(tuple(group), (), (), _sorted(reasons), (), ())
    offsets = along_normal(heads[0].orientation, [head.position for head in heads])
    order = np.argsort(offsets, kind="stable")
    places = _places([group[i] for i in order], offsets[order])
    images = [min(place, key=_preference) for _, place in places]
    positions = tuple(float(offset) for offset, _ in places)
    repeats = tuple(
        image.file for best, (_, place) in zip(images, places, strict=True) for image in place if image is not best
    )
    ties = tuple(
        (best, image)
        for best, (_, place) in zip(images, places, strict=True)
        for image in place
        if image is not best and _preference(image)[:_TOLD] == _preference(best)[:_TOLD]
    )
    reasons = {reason for image in images for reason in image.header.reasons} | _measured(images, positions, rules)
    reasons |= _missing(images, positions, series)
    # Most positions three times or more: a series over time, not one with a few repeats.
    if len(places) > 1 and np.median([len(place) for _, place in places]) >= 3:
        reasons.add(Reason.R_PERFUSION)
    return Stack(
        tuple(images),
        repeats,
        positions,
        _sorted(reasons),
        _warnings(images, positions),
        _sheet(images, positions, rules),
        ties,
    )


def _places(images: list[Image], offsets: NDArray[np.float64]) -> list[tuple[float, list[Image]]]:
    """Groups ordered images by position."""
    places: list[tuple[float, list[Image]]] = []
    for image, offset in zip(images, offsets, strict=True):
        if places and offset - places[-1][0] < SAME_POSITION_MM:
            places[-1][1].append(image)
        else:
            places.append((float(offset), [image]))
    return places


def _preference(image: Image) -> tuple[bool, int, bool, bool, float, int, str]:
    """Orders the images of one position, the best first."""
    head = image.header
    return (
        Reason.R_LOSSY in head.reasons or Warn.W_LOSSY in head.warnings,
        -head.acquisition,  # a scan is repeated because the first one was bad
        head.origin != "original",
        not head.native,
        math.inf if head.since_study_s is None else head.since_study_s,
        head.instance,  # from here on no image is the better one, see _TOLD
        head.slice_key,  # any order, but always the same one
    )


def _is_frame(orientation: Sequence[float]) -> bool:
    """Tells whether six direction cosines are two orthogonal unit vectors."""
    if len(orientation) != 6:
        return False
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    return bool(abs(row @ row - 1) < 0.02 and abs(column @ column - 1) < 0.02 and abs(row @ column) < 0.02)


def _measured(images: list[Image], positions: tuple[float, ...], rules: Rules) -> set[Reason]:
    head = images[0].header
    thickness = np.array([image.header.thickness_mm for image in images])
    reasons: set[Reason] = set()
    normal = np.cross(head.orientation[:3], head.orientation[3:])
    if abs(normal[2]) < np.cos(np.radians(rules.tilt_max_degrees)):
        reasons.add(Reason.R_NOT_AXIAL)
    if rules.check_coverage:
        if len(images) < rules.slices_min:
            reasons.add(Reason.R_TOO_FEW)
        extent = positions[-1] - positions[0]
        slab = _slab(positions, thickness)
        field = [size * mm for size, mm in zip((head.rows, head.columns), head.spacing_mm, strict=False)]
        fits = rules.coverage_min_mm <= extent <= rules.coverage_max_mm
        fits = fits and rules.thickness_min_mm <= slab <= rules.thickness_max_mm
        if not (fits and all(rules.field_min_mm <= mm <= rules.field_max_mm for mm in field)):
            reasons.add(Reason.R_EXTENT)
    return reasons


def _missing(images: list[Image], positions: tuple[float, ...], series: Sequence[Image]) -> set[Reason]:
    """Finds whether slices are missing. `series`: all images of the series, of which other stacks hold some."""
    thickness = np.array([image.header.thickness_mm for image in images])
    numbers = np.array([image.header.instance for image in images], dtype=np.int64)
    reasons: set[Reason] = set()
    if gaps(np.array(positions), thickness, numbers, {image.header.instance for image in series}).size:
        reasons.add(Reason.Q_GAP)
    # The stated number counts the images of all stacks. Of a stack that is refused anyway it says nothing of interest.
    refused = any(reason.name.startswith("R_") for image in images for reason in image.header.reasons)
    # Files are counted, of which one may hold many images; all frames of a file are in its series.
    files = round(sum(1 / image.header.frames for image in series))
    if not refused and max(image.header.expected for image in series) > files:
        reasons.add(Reason.Q_INCOMPLETE)
    return reasons


def _slab(positions: tuple[float, ...], thickness: NDArray[np.float64]) -> float:
    """Computes the typical thickness in mm, from the distances when no file states it (RSNA)."""
    stated = thickness[thickness > 0]
    steps = np.diff(positions)
    return float(np.median(stated)) if stated.size else float(np.median(steps)) if steps.size else 0.0


def _warnings(images: list[Image], positions: tuple[float, ...]) -> tuple[Warn, ...]:
    thickness = np.array([image.header.thickness_mm for image in images])
    steps = np.diff(positions)
    numbers = sorted(image.header.instance for image in images)
    conditions = {
        Warn.W_VARIABLE_SPACING: steps.size > 1 and float(np.ptp(steps)) > 0.1 * float(np.median(steps)),
        Warn.W_MIXED_THICKNESS: float(np.ptp(thickness)) > 0.1,
        Warn.W_NO_THICKNESS: bool((thickness <= 0).any()),
        Warn.W_OVERLAP: bool((steps < 0.9 * np.minimum(thickness[:-1], thickness[1:])).any()),
        Warn.W_INSTANCE_HOLE: numbers[0] > 0 and numbers[-1] - numbers[0] + 1 > len(numbers),
    }
    warnings = {warning for image in images for warning in image.header.warnings}
    warnings |= {warning for warning, holds in conditions.items() if holds}
    return tuple(sorted(warnings, key=lambda warning: warning.name))


def _sheet(images: list[Image], positions: tuple[float, ...], rules: Rules) -> tuple[Points, ...]:
    """Scores a stack. A soft kernel outweighs thickness near the preferred one, then origin, then completeness."""
    heads = [image.header for image in images]
    slab = _slab(positions, np.array([head.thickness_mm for head in heads]))
    started_s = min((head.since_study_s for head in heads if head.since_study_s is not None), default=None)
    off_mm = min(9.0, abs(slab - rules.preferred_thickness_mm))
    origin = "original" if all(head.origin == "original" for head in heads) else heads[0].origin
    # A class of kernel outweighs all other lines; a millimeter of thickness outweighs origin and slices together.
    return (
        Points("kernel", heads[0].kernel, _KERNEL_POINTS[heads[0].kernel]),
        Points("thickness_mm", f"{slab:.2f}", 1000 - round(100 * off_mm)),
        Points("origin", origin, _ORIGIN_POINTS[origin]),
        Points("slices", str(len(images)), min(len(images), 50) // 2),
        # No points: of two equal stacks the earlier is chosen, because a native series comes before one with contrast.
        Points("contrast", " and ".join(sorted({head.contrast for head in heads})), 0),
        Points("since_study_s", "not stated" if started_s is None else f"{started_s:.0f}", 0),
        Points("series_number", str(heads[0].series_number), 0),
    )


def _sorted(reasons: set[Reason]) -> tuple[Reason, ...]:
    return tuple(sorted(reasons, key=lambda reason: reason.name))
