"""The command that scans the export."""

from pathlib import Path

import click

from site_client.commands.options import config_option, json_option
from site_client.config import load


@click.command()
@json_option
@click.option("--series", "with_series", is_flag=True, help="Also every series by pseudonym, with its score sheet.")
@config_option
def catalog(config: Path, as_json: bool, with_series: bool) -> None:
    """Scan the export and its labels, and count usable studies.

    Every study and series that cannot be used is counted with its reason.
    """
    from site_client.ingest.catalog.command import catalog_json, catalog_text

    settings = load(config)
    click.echo(catalog_json(settings, with_series) if as_json else catalog_text(settings, with_series))
