"""Turns a folder of DICOM and a model file into probabilities, through the pipeline of training."""

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from federation.labels import ANY, LABELS
from numpy.typing import NDArray

from site_client.errors import SeriesUnreadable
from site_client.inference.heat_map import picture
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.report import ScanReport
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.records import SeriesRecord
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import read_volume
from site_client.model.inputs import prepare
from site_client.model.network import Network, clamp_any
from site_client.training.compute import Compute
from site_client.training.data import input_of

NOTICE: Final = "Research only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True, eq=False)
class Prediction:
    """Probabilities of one study in the order of LABELS; `any` is never below a subtype.

    Attributes:
        study: f64[6].
        slices: f64[T,6], caudal to cranial.
        files: The files of each slice: several where thin slices were averaged.
        heat_map: uint8[H,2W] of the slice with the highest `any`, see `heat_map`; None if none was asked for.
    """

    study: NDArray[np.float64]
    slices: NDArray[np.float64]
    files: tuple[tuple[Path, ...], ...]
    heat_map: NDArray[np.uint8] | None = None


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


def predict(
    net: Network,
    folder: Path,
    image_size_px: int,
    slices_max: int,
    compute: Compute,
    explained: Network | None = None,
) -> FolderPredictions:
    """Predict every usable study of a folder, in the order of its files' paths.

    Args:
        net: On the device of `compute`; it is in eval mode afterwards.
        folder: Of DICOM files.
        image_size_px: As in the model's training.
        slices_max: As in the model's training.
        compute: Device and precision.
        explained: The network behind `net` that heat maps are drawn of; None draws none.

    Raises:
        EvaluationRefused: `explained` has no slice outputs.
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
            predictions.append(_predict_series(net, series, image_size_px, slices_max, compute, explained))
        except SeriesUnreadable as error:
            unreadable.append(error.code)
    return FolderPredictions(tuple(predictions), report, tuple(unreadable))


def _predict_series(
    net: Network,
    series: SeriesRecord,
    image_size_px: int,
    slices_max: int,
    compute: Compute,
    explained: Network | None,
) -> Prediction:
    prepared = prepare(read_volume(series), image_size_px, slices_max)
    x = input_of(prepared, compute.device).unsqueeze(0)
    mask = torch.ones(1, prepared.slices, dtype=torch.bool, device=compute.device)
    geometry = torch.from_numpy(prepared.geometry).unsqueeze(0).to(compute.device)
    net.eval()
    with compute.inference():
        output = net(x, mask, geometry)
    # A network without slice outputs gives every slice the study's probabilities.
    logits = output.slice_logits[0] if net.has_slice_outputs else output.study_logits.expand(prepared.slices, -1)
    slices = clamp_any(logits).double().sigmoid().cpu().numpy()
    # In float64: float32 takes the probability of log-odds of 17 for exactly 1.
    study = clamp_any(output.study_logits[0]).double().sigmoid().cpu().numpy()
    files = tuple(series.files[group.start : group.stop] for group in prepared.source_slices)
    heat_map = None if explained is None else picture(explained, x[0, int(slices[:, ANY].argmax())])
    return Prediction(study, slices, files, heat_map)


def as_text(of_folder: FolderPredictions) -> str:
    """Write the predictions for a terminal: studies by number, without names and paths."""
    lines = [NOTICE]
    for number, prediction in enumerate(of_folder.predictions, 1):
        study = ", ".join(f"{label} {value:.3f}" for label, value in zip(LABELS, prediction.study, strict=True))
        slices = prediction.slices[:, ANY]
        highest = int(slices.argmax())
        lines.append(
            f"study {number}: {study}; {len(slices)} slices, highest any {slices[highest]:.3f} "
            f"in slice {highest + 1} from below"
        )
    refused = {**of_folder.report.files, **of_folder.report.series}
    lines += [f"not used: {count} with {code}" for code, count in sorted(refused.items())]
    lines += [f"not used: 1 study with {code}" for code in of_folder.unreadable]
    return "\n".join(lines)


def as_json(of_folder: FolderPredictions, folder: Path, model: dict[str, object]) -> dict[str, object]:
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
        "model": model,
        "not_used": {
            "files": dict(of_folder.report.files),
            "series": dict(of_folder.report.series),
            "unreadable": of_folder.unreadable,
        },
        "studies": [
            {
                "study": by_label(prediction.study),
                "slices": [
                    {"files": [str(path.relative_to(top)) for path in files], **by_label(probabilities)}
                    for files, probabilities in zip(prediction.files, prediction.slices, strict=True)
                ],
            }
            for prediction in of_folder.predictions
        ],
    }
