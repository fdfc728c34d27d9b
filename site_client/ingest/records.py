"""Records that the catalog hands to training: studies that are ready, and their labels.

A record is free of patient data except for `files`, which never leave the trainer's machine.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType

import numpy as np
from numpy.typing import NDArray

StudyKey = NewType("StudyKey", str)  # base32(HMAC-SHA256(site secret, "study|" + StudyInstanceUID)[:16])
PatientKey = NewType("PatientKey", str)
SeriesKey = NewType("SeriesKey", str)
SliceKey = NewType("SliceKey", str)


@dataclass(frozen=True)
class SeriesRecord:
    """One stack of axial slices.

    `content_hash`: hex SHA-256 over the digests of the files in order; `series.volume.read_volume` refuses files with
    other bytes. `files`: T paths, caudal to cranial.
    """

    series_key: SeriesKey
    content_hash: str
    files: tuple[Path, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class StudyRecord:
    """One study with its chosen series. Labels are in the order of LABELS: 0, 1, or MISSING (-1).

    `slice_labels`: int8[T, 6], row t belongs to `series.files[t]`. `study_labels`: int8[6].
    """

    study_key: StudyKey
    patient_key: PatientKey
    series: SeriesRecord
    slice_labels: NDArray[np.int8]
    study_labels: NDArray[np.int8]


@dataclass(frozen=True)
class Dataset:
    """All studies that could be trained on at one moment, ordered by study_key.

    `hash`: hex SHA-256 over keys, content and labels of all studies. `Catalog.dataset(hash)` gives the same dataset
    again later in the round, also when studies arrived in between.
    """

    hash: str
    studies: tuple[StudyRecord, ...]
