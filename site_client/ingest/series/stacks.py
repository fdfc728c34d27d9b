"""Images of one series -> stacks: split, ordered, checked, scored. Pure; MODEL.md section 1, steps 4 and 5.

A "stack" is what can be read as one block: one orientation, size, spacing, kernel, frame of reference and origin. A
series of a real archive often holds several (a scout inside, two kernels, two tilts). Order and distance come from
position . normal only, never from a name or an instance number; AcquisitionNumber changes within sound series
(step-and-shoot), so it decides between repeats and splits nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from site_client.ingest.files.header import DicomHeader
from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.rules import Rules

SAME_POSITION_MM = 0.05


@dataclass(frozen=True)
class Image:
    """A header and the number by which its caller knows the file."""

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
    """Ordered caudal to cranial. `repeats`: files that showed a position again and lost to another one."""

    images: tuple[Image, ...]
    repeats: tuple[int, ...]
    positions_mm: tuple[float, ...]
    reasons: tuple[Reason, ...]
    warnings: tuple[Warn, ...]
    sheet: tuple[Points, ...]

    @property
    def score(self) -> int:
        """Sum of the sheet."""
        return sum(line.points for line in self.sheet)


def split(images: Sequence[Image], rules: Rules) -> list[Stack]:
    """Every image lands in exactly one stack, as a slice or as a repeat, whatever the order they come in."""
    groups: list[list[Image]] = []
    for image in sorted(images, key=lambda image: image.header.slice_key):
        home = next((group for group in groups if _belongs(image.header, group[0].header)), None)
        if home is None:
            groups.append([image])
        else:
            home.append(image)
    return [_stack(group, rules) for group in groups]


def along_normal(orientation: Sequence[float], positions: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Distances f64[T] along the slices' normal, which is turned to point cranially (+z in DICOM's patient system)."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    if normal[2] < 0:
        normal = -normal
    return np.asarray(np.array(positions, dtype=np.float64).reshape(-1, 3) @ normal)


def _belongs(one: DicomHeader, other: DicomHeader) -> bool:
    return (
        (one.rows, one.columns, one.kernel_key, one.frame_key, one.origin == "reformatted", _lasting(one))
        == (
            other.rows,
            other.columns,
            other.kernel_key,
            other.frame_key,
            other.origin == "reformatted",
            _lasting(other),
        )
        and _close(one.orientation, other.orientation, 0.01)
        and _close(one.spacing_mm, other.spacing_mm, 0.001)
    )


def _lasting(header: DicomHeader) -> tuple[Reason, ...]:
    # Lossy copies stay with their originals: as repeats they lose, whereas a stack of their own would compete.
    return tuple(r for r in header.reasons if r.name.startswith("R_") and r is not Reason.R_LOSSY)


def _close(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return len(one) == len(other) and all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def _stack(group: list[Image], rules: Rules) -> Stack:
    heads = [image.header for image in group]
    if not all(head.position and _is_frame(head.orientation) for head in heads):
        # Without a frame there is no order and nothing to measure; the files' own reasons say why.
        reasons = {r for head in heads for r in head.reasons} or {Reason.Q_GEOMETRY}
        return Stack(tuple(group), (), (), _sorted(reasons), (), ())
    offsets = along_normal(heads[0].orientation, [head.position for head in heads])
    order = np.argsort(offsets, kind="stable")
    places = _places([group[i] for i in order], offsets[order])
    chosen = [min(place, key=_preference) for _, place in places]
    positions = tuple(float(offset) for offset, _ in places)
    repeats = tuple(i.file for _, place in places for i in place if i is not min(place, key=_preference))
    reasons = {r for image in chosen for r in image.header.reasons} | _measured(chosen, positions, rules)
    if len(places) > 1 and np.median([len(place) for _, place in places]) >= 3:
        reasons.add(Reason.R_PERFUSION)
    return Stack(
        tuple(chosen),
        repeats,
        positions,
        _sorted(reasons),
        _warnings(chosen, positions),
        _sheet(chosen, positions, rules),
    )


def _places(images: list[Image], offsets: NDArray[np.float64]) -> list[tuple[float, list[Image]]]:
    places: list[tuple[float, list[Image]]] = []
    for image, offset in zip(images, offsets, strict=True):
        if places and offset - places[-1][0] < SAME_POSITION_MM:
            places[-1][1].append(image)
        else:
            places.append((float(offset), [image]))
    return places


def _preference(image: Image) -> tuple[bool, int, bool, bool, str]:
    head = image.header
    return (
        Reason.R_LOSSY in head.reasons or Warn.W_LOSSY in head.warnings,
        -head.acquisition,
        head.origin != "original",
        not head.native,
        head.slice_key,
    )


def _is_frame(orientation: Sequence[float]) -> bool:
    if len(orientation) != 6:
        return False
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    return bool(abs(row @ row - 1) < 0.02 and abs(column @ column - 1) < 0.02 and abs(row @ column) < 0.02)


def _measured(images: list[Image], positions: tuple[float, ...], rules: Rules) -> set[Reason]:
    head = images[0].header
    thickness = np.array([image.header.thickness_mm for image in images])
    found: set[Reason] = set()
    normal = np.cross(head.orientation[:3], head.orientation[3:])
    if abs(normal[2]) < np.cos(np.radians(rules.tilt_max_degrees)):
        found.add(Reason.R_NOT_AXIAL)
    if gaps(np.array(positions), thickness).size:
        found.add(Reason.Q_GAP)
    if head.expected > len(images) and Reason.Q_GAP in found:
        found.add(Reason.Q_INCOMPLETE)
    if rules.check_coverage:
        found |= _coverage(images, positions, _slab(positions, thickness), rules)
    return found


def _coverage(images: list[Image], positions: tuple[float, ...], slab: float, rules: Rules) -> set[Reason]:
    head = images[0].header
    found: set[Reason] = set()
    if len(images) < rules.slices_min:
        found.add(Reason.R_TOO_FEW)
    extent = positions[-1] - positions[0]
    field = [size * mm for size, mm in zip((head.rows, head.columns), head.spacing_mm, strict=False)]
    fits = rules.coverage_min_mm <= extent <= rules.coverage_max_mm
    fits = fits and rules.thickness_min_mm <= slab <= rules.thickness_max_mm
    if not (fits and all(rules.field_min_mm <= mm <= rules.field_max_mm for mm in field)):
        found.add(Reason.R_EXTENT)
    return found


def gaps(positions_mm: NDArray[np.float64], thickness_mm: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices i where a slice is missing between i and i+1.

    A step is a gap when it is longer than both neighbouring steps by 40 % and than the slices themselves by 20 %. So a
    change from thin to thick blocks, a lasting distance between thin slices, and an overlap are none.
    """
    steps = np.diff(positions_mm)
    if steps.size < 3:
        return np.zeros(0, dtype=np.intp)
    padded = np.concatenate([[0.0], steps, [0.0]])
    around = np.maximum(padded[:-2], padded[2:])
    slabs = np.maximum(thickness_mm[:-1], thickness_mm[1:])
    return np.flatnonzero((steps > 1.4 * around) & (steps > 1.2 * slabs))


