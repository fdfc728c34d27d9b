"""The commands `hemofed-site predict` and `evaluate` (a folder of DICOM) and `calibrate` (the site's catalog)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click
from federation.manifest import Model

from site_client.calibration.command import fit, load_calibration
from site_client.calibration.model import CalibratedNet
from site_client.config import DEFAULT_FILE, load
from site_client.files import replace_file
from site_client.inference.evaluation import as_json, evaluate
from site_client.inference.patients import is_synthetic, read_folder
from site_client.inference.predict import as_json as prediction_json
from site_client.inference.predict import as_text, load_network, predict
from site_client.inference.report import REAL, SYNTHETIC, Heading, page
from site_client.inference.scores import refuse_shared_patients
from site_client.inference.scoring import score_studies
from site_client.ingest.records import StudyRecord
from site_client.ingest.series.volume import read_volume
from site_client.model.network import Network
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.compute import choose
from site_client.training.data import Loader
from site_client.training.prepare import prepare_all

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_MODEL = click.option("--model", "model_file", required=True, type=_FILE, help="As the aggregator exports it.")
_SIZE = click.option(
    "--image-size", "size_px", default=256, type=click.IntRange(32, 512), help="That of the model's plan."
)
_SLICES = click.option("--slices-max", default=64, type=click.IntRange(4, 400), help="That of the model's plan.")
_CALIBRATION = click.option("--calibration", type=_FILE, help="From `hemofed-site calibrate`, for this model.")
_DEVICE = click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
_CACHE_BYTES = 64 << 30
Device = Literal["auto", "cpu", "cuda"]


@click.command("predict", context_settings={"show_default": True})
@click.argument("folder", type=_FOLDER)
@_MODEL
@_SIZE
@_SLICES
@_DEVICE
@_CALIBRATION
@click.option("--out", type=_FILE, help="Also every slice as JSON, with the names of its files below FOLDER.")
def predict_command(
    folder: Path,
    model_file: Path,
    size_px: int,
    slices_max: int,
    device: Device,
    calibration: Path | None,
    out: Path | None,
) -> None:
    """Ask a model about every head CT in FOLDER. Research only: not for diagnosis or treatment."""
    architecture, model, net = _network(model_file, calibration)
    compute = choose(device, 0, size_px)
    predictions = predict(compute.place(net), folder, size_px, slices_max, compute)
    click.echo(as_text(predictions))
    if out is not None:
        document = prediction_json(predictions, folder, _about(architecture, model, size_px, slices_max, calibration))
        replace_file(out, (json.dumps(document, indent=1) + "\n").encode())


@click.command("evaluate", context_settings={"show_default": True})
@click.option("--data", required=True, type=_FOLDER, help="DICOM with label tables at its top.")
@click.option("--training-data", multiple=True, type=_FOLDER, help="Refuse when a patient is in there too.")
@click.option("--out", required=True, type=_FOLDER, help="evaluation.json and evaluation.html go here.")
@_MODEL
@_SIZE
@_SLICES
@_DEVICE
@_CALIBRATION
def evaluate_command(
    data: Path,
    training_data: Sequence[Path],
    out: Path,
    model_file: Path,
    size_px: int,
    slices_max: int,
    device: Device,
    calibration: Path | None,
) -> None:
    """Evaluate a model on studies with labels, by label, slice and study, with intervals over patients."""
    architecture, model, net = _network(model_file, calibration)
    compute = choose(device, 0, size_px)
    state = out / ".state"
    studies = read_folder(data, state)
    for folder in training_data:
        refuse_shared_patients(read_folder(folder, state), studies)
    cache = StudyCache(state / "cache", _CACHE_BYTES, size_px, slices_max, read_volume)
    loader = Loader(cache, Augmentation(), compute.device)
    usable, _ = prepare_all(studies, loader, click.echo)
    scored = score_studies(compute.place(net), usable, loader, compute)
    evaluation = evaluate(scored.slices, scored.studies)
    heading = Heading(architecture, model.digest.hex(), _patients(usable, size_px), is_synthetic(data))
    document = {
        "notice": SYNTHETIC if heading.synthetic else REAL,
        "model": _about(architecture, model, size_px, slices_max, calibration),
        **as_json(evaluation),
    }
    (out / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "evaluation.html").write_text(page(heading, evaluation))
    click.echo(f"{heading.patients} Written: evaluation.json and evaluation.html in {out}")


@click.command("calibrate", context_settings={"show_default": True})
@_MODEL
@click.option("--out", required=True, type=_FILE, help="For --calibration of predict and evaluate.")
@_SIZE
@_SLICES
@_DEVICE
@click.option("--config", default=DEFAULT_FILE, type=_FILE, envvar="HEMOFED_SITE_CONFIG", help="The site.toml.")
def calibrate_command(model_file: Path, out: Path, size_px: int, slices_max: int, device: Device, config: Path) -> None:
    """Fit a model's calibration to this site's patients: the catalog's, split as the trainer splits them.

    Offsets come from the patients that are trained on, temperatures from those that never are.
    """
    settings = load(config)
    _, model, net = load_network(model_file)
    compute = choose(device, settings.training.threads, size_px)
    calibrations, split = fit(settings, net, model.digest.hex(), size_px, slices_max, compute)
    replace_file(out, (calibrations.to_json() + "\n").encode())
    click.echo(f"Written: {out}, from {len(split.training)} studies, temperatures from {len(split.validation)} others")


def _network(model_file: Path, calibration: Path | None) -> tuple[str, Model, Network]:
    architecture, model, net = load_network(model_file)
    if calibration is not None:
        net = CalibratedNet(net, load_calibration(calibration, model.digest.hex()))
    return architecture, model, net


def _about(
    architecture: str, model: Model, size_px: int, slices_max: int, calibration: Path | None
) -> dict[str, object]:
    return {
        "architecture": architecture,
        "digest": model.digest.hex(),
        "image_size_px": size_px,
        "slices_max": slices_max,
        "calibrated": calibration is not None,
    }


def _patients(studies: Sequence[StudyRecord], size_px: int) -> str:
    patients = len({study.patient_key for study in studies})
    return f"{len(studies)} studies of {patients} patients, {size_px} px."
