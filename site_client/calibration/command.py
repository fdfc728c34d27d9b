"""Fit a model's calibration to the catalog's patients, and read it from its file."""

from dataclasses import replace
from pathlib import Path

import click

from site_client.calibration.fit import calibrate
from site_client.calibration.model import Calibrations
from site_client.config import SiteSettings
from site_client.errors import EvaluationRefused
from site_client.model.network import Network
from site_client.training.compute import Compute
from site_client.training.data import Split
from site_client.training.prepare import labelled_split


def fit(
    settings: SiteSettings,
    net: Network,
    model: str,
    size_px: int,
    slices_max: int,
    slices_per_study: int,
    compute: Compute,
) -> tuple[Calibrations, Split]:
    """Calibrate a model on the catalog's patients, split as the trainer splits them.

    Args:
        settings: Of the site.
        net: The network with the model's weights.
        model: Digest of the weights in hex.
        size_px: Side of the model's input in pixels.
        slices_max: Most slices of a study.
        slices_per_study: Of a study in a training step, which decides the offsets; 0 for all.
        compute: Device and precision.

    Returns:
        The calibration and the split behind it.

    Raises:
        NothingUsable: No labelled patient can be read.
    """
    loader, split = labelled_split(settings, size_px, slices_max, slices_per_study, compute.device, click.echo)
    return replace(calibrate(compute.place(net), split, loader, compute), model=model), split


def load_calibration(path: Path, model: str) -> Calibrations:
    """Read a calibration file.

    Args:
        path: The file.
        model: Digest in hex of the weights that it has to belong to.

    Raises:
        EvaluationRefused: The file is no calibration, or one of other weights.
    """
    try:
        calibrations = Calibrations.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationRefused(
            f"expected a file of `hemofed-site calibrate`, got something else in {path.name!r}; write it anew"
        ) from error
    if calibrations.model != model:
        raise EvaluationRefused(
            f"expected a calibration of model {model[:16]}, got one of {calibrations.model[:16]}; "
            "run `hemofed-site calibrate`"
        )
    return calibrations
