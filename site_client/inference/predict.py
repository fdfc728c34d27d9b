"""From a folder of DICOM and a model file to chances: the pipeline of training, and nothing written but the answer."""

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from federation.labels import ANY, LABELS
from federation.manifest import Model, load_model
from numpy.typing import NDArray

from site_client.errors import EvaluationRefused, SeriesUnreadable
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.report import ScanReport
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.records import SeriesRecord
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import read_volume
from site_client.model.inputs import prepare
from site_client.model.network import Network, clamp_any
from site_client.model.registry import ARCHITECTURES, build, load_weights, manifest_of
from site_client.training.compute import Compute
from site_client.training.data import input_of

NOTICE = "Research only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True, eq=False)
class Prediction:
    """One study. chances: study f64[6], slices f64[T,6], in the order of LABELS, caudal to cranial, `any` never below a
    subtype. files[t]: what slice t was made of, more than one where thin slices were averaged.
    """

    study: NDArray[np.float64]
    slices: NDArray[np.float64]
    files: tuple[tuple[Path, ...], ...]


@dataclass(frozen=True)
class Asked:
    """`unreadable`: codes of series that were ready and then could not be read."""

    predictions: tuple[Prediction, ...]
    report: ScanReport
    unreadable: tuple[str, ...]


def load_network(path: Path) -> tuple[str, Model, Network]:
    """The architecture whose tensors the file holds, and the network with its weights. Raises EvaluationRefused."""
    if not path.is_file():
        raise EvaluationRefused(f"expected a model file, got no file {path.name!r}; export one from the run")
    model = load_model(path)
    for architecture in ARCHITECTURES:
        net = build(architecture, seed=0)
        if manifest_of(net) == model.manifest:
            load_weights(net, model.named())
            return architecture, model, net
    raise EvaluationRefused(f"expected a model of one of {', '.join(ARCHITECTURES)}, got other tensors; update hemofed")


def predict(net: Network, folder: Path, image_size_px: int, slices_max: int, compute: Compute) -> Asked:
    """Every usable study of the folder, in the order of its files' paths. Raises IngestError when it cannot be listed.

    The catalog is forgotten at the end; `image_size_px` and `slices_max` must be those of the model's training.
    """
    with tempfile.TemporaryDirectory(prefix="hemofed-predict-") as place:
        path, secret = Path(place) / "catalog.sqlite", SiteSecret(np.random.default_rng().bytes(32))
        with closing(Catalog.open(path, secret, Rules(settle_s=0))) as catalog:
            report = catalog.scan(folder)
            series = sorted((study.series for study in catalog.chosen()), key=lambda one: one.files)
    found, unreadable = [], []
    for one in series:
        try:
            found.append(_ask(net, one, image_size_px, slices_max, compute))
        except SeriesUnreadable as error:
            unreadable.append(error.code)
    return Asked(tuple(found), report, tuple(unreadable))


def _ask(net: Network, series: SeriesRecord, image_size_px: int, slices_max: int, compute: Compute) -> Prediction:
    prepared = prepare(read_volume(series), image_size_px, slices_max)
    x = input_of(prepared, compute.device).unsqueeze(0)
    mask = torch.ones(1, prepared.slices, dtype=torch.bool, device=compute.device)
    geometry = torch.from_numpy(prepared.geometry).unsqueeze(0).to(compute.device)
    net.eval()
    with torch.inference_mode(), compute.autocast():
        verdict = net(x, mask, geometry)
    # A network that answers for studies only says the same of each slice.
    logits = verdict.slice_logits[0] if net.has_slice_outputs else verdict.study_logits.expand(prepared.slices, -1)
    slices = clamp_any(logits).double().sigmoid().cpu().numpy()
    study = clamp_any(verdict.study_logits[0]).double().sigmoid().cpu().numpy()
    files = tuple(series.files[group.start : group.stop] for group in prepared.source_slices)
    return Prediction(study, slices, files)


def as_text(asked: Asked) -> str:
    """A page for people: studies by number, no name and no path."""
    lines = [NOTICE]
    for number, one in enumerate(asked.predictions, 1):
        chances = ", ".join(f"{label} {chance:.3f}" for label, chance in zip(LABELS, one.study, strict=True))
        highest = int(one.slices[:, ANY].argmax())
        lines.append(
            f"study {number}: {chances}; {len(one.slices)} slices, highest any {one.slices[highest, ANY]:.3f} "
            f"in slice {highest + 1} from below"
        )
    if not asked.predictions:
        lines.append(f"no head CT that can be used: {asked.report.files_seen} files")
    refused = {**asked.report.files, **asked.report.series}
    lines += [f"not used: {count} with {code}" for code, count in sorted(refused.items())]
    lines += [f"not used: 1 study with {code}" for code in asked.unreadable]
    return "\n".join(lines)


def as_json(asked: Asked, folder: Path, about: dict[str, object]) -> dict[str, object]:
    """Plain values; `about` the model; file names relative to the folder, so that each answer lies beside its image."""
    top = folder.resolve()

    def named(chances: NDArray[np.float64]) -> dict[str, float]:
        return {label: round(float(chance), 6) for label, chance in zip(LABELS, chances, strict=True)}

    return {
        "notice": NOTICE,
        "model": about,
        "not_used": {
            "files": dict(asked.report.files),
            "series": dict(asked.report.series),
            "unreadable": asked.unreadable,
        },
        "studies": [
            {
                "study": named(one.study),
                "slices": [
                    {"files": [str(path.relative_to(top)) for path in files], **named(chances)}
                    for files, chances in zip(one.files, one.slices, strict=True)
                ],
            }
            for one in asked.predictions
        ],
    }
