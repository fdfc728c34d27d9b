"""A folder of DICOM and label tables -> studies to train on and to judge, without a site.toml."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from federation.labels import LABELS

from site_client.errors import EvaluationRefused
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import load_secret
from site_client.ingest.records import PatientKey, StudyKey, StudyRecord
from site_client.ingest.rules import Rules
from site_client.training.data import Split, study_labels


def read_folder(data: Path, state: Path) -> tuple[StudyRecord, ...]:
    """The studies with labels, the tables being those at the folder's top (RSNA's or the phantom's layout, or any that
    `hemofed-site catalog` takes). Catalogs are kept in `state`, under one secret, so that a patient has the same key in
    every folder. Raises EvaluationRefused when there is no study.
    """
    state.mkdir(parents=True, exist_ok=True)
    secret = load_secret(state / "pseudonym.key", os.urandom)
    name = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:12]
    # The folder is complete: nothing in it is still arriving.
    with closing(Catalog.open(state / f"catalog-{name}.sqlite", secret, Rules(settle_s=0))) as catalog:
        report = catalog.scan(data)
        studies = catalog.dataset().studies
    if not studies:
        raise EvaluationRefused(
            f"expected a folder with head CT studies and a table of their labels, got {report.studies_ready} usable "
            f"studies, {report.labels.studies_labelled} with labels; `hemofed-site catalog` says why"
        )
    return studies


def by_content(studies: Sequence[StudyRecord]) -> list[StudyRecord]:
    """Study and patient named by what their images hold instead of a pseudonym, and ordered by it: the same folder and
    seed give the same split, order and augmentation on every machine. Only for the studies of one folder.
    """
    firsts: dict[PatientKey, str] = {}
    ordered = sorted(studies, key=lambda study: study.series.content_hash)
    for study in ordered:
        firsts.setdefault(study.patient_key, study.series.content_hash)
    return [
        replace(
            study,
            study_key=StudyKey(study.series.content_hash[:26]),
            patient_key=PatientKey(firsts[study.patient_key][:26]),
        )
        for study in ordered
    ]


def is_synthetic(data: Path) -> bool:
    """Whether the folder's own manifest says that its patients were made by the phantom."""
    manifest = data / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        return "Synthetic" in json.loads(manifest.read_text()).get("notice", "")
    except (ValueError, AttributeError):
        return False


def at_most(studies: Sequence[StudyRecord], slices: int, seed: int) -> list[StudyRecord]:
    """Whole patients, drawn at random, until there are this many slices or no more patients."""
    lengths: Counter[PatientKey] = Counter()
    for study in studies:
        lengths[study.patient_key] += len(study.series.files)
    patients = sorted(lengths)
    taken: set[PatientKey] = set()
    count = 0
    for place in np.random.default_rng([seed, 1]).permutation(len(patients)):
        if count >= slices:
            break
        taken.add(patients[place])
        count += lengths[patients[place]]
    return [study for study in studies if study.patient_key in taken]


def split_stratified(studies: Sequence[StudyRecord], validation_fraction: float, seed: int) -> Split:
    """Patients, never studies, are held out: the same share of those with each rarest finding and of those with none.

    Raises EvaluationRefused when a side would be empty.
    """
    labels: dict[PatientKey, list[np.ndarray[tuple[int], np.dtype[np.int8]]]] = {}
    for study in studies:
        labels.setdefault(study.patient_key, []).append(study_labels(study))
    findings = {patient: (np.stack(rows) == 1).any(axis=0) for patient, rows in labels.items()}
    counts = np.sum(list(findings.values()), axis=0)
    stratum = {
        patient: min((int(counts[label]), label) for label in np.flatnonzero(found)) if found.any() else (0, -1)
        for patient, found in findings.items()
    }
    rng = np.random.default_rng([seed, 2])
    patients = sorted(labels)
    shuffled = [patients[place] for place in rng.permutation(len(patients))]
    ordered = sorted(shuffled, key=lambda patient: stratum[patient])
    # Every 1/fraction-th of the ordered patients, from a random start: systematic sampling over the strata.
    steps = np.floor(np.arange(len(ordered) + 1) * validation_fraction + rng.random())
    held_out = {patient for patient, step in zip(ordered, np.diff(steps), strict=True) if step}
    split = Split(
        tuple(study for study in studies if study.patient_key not in held_out),
        tuple(study for study in studies if study.patient_key in held_out),
    )
    if not split.training or not split.validation:
        raise EvaluationRefused(
            f"expected patients to train on and patients to judge, got {len(split.training)} and "
            f"{len(split.validation)} studies; give more studies"
        )
    return split


def positives(studies: Sequence[StudyRecord]) -> dict[str, int]:
    """Studies positive for each label."""
    rows = np.stack([study_labels(study) for study in studies])
    return {name: int((rows[:, place] == 1).sum()) for place, name in enumerate(LABELS)}
