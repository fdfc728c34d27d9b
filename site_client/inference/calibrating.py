"""`hemofed-site calibrate`: from a model and this site's own patients to a file that turns log-odds into chances."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from site_client.config import DEFAULT_FILE, load
from site_client.errors import EvaluationRefused
from site_client.files import replace_file
from site_client.inference.patients import prepare_all
from site_client.inference.predict import load_network
from site_client.ingest.catalog import open_catalog
from site_client.ingest.volume import read_volume
from site_client.model.calibration import Calibrations
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.calibrate import calibrate
from site_client.training.compute import choose
from site_client.training.data import Loader, split_patients

_FILE = click.Path(path_type=Path, dir_okay=False)
_GIB = 1 << 30


@click.command("calibrate", context_settings={"show_default": True})
@click.option("--model", "model_file", required=True, type=_FILE, help="As the aggregator exports it.")
@click.option("--out", required=True, type=_FILE, help="For --calibration of predict and evaluate.")
@click.option("--image-size", "size_px", default=256, type=click.IntRange(32, 512), help="That of the model's plan.")
@click.option("--slices-max", default=64, type=click.IntRange(4, 400), help="That of the model's plan.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--config", default=DEFAULT_FILE, type=_FILE, envvar="HEMOFED_SITE_CONFIG", help="The site.toml.")
def calibrate_command(
    model_file: Path,
    out: Path,
    size_px: int,
    slices_max: int,
    device: Literal["auto", "cpu", "cuda"],
    config: Path,
) -> None:
    """Fit a model's chances to this site's patients: the catalog's, split as the trainer splits them.

    Offsets come from the patients that are trained on, temperatures from those that never are.
    """
    settings = load(config)
    _, model, net = load_network(model_file)
    compute = choose(device, settings.training.threads, size_px)
    with closing(open_catalog(settings)) as catalog:
        studies = catalog.dataset().studies
    cache_bytes = int(settings.training.cache_max_gib * _GIB)
    cache = StudyCache(settings.folders.cache, cache_bytes, size_px, slices_max, read_volume)
    loader = Loader(cache, Augmentation(), compute.device)
    usable, _ = prepare_all(studies, loader, click.echo)
    split = split_patients(usable, settings.training.validation_fraction)
    if not split.training:
        raise EvaluationRefused("expected labelled patients that are trained on, got none; see `hemofed-site catalog`")
    found = replace(calibrate(net.to(compute.device), split, loader, compute), model=model.digest.hex())
    replace_file(out, (found.to_json() + "\n").encode())
    click.echo(f"Written: {out}, from {len(split.training)} studies, temperatures from {len(split.validation)} others")


def load_calibration(path: Path, model: str) -> Calibrations:
    """`model`: digest in hex of the weights it has to belong to. Raises EvaluationRefused."""
    try:
        found = Calibrations.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationRefused(
            f"expected what `hemofed-site calibrate` writes, got something else in {path.name!r}; write it anew"
        ) from error
    if found.model != model:
        raise EvaluationRefused(
            f"expected a calibration of model {model[:16]}, got one of {found.model[:16]}; run `hemofed-site calibrate`"
        )
    return found
