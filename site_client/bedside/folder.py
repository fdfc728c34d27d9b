"""Turns a folder of DICOM into answers, through the pipeline of training. It knows no network's library."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from federation.labels import ANY, LABELS
from numpy.typing import NDArray

from site_client.errors import SeriesUnreadable
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.report import ScanReport
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import read_volume
from site_client.model.inputs import PreparedStudy, prepare

NOTICE: Final = "Research only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True, eq=False)
class StudyAnswer:
    """Probabilities of one study in the order of LABELS; `any` is never below a subtype.

    Attributes:
        study: f64[6].
        slices: f64[T,6], caudal to cranial.
        heat_map: uint8[H,2W] of the slice with the highest `any`, see `inference.heat_map`; None if none was asked for.
    """

    study: NDArray[np.float64]
    slices: NDArray[np.float64]
    heat_map: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer about one study, and the files of each of its T slices: several where thin slices were averaged."""

    answer: StudyAnswer
    files: tuple[tuple[Path, ...], ...]


@dataclass(frozen=True)
class FolderPredictions:
    """The predictions of a folder.

    Attributes:
        predictions: One for each usable study.
        report: The catalog's counts.
        unreadable: Reason codes of series whose headers were usable and whose pixels were not.
    """

    predictions: tuple[Prediction, ...]
    report: ScanReport
    unreadable: tuple[str, ...]


def predict_folder(
    ask: Callable[[PreparedStudy], StudyAnswer], folder: Path, image_size_px: int, slices_max: int
) -> FolderPredictions:
    """Ask about every usable study of a folder, in the order of its files' paths.

    Args:
        ask: Answers one prepared study.
        folder: Of DICOM files.
        image_size_px: As in the model's training.
        slices_max: As in the model's training.

    Raises:
        IngestError: The folder cannot be listed.
    """
    # The catalog and its secret exist for this call only: no pseudonym of these patients outlives it.
    with tempfile.TemporaryDirectory(prefix="hemofed-predict-") as temporary:
        path, secret = Path(temporary) / "catalog.sqlite", SiteSecret(np.random.default_rng().bytes(32))
        with closing(Catalog.open(path, secret, Rules(settle_s=0))) as catalog:
            report = catalog.scan(folder)
            chosen = sorted((study.series for study in catalog.chosen()), key=lambda series: series.files)
    predictions, unreadable = [], []
    for series in chosen:
        try:
            prepared = prepare(read_volume(series), image_size_px, slices_max)
        except SeriesUnreadable as error:
            unreadable.append(error.code)
            continue
        files = tuple(series.files[group.start : group.stop] for group in prepared.source_slices)
        predictions.append(Prediction(ask(prepared), files))
    return FolderPredictions(tuple(predictions), report, tuple(unreadable))


def as_text(of_folder: FolderPredictions) -> str:
    """Write the predictions for a terminal: studies by number, without names and paths."""
    lines = [NOTICE]
    for number, prediction in enumerate(of_folder.predictions, 1):
        answer = prediction.answer
        study = ", ".join(f"{label} {value:.3f}" for label, value in zip(LABELS, answer.study, strict=True))
        slices = answer.slices[:, ANY]
        highest = int(slices.argmax())
        lines.append(
            f"study {number}: {study}; {len(slices)} slices, highest any {slices[highest]:.3f} "
            f"in slice {highest + 1} from below"
        )
    refused = {**of_folder.report.files, **of_folder.report.series}
    lines += [f"not used: {count} with {code}" for code, count in sorted(refused.items())]
    lines += [f"not used: 1 study with {code}" for code in of_folder.unreadable]
    return "\n".join(lines)


def as_table(predictions: Sequence[Prediction]) -> str:
    """Write CSV: one row a study and one a slice, by number, without names and paths. A study's own row is slice 0."""
    lines = [",".join(("study", "slice", *LABELS))]
    for number, prediction in enumerate(predictions, 1):
        rows = (prediction.answer.study, *prediction.answer.slices)
        for place, probabilities in enumerate(rows):
            lines.append(",".join([str(number), str(place), *(f"{value:.6f}" for value in probabilities)]))
    return "\n".join(lines) + "\n"


def as_json(of_folder: FolderPredictions, folder: Path, model: Mapping[str, object]) -> dict[str, object]:
    """Return plain values for json.dumps.

    Args:
        of_folder: The predictions.
        folder: File names are relative to it.
        model: A description of the model, which is included.
    """
    top = folder.resolve()

    def by_label(probabilities: NDArray[np.float64]) -> dict[str, float]:
        return {label: round(float(value), 6) for label, value in zip(LABELS, probabilities, strict=True)}

    return {
        "notice": NOTICE,
        "model": dict(model),
        "not_used": {
            "files": dict(of_folder.report.files),
            "series": dict(of_folder.report.series),
            "unreadable": of_folder.unreadable,
        },
        "studies": [
            {
                "study": by_label(prediction.answer.study),
                "slices": [
                    {"files": [str(path.relative_to(top)) for path in files], **by_label(probabilities)}
                    for files, probabilities in zip(prediction.files, prediction.answer.slices, strict=True)
                ],
            }
            for prediction in of_folder.predictions
        ],
    }
