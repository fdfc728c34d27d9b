"""Turns a folder of DICOM and label tables into training and validation studies, without a site.toml."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from federation.labels import LABELS
from numpy.typing import NDArray

from site_client.errors import EvaluationRefused, NothingUsable
from site_client.inference.phantom_sets import is_array_set, read_array_set
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import load_secret
from site_client.ingest.records import PatientKey, StudyKey, StudyRecord
from site_client.ingest.rules import Rules
from site_client.training.data import Split
from site_client.training.study_labels import study_labels


def read_folder(data: Path, state: Path) -> tuple[StudyRecord, ...]:
    """Read a folder of DICOM with label tables at its top in any layout of `hemofed-site catalog`, or a phantom set.

    Args:
        data: The folder.
        state: Keeps the catalogs. They share one secret, so that a patient has the same key in every folder.

    Returns:
        The usable studies that have labels.

    Raises:
        NothingUsable: There is no such study.
        LabelsRefused: A label table that was read before cannot be read now.
    """
    if is_array_set(data):
        return read_array_set(data)
    state.mkdir(parents=True, exist_ok=True)
    secret = load_secret(state / "pseudonym.key", os.urandom)
    name = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:12]
    # settle_s=0: the folder is complete, so no series waits for more files.
    with closing(Catalog.open(state / f"catalog-{name}.sqlite", secret, Rules(settle_s=0))) as catalog:
        report = catalog.scan(data)
        if report.labels.held is not None:
            # The command means the labels that the folder holds now, not those of an earlier call.
            catalog.confirm_labels(data, (), report.labels.held.stamp)
        studies = catalog.dataset().studies
    if not studies:
        raise NothingUsable(
            f"expected a folder with head CT studies and a table of their labels, got {report.studies_ready} usable "
            f"studies, {report.labels.studies_labelled} with labels; `hemofed-site catalog` says why"
        )
    return studies


def by_content(studies: Sequence[StudyRecord]) -> list[StudyRecord]:
    """Name studies and patients by their images' content, and sort by it.

    The folder's secret no longer matters then: one folder and one seed give the same split, order and augmentation on
    every machine. Patients of several folders need keys under one secret.
    """
    firsts: dict[PatientKey, str] = {}
    ordered = sorted(studies, key=lambda study: study.series.content_hash)
    for study in ordered:
        firsts.setdefault(study.patient_key, study.series.content_hash)
    # 26 characters, as base32 of 128 bits has: keys look as those under a secret do.
    return [
        replace(
            study,
            study_key=StudyKey(study.series.content_hash[:26]),
            patient_key=PatientKey(firsts[study.patient_key][:26]),
        )
        for study in ordered
    ]


def is_synthetic(data: Path) -> bool:
    """Tell whether the folder's manifest says that its patients are phantoms."""
    manifest = data / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        return "Synthetic" in json.loads(manifest.read_text()).get("notice", "")
    except (ValueError, AttributeError):
        return False


def at_most(studies: Sequence[StudyRecord], slices: int, seed: int) -> list[StudyRecord]:
    """Draw whole patients at random until they have this many slices, or until all patients are drawn."""
    lengths: Counter[PatientKey] = Counter()
    for study in studies:
        lengths[study.patient_key] += len(study.series.files)
    # Sorted, and with a stream of its own (1; the others here have 2 and 3): no other draw moves this one.
    patients = sorted(lengths)
    drawn: set[PatientKey] = set()
    count = 0
    for index in np.random.default_rng([seed, 1]).permutation(len(patients)):
        if count >= slices:
            break
        drawn.add(patients[index])
        count += lengths[patients[index]]
    return [study for study in studies if study.patient_key in drawn]


def split_stratified(studies: Sequence[StudyRecord], validation_fraction: float, seed: int) -> Split:
    """Hold out a share of the patients, stratified by each patient's rarest finding.

    Args:
        studies: Labelled ones.
        validation_fraction: Share of patients held out, 0 to 1.
        seed: Of the draw.

    Raises:
        EvaluationRefused: A side would be empty.
    """
    ordered = _stratified_order(studies, seed)
    # Systematic sampling over the strata: every 1/fraction-th patient of the ordered list, from a random start.
    start = np.random.default_rng([seed, 3]).random()
    steps = np.floor(np.arange(len(ordered) + 1) * validation_fraction + start)
    return _split(studies, {patient for patient, step in zip(ordered, np.diff(steps), strict=True) if step})


def positives(studies: Sequence[StudyRecord]) -> dict[str, int]:
    """Count the positive studies of each label, by label name."""
    rows = np.stack([study_labels(study) for study in studies])
    return {name: int((rows[:, index] == 1).sum()) for index, name in enumerate(LABELS)}


def fold_of(studies: Sequence[StudyRecord], folds: int, fold: int, seed: int) -> Split:
    """Split patients into folds, stratified by each patient's rarest finding, and hold out one of them.

    Args:
        studies: Labelled ones.
        folds: 2 or more.
        fold: The one held out, from 0. Over all folds every patient is held out once.
        seed: Of the draw.

    Raises:
        EvaluationRefused: A side would be empty.
    """
    ordered = _stratified_order(studies, seed)
    held_out = set(ordered[fold::folds])
    return _split(studies, held_out)


def limit_patients(studies: Sequence[StudyRecord], patients: int, seed: int) -> tuple[StudyRecord, ...]:
    """Take the studies of so many patients, stratified; a smaller number takes a subset of a larger one's patients."""
    ordered = _stratified_order(studies, seed)
    # A low-discrepancy order, the multiples of the golden ratio modulo 1: each prefix takes about the same share of
    # every stratum.
    spread = sorted(range(len(ordered)), key=lambda index: index * 0.6180339887498949 % 1)
    taken = {ordered[index] for index in spread[:patients]}
    return tuple(study for study in studies if study.patient_key in taken)


def _stratified_order(studies: Sequence[StudyRecord], seed: int) -> list[PatientKey]:
    """All patients, shuffled, then sorted by their rarest finding."""
    labels: dict[PatientKey, list[NDArray[np.int8]]] = {}
    for study in studies:
        labels.setdefault(study.patient_key, []).append(study_labels(study))
    findings = {patient: (np.stack(rows) == 1).any(axis=0) for patient, rows in labels.items()}
    counts = np.sum(list(findings.values()), axis=0)
    stratum = {
        patient: min((int(counts[label]), label) for label in np.flatnonzero(own)) if own.any() else (0, -1)
        for patient, own in findings.items()
    }
    patients = sorted(labels)
    shuffled = [patients[index] for index in np.random.default_rng([seed, 2]).permutation(len(patients))]
    return sorted(shuffled, key=lambda patient: stratum[patient])


def _split(studies: Sequence[StudyRecord], held_out: Set[PatientKey]) -> Split:
    split = Split(
        tuple(study for study in studies if study.patient_key not in held_out),
        tuple(study for study in studies if study.patient_key in held_out),
    )
    if not split.training or not split.validation:
        raise EvaluationRefused(
            f"expected patients for training and for validation, got {len(split.training)} and "
            f"{len(split.validation)} studies; give more studies"
        )
    return split