def _slab(positions: tuple[float, ...], thickness: NDArray[np.float64]) -> float:
    """Typical thickness, from the distances when it is not stated (RSNA)."""
    stated = thickness[thickness > 0]
    steps = np.diff(positions)
    return float(np.median(stated)) if stated.size else float(np.median(steps)) if steps.size else 0.0


def _warnings(images: list[Image], positions: tuple[float, ...]) -> tuple[Warn, ...]:
    thickness = np.array([image.header.thickness_mm for image in images])
    steps = np.diff(positions)
    numbers = sorted(image.header.instance for image in images)
    found = {warning for image in images for warning in image.header.warnings}
    conditions = {
        Warn.W_VARIABLE_SPACING: steps.size > 1 and float(np.ptp(steps)) > 0.1 * float(np.median(steps)),
        Warn.W_MIXED_THICKNESS: float(np.ptp(thickness)) > 0.1,
        Warn.W_NO_THICKNESS: bool((thickness <= 0).any()),
        Warn.W_OVERLAP: bool((steps < 0.9 * np.minimum(thickness[:-1], thickness[1:])).any()),
        Warn.W_INSTANCE_HOLE: numbers[0] > 0 and numbers[-1] - numbers[0] + 1 > len(numbers),
    }
    found |= {warning for warning, holds in conditions.items() if holds}
    return tuple(sorted(found, key=lambda warning: warning.name))


def _sheet(images: list[Image], positions: tuple[float, ...], rules: Rules) -> tuple[Points, ...]:
    """Soft kernel over thickness near the preferred one over original over completeness, in this order of weight."""
    heads = [image.header for image in images]
    slab = _slab(positions, np.array([head.thickness_mm for head in heads]))
    off = min(9.0, abs(slab - rules.preferred_thickness_mm))
    origin = "original" if all(head.origin == "original" for head in heads) else heads[0].origin
    return (
        Points("kernel", heads[0].kernel, {"soft": 4000, "unknown": 2000, "bone": 0}[heads[0].kernel]),
        Points("thickness_mm", f"{slab:.2f}", 1000 - round(100 * off)),
        Points("origin", origin, {"original": 60, "derived": 30, "reformatted": 0}[origin]),
        Points("slices", str(len(images)), min(len(images), 50) // 2),
    )


def _sorted(reasons: set[Reason]) -> tuple[Reason, ...]:
    return tuple(sorted(reasons, key=lambda reason: reason.name))
