"""Datasets: the labelled studies that a round trains on, assembled from the catalog's rows, kept and recalled."""

import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from federation.labels import LABELS
from numpy.typing import NDArray
from sqlalchemy import Select, delete, func, not_, select
from sqlalchemy.orm import Session, aliased

from site_client.errors import DatasetGone, IngestError
from site_client.ingest.catalog.opt_outs import has_opted_out
from site_client.ingest.catalog.tables import DatasetRow, FactRow, FileRow, LabelRow, SliceRow, StackRow
from site_client.ingest.files.addresses import parse_address
from site_client.ingest.labels.readings import CONFLICT, merge
from site_client.ingest.labels.spelling import UNKNOWN
from site_client.ingest.pseudonym import PathSeal, SiteSecret
from site_client.ingest.records import Dataset, PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord

DATASETS_KEPT = 8
NO_CELLS = bytes([UNKNOWN] * len(LABELS))


class LabelState(Enum):
    """Whether a study may be trained on, by its labels."""

    LABELLED = "labelled"
    UNLABELLED = "unlabelled"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class LabelledStack:
    """A chosen stack with its labels, each six cells in the order of LABELS: 0, 1, CONFLICT or UNKNOWN.

    `paths`: of its slices, encrypted, caudal to cranial. `study_cells`: derived by `imply_study`. `slice_cells`: one
    item a slice.
    """

    row: StackRow
    paths: tuple[bytes, ...]
    study_cells: bytes
    slice_cells: tuple[bytes, ...]

    @property
    def label_state(self) -> LabelState:
        """One conflict anywhere keeps the whole study out."""
        cells = self.study_cells + b"".join(self.slice_cells)
        if CONFLICT in cells:
            return LabelState.CONFLICT
        return LabelState.UNLABELLED if set(cells) == {UNKNOWN} else LabelState.LABELLED


def chosen_stacks(session: Session) -> Iterator[LabelledStack]:
    """Joins every chosen stack with its labels, ordered by study key. Patients who opted out are left out."""
    slices: dict[str, list[tuple[bytes, bytes]]] = defaultdict(list)
    query = (
        select(SliceRow.stack_key, SliceRow.path, LabelRow.cells)
        .join(StackRow, StackRow.stack_key == SliceRow.stack_key)
        .join(LabelRow, LabelRow.key == SliceRow.slice_key, isouter=True)
        .where(StackRow.chosen, not_(has_opted_out()))
        .order_by(SliceRow.stack_key, SliceRow.place)
    )
    # One query for all slices: a query a stack would take minutes on a large catalog.
    for stack_key, path, cells in session.execute(query):
        slices[stack_key].append((path, cells or NO_CELLS))
    by_study, by_accession = aliased(LabelRow), aliased(LabelRow)
    stacks = (
        select(StackRow, by_study.cells, by_accession.cells)
        .join(by_study, by_study.key == StackRow.study_key, isouter=True)
        .join(by_accession, by_accession.key == StackRow.accession_key, isouter=True)
        .where(StackRow.chosen, not_(has_opted_out()))
        .order_by(StackRow.study_key)
    )
    ambiguous = set(session.scalars(shared_accessions()))
    for row, stated, for_accession in session.execute(stacks):
        paths = tuple(path for path, _ in slices[row.stack_key])
        slice_cells = tuple(cells for _, cells in slices[row.stack_key])
        # A number of two studies says of neither which it means.
        clear = for_accession if row.accession_key not in ambiguous else None
        cells = merge(stated or NO_CELLS, clear or NO_CELLS)
        yield LabelledStack(row, paths, imply_study(cells, slice_cells), slice_cells)


def shared_accessions() -> Select[str]:
    """Selects the accession numbers that stand for more than one study of the export, usable or not."""
    several = func.count(func.distinct(StackRow.study_key)) > 1
    return (
        select(StackRow.accession_key)
        .where(StackRow.accession_key != "")
        .group_by(StackRow.accession_key)
        .having(several)
    )


def imply_study(stated: bytes, slices: Sequence[bytes]) -> bytes:
    """Completes the cells of a study by those of its slices.

    | stated | slices | cell |
    |---|---|---|
    | unknown | one is positive | 1 |
    | unknown | all are negative | 0 |
    | unknown | else | unknown |
    | negative | one is positive | CONFLICT |
    | else | | as stated; a positive study without a positive slice is no conflict |

    Args:
        stated: Six cells of the study, as the label files state them.
        slices: Six cells of each slice.

    Returns:
        Six cells.
    """
    cells = []
    for label, cell in enumerate(stated):
        on_slices = {row[label] for row in slices}
        if cell == UNKNOWN:
            cells.append(1 if 1 in on_slices else 0 if on_slices == {0} else UNKNOWN)
        else:
            cells.append(CONFLICT if cell == 0 and 1 in on_slices else cell)
    return bytes(cells)


