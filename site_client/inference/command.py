"""The commands `hemofed-site predict` and `evaluate` (a folder of DICOM) and `calibrate` (the site's catalog)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from site_client.bedside.folder import as_json as prediction_json
from site_client.bedside.folder import as_text, predict_folder
from site_client.calibration.command import fit
from site_client.config import load as load_settings
from site_client.errors import NothingUsable
from site_client.files import replace_file
from site_client.inference.evaluation import as_json, evaluate
from site_client.inference.flipped import FlippedMean
from site_client.inference.model_file import LoadedModel, load
from site_client.inference.options import CALIBRATION, CONFIG, FILE, FOLDER, MODEL, SIZE, SLICES, THREADS
from site_client.inference.patients import is_synthetic, read_folder
from site_client.inference.phantom_sets import read_series
from site_client.inference.predict import answers_of
from site_client.inference.report import REAL, SYNTHETIC, Heading, page
from site_client.inference.scores import refuse_shared_patients
from site_client.inference.scoring import score_studies
from site_client.inference.submission import submission
from site_client.ingest.records import StudyRecord
from site_client.model.network import Network
from site_client.phantom.sheet import png_bytes
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.compute import choose
from site_client.training.data import Loader
from site_client.training.prepare import prepare_all

_FLIP = click.option("--flip", is_flag=True, help="Answer with the mean of the image and its mirror image.")
_DEVICE = click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
_CACHE_BYTES = 64 << 30
Device = Literal["auto", "cpu", "cuda"]


@click.command("predict", context_settings={"show_default": True})
@click.argument("folder", type=FOLDER)
@MODEL
@SIZE
@SLICES
@_DEVICE
@THREADS
@CALIBRATION
@_FLIP
@click.option("--out", type=FILE, help="Also every slice as JSON, with the names of its files below FOLDER.")
@click.option(
    "--submission", "submission_file", type=FILE, help="Also ID,Label rows of every image, as RSNA 2019 takes them."
)
@click.option("--heat-maps", type=FOLDER, help="Also a PNG a study: its highest slice, and where that comes from.")
def predict_command(
    folder: Path,
    model_file: Path,
    size_px: int | None,
    slices_max: int | None,
    device: Device,
    threads: int,
    calibration: Path | None,
    flip: bool,
    out: Path | None,
    submission_file: Path | None,
    heat_maps: Path | None,
) -> None:
    """Ask a model about every head CT in FOLDER. Research only: not for diagnosis or treatment.

    Exit status 2: no study of the folder can be used.
    """
    model = load(model_file, size_px, slices_max, calibration)
    compute = choose(device, threads, model.size_px)
    net, explained = compute.place(_net(model, flip)), None if heat_maps is None else model.net.eval()
    predictions = predict_folder(answers_of(net, compute, explained), folder, model.size_px, model.slices_max)
    click.echo(as_text(predictions))
    if out is not None:
        document = prediction_json(predictions, folder, model.as_json() | {"flip": flip})
        replace_file(out, (json.dumps(document, indent=1) + "\n").encode())
    if submission_file is not None:
        replace_file(submission_file, submission(predictions.predictions).encode())
    if heat_maps is not None:
        heat_maps.mkdir(parents=True, exist_ok=True)
        for number, prediction in enumerate(predictions.predictions, 1):
            if prediction.answer.heat_map is not None:
                replace_file(heat_maps / f"study-{number}.png", png_bytes(prediction.answer.heat_map))
    # Last: the files that were asked for say why nothing could be used.
    if not predictions.predictions:
        raise NothingUsable(f"expected a head CT that can be used, got none in {predictions.report.files_seen} files")


@click.command("evaluate", context_settings={"show_default": True})
@click.option("--data", required=True, type=FOLDER, help="DICOM with label tables at its top, or a phantom set.")
@click.option("--training-data", multiple=True, type=FOLDER, help="Refuse when a patient is in there too.")
@click.option("--out", required=True, type=FOLDER, help="evaluation.json and evaluation.html go here.")
@MODEL
@SIZE
@SLICES
@_DEVICE
@THREADS
@CALIBRATION
@_FLIP
def evaluate_command(
    data: Path,
    training_data: Sequence[Path],
    out: Path,
    model_file: Path,
    size_px: int | None,
    slices_max: int | None,
    device: Device,
    threads: int,
    calibration: Path | None,
    flip: bool,
) -> None:
    """Evaluate a model on studies with labels, by label, slice and study, with intervals over patients.

    Exit status 2: no study of the folder can be used.
    """
    model = load(model_file, size_px, slices_max, calibration)
    compute = choose(device, threads, model.size_px)
    state = out / ".state"
    studies = read_folder(data, state)
    # Order: headers tell a shared patient, so it is refused before minutes of preparing images.
    for folder in training_data:
        refuse_shared_patients(read_folder(folder, state), studies)
    cache = StudyCache(state / "cache", _CACHE_BYTES, model.size_px, model.slices_max, read_series)
    loader = Loader(cache, Augmentation(), compute.device)
    usable, _ = prepare_all(studies, loader, click.echo)
    scored = score_studies(compute.place(_net(model, flip)), usable, loader, compute)
    evaluation = evaluate(scored.slices, scored.studies)
    patients = _patients(usable, model.size_px)
    heading = Heading(model.description.architecture, model.digest, patients, is_synthetic(data))
    document = {
        "notice": SYNTHETIC if heading.synthetic else REAL,
        "model": model.as_json() | {"flip": flip},
        **as_json(evaluation),
    }
    (out / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "evaluation.html").write_text(page(heading, evaluation))
    click.echo(f"{heading.patients} Written: evaluation.json and evaluation.html in {out}")


@click.command("calibrate", context_settings={"show_default": True})
@MODEL
@click.option("--out", required=True, type=FILE, help="For --calibration of predict and evaluate.")
@SIZE
@SLICES
@click.option(
    "--slices-per-study", type=click.IntRange(0, 400), help="Likewise: of a study in a training step; 0: all."
)
@_DEVICE
@THREADS
@CONFIG
def calibrate_command(
    model_file: Path,
    out: Path,
    size_px: int | None,
    slices_max: int | None,
    slices_per_study: int | None,
    device: Device,
    threads: int,
    config: Path,
) -> None:
    """Fit a model's calibration to this site's patients: the catalog's, split as the trainer splits them.

    Offsets come from the patients that are trained on, temperatures from those that never are.
    """
    settings = load_settings(config)
    model = load(model_file, size_px, slices_max)
    compute = choose(device, threads or settings.training.threads, model.size_px)
    sizes = model.size_px, model.slices_max, model.slices_per_study(slices_per_study)
    calibrations, split = fit(settings, model.net, model.digest, *sizes, compute)
    replace_file(out, (calibrations.to_json() + "\n").encode())
    click.echo(f"Written: {out}, from {len(split.training)} studies, temperatures from {len(split.validation)} others")


def _net(model: LoadedModel, flip: bool) -> Network:
    return FlippedMean(model.calibrated) if flip else model.calibrated


def _patients(studies: Sequence[StudyRecord], size_px: int) -> str:
    patients = len({study.patient_key for study in studies})
    return f"{len(studies)} studies of {patients} patients, {size_px} px."
