"""Options that several commands share."""

from pathlib import Path
from typing import Final

import click

from site_client.config import DEFAULT_FILE

FILE: Final = click.Path(path_type=Path, dir_okay=False)

config_option = click.option(
    "--config",
    type=FILE,
    default=DEFAULT_FILE,
    envvar="HEMOFED_SITE_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The site.toml to read.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
