"""The label files a site would have: RSNA-style rows by slice, rows by study, and the map from one to the other."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from federation.labels import LABELS

Labels = npt.NDArray[np.int8]

SLICE_BITS = 10


@dataclass(frozen=True)
class DeliveredStudy:
    """One study in the label files. Columns of labels are in the order of LABELS.

    `slice_labels`: int8[T, 6], or None where only the study was read. `study_labels`: int8[6], -1 for unknown.
    """

    index: int
    patient_id: str
    study_uid: str
    series_uid: str
    sop_uids: tuple[str, ...]
    slice_ids: tuple[str, ...]
    slice_labels: Labels | None
    study_labels: Labels


def noisy(random: np.random.Generator, truth: Labels, share: float) -> Labels:
    """Moves ends of lesions by a slice, as readers do.

    No study loses a subtype by it and none gains one: readers miss ends, not bleeds. `any` stays the OR of the others.

    Args:
        random: The study's label stream.
        truth: int8[T, 6], `any` last.
        share: Of positive slices that differ afterwards, about.

    Returns:
        int8[T, 6].
    """
    labels = truth[:, :-1].copy()
    for label in range(labels.shape[1]):
        column = labels[:, label]
        for start, stop in _runs(truth[:, label]):
            # Both ends move with half the chance, so that the expected share of changed slices is `share`.
            chance = min(0.9, 0.5 * share * (stop - start))
            for end, outward in ((start, -1), (stop - 1, 1)):
                pick = random.random()  # drawn for either end, whatever comes of it: later draws stay in place
                beyond = end + outward
                # A lesion of one or two slices keeps them: else the study would lose its subtype.
                if pick < chance / 2 and stop - start > 2:
                    column[end] = 0
                elif pick < chance and 0 <= beyond < len(column):
                    column[beyond] = 1
    return np.concatenate([labels, labels.max(axis=1, keepdims=True)], axis=1)


def _runs(column: Labels) -> list[tuple[int, int]]:
    # A zero at either end closes runs that touch it.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column, [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def slice_ids(seed: int, index: int, slices: int) -> tuple[str, ...]:
    """Names slices as RSNA does: `ID_` and nine hexadecimal digits.

    A bijection of 36 bits makes them, so that no two slices of a set collide.
    """
    return tuple(f"ID_{_mixed(seed, (index << SLICE_BITS) + k):09x}" for k in range(slices))


def _mixed(seed: int, value: int) -> int:
    bits = (1 << 36) - 1
    # Odd factors and xor-shifts are invertible modulo 2^36: three turns mix well, and no two values meet.
    for turn in range(3):
        value = (value * (0x5DEECE66D + 2 * (seed % 9973) + 2 * turn) + 0xB0A7 * (seed + turn + 1)) & bits
        value ^= value >> 17
    return value


def slice_rows(studies: Iterable[DeliveredStudy]) -> str:
    """Formats labels_slices.csv: six rows ID_<image>_<label>,<0|1> a slice, in the order of LABELS."""
    lines = ["ID,Label"]
    for study in studies:
        if study.slice_labels is not None:
            lines.extend(
                f"{name}_{label},{int(value)}"
                for name, row in zip(study.slice_ids, study.slice_labels, strict=True)
                for label, value in zip(LABELS, row, strict=True)
            )
    return "\n".join(lines) + "\n"


def map_rows(studies: Iterable[DeliveredStudy]) -> str:
    """Formats slice_map.csv: one row a slice, from its ID to its UIDs."""
    lines = ["ID,SOPInstanceUID,SeriesInstanceUID,StudyInstanceUID,PatientID"]
    for study in studies:
        lines.extend(
            f"{name},{sop},{study.series_uid},{study.study_uid},{study.patient_id}"
            for name, sop in zip(study.slice_ids, study.sop_uids, strict=True)
        )
    return "\n".join(lines) + "\n"


def study_rows(studies: Iterable[DeliveredStudy]) -> str:
    """Formats labels_studies.csv: one row a study, one column a label; an empty cell is unknown."""
    lines = ["StudyInstanceUID,PatientID," + ",".join(LABELS)]
    for study in studies:
        cells = ("" if value < 0 else str(int(value)) for value in study.study_labels)
        lines.append(f"{study.study_uid},{study.patient_id}," + ",".join(cells))
    return "\n".join(lines) + "\n"
