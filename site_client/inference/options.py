"""Options of the commands that take a model file."""

from pathlib import Path
from typing import Final

import click

from site_client.config import DEFAULT_FILE

FOLDER: Final = click.Path(path_type=Path, file_okay=False)
FILE: Final = click.Path(path_type=Path, dir_okay=False)
MODEL = click.option("--model", "model_file", required=True, type=FILE, help="As the aggregator exports it.")
SIZE = click.option(
    "--image-size", "size_px", type=click.IntRange(32, 512), help="Only of a model file that does not say it."
)
SLICES = click.option("--slices-max", type=click.IntRange(4, 400), help="Likewise.")
CALIBRATION = click.option(
    "--calibration", type=FILE, help="From `hemofed-site calibrate`, for this model; without it the model file's own."
)
THREADS = click.option("--threads", default=0, type=click.IntRange(0), help="0: one a core.")
CONFIG = click.option("--config", default=DEFAULT_FILE, type=FILE, envvar="HEMOFED_SITE_CONFIG", help="The site.toml.")