def assemble(session: Session, secret: SiteSecret) -> Dataset:
    """Assembles the dataset of this moment: all chosen stacks that have a label and no conflict.

    Raises:
        IngestError: No export was scanned yet.
    """
    root, seal = _export(session, secret), secret.path_seal()
    studies = []
    # The hash covers all that training depends on: a checkpoint of other data is refused by it.
    digest = hashlib.sha256(b"hemofed dataset v1")
    for stack in chosen_stacks(session):
        # A study without any label would only cost time: it teaches nothing.
        if stack.label_state is not LabelState.LABELLED:
            continue
        study = _record(stack, root, seal, stack.study_cells, stack.slice_cells)
        head = f"|{study.study_key}|{study.patient_key}|{study.series.series_key}|{study.series.content_hash}|"
        digest.update(head.encode() + study.slice_labels.tobytes() + study.study_labels.tobytes())
        studies.append(study)
    return Dataset(digest.hexdigest(), tuple(studies))


def chosen_studies(session: Session, secret: SiteSecret) -> tuple[StudyRecord, ...]:
    """Lists all chosen stacks, ordered by study key, with every label MISSING: a model may predict them.

    Raises:
        IngestError: No export was scanned yet.
    """
    root, seal = _export(session, secret), secret.path_seal()
    return tuple(
        _record(stack, root, seal, NO_CELLS, [NO_CELLS] * len(stack.paths)) for stack in chosen_stacks(session)
    )


@dataclass(frozen=True)
class FileContents:
    """A file of the export, relative to it, with the patients and studies of its images. Both are empty for others."""

    file: Path
    patients: frozenset[str]
    studies: frozenset[str]


def contents(session: Session, secret: SiteSecret) -> tuple[FileContents, ...]:
    """Lists all files that the last scan met, ordered by path."""
    seal = secret.path_seal()
    held: dict[Path, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for path, patient, study in session.execute(select(FileRow.path, FileRow.patient_key, FileRow.study_key)):
        patients, studies = held[parse_address(seal.decrypt(path)).file]
        if study is not None:
            studies.add(study)
            patients.add(patient or study)  # without a patient ID a study is a patient of its own
    return tuple(FileContents(file, frozenset(held[file][0]), frozenset(held[file][1])) for file in sorted(held))


def keep(session: Session, dataset: Dataset, secret: SiteSecret, now_s: float) -> None:
    """Stores a dataset under its hash, and drops all but the newest DATASETS_KEPT."""
    seal = secret.path_seal()
    body = [
        {
            "study": study.study_key,
            "patient": study.patient_key,
            "series": study.series.series_key,
            "content": study.series.content_hash,
            "files": [seal.seal(str(path)).hex() for path in study.series.files],
            "slices": study.slice_labels.tolist(),
            "labels": study.study_labels.tolist(),
        }
        for study in dataset.studies
    ]
    session.merge(DatasetRow(hash=dataset.hash, made_s=now_s, body=zlib.compress(json.dumps(body).encode(), 1)))
    session.flush()
    # By hash as well: datasets of one moment need a fixed order.
    newest = select(DatasetRow.hash).order_by(DatasetRow.made_s.desc(), DatasetRow.hash).limit(DATASETS_KEPT)
    session.execute(delete(DatasetRow).where(DatasetRow.hash.not_in(newest)))


def recall(session: Session, pinned: str, secret: SiteSecret) -> Dataset:
    """Recalls the dataset with this hash as it was. Its files may have changed since; `read_volume` notices.

    Raises:
        DatasetGone: It is no longer kept.
    """
    # From the stored body, never assembled again: new labels or files must not change a running job.
    row = session.get(DatasetRow, pinned)
    if row is None:
        raise DatasetGone("the dataset of this round is no longer kept by the catalog; decline the round")
    seal = secret.path_seal()
    studies = tuple(_recalled(entry, seal) for entry in json.loads(zlib.decompress(row.body)))
    return Dataset(pinned, studies)


def _export(session: Session, secret: SiteSecret) -> Path:
    row = session.get(FactRow, "export")
    if row is None:
        raise IngestError("expected a catalog that has scanned an export, got an empty one; scan first")
    return Path(secret.path_seal().decrypt(row.value))


def _record(
    stack: LabelledStack, root: Path, seal: PathSeal, study_cells: bytes, slice_cells: Sequence[bytes]
) -> StudyRecord:
    files = tuple(root / seal.decrypt(path) for path in stack.paths)
    series = SeriesRecord(SeriesKey(stack.row.stack_key), stack.row.content_hash, files)
    return StudyRecord(
        StudyKey(stack.row.study_key),
        PatientKey(stack.row.patient_key),
        series,
        _array(slice_cells),
        _array([study_cells])[0],
    )


def _array(rows: Sequence[bytes]) -> NDArray[np.int8]:
    # As int8, UNKNOWN (255) is MISSING (-1).
    return np.frombuffer(b"".join(rows), dtype=np.int8).reshape(-1, len(LABELS)).copy()


def _recalled(entry: Mapping[str, Any], seal: PathSeal) -> StudyRecord:
    files = tuple(Path(seal.decrypt(bytes.fromhex(path))) for path in entry["files"])
    return StudyRecord(
        StudyKey(entry["study"]),
        PatientKey(entry["patient"]),
        SeriesRecord(SeriesKey(entry["series"]), entry["content"], files),
        np.array(entry["slices"], dtype=np.int8).reshape(-1, len(LABELS)),
        np.array(entry["labels"], dtype=np.int8),
    )
