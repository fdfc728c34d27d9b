"""Commands that scan the export, and show its verdicts to people of this site."""

from pathlib import Path

import click
from click.core import ParameterSource

from site_client.commands.options import FILE, config_option, json_option
from site_client.config import load


@click.group(invoke_without_command=True)
@json_option
@click.option("--series", "with_series", is_flag=True, help="Also every series by pseudonym, with its score sheet.")
@config_option
@click.pass_context
def catalog(ctx: click.Context, config: Path, as_json: bool, with_series: bool) -> None:
    """Scan the export and its labels, and count usable studies.

    Every study and series that cannot be used is counted with its reason. The exit status is 1 when a label file could
    not be read, or when labels wait for your word. The commands below read the results of the last scan.
    """
    if ctx.invoked_subcommand is not None:
        # An ignored --config would explain another site's catalog.
        if ctx.get_parameter_source("config") is ParameterSource.COMMANDLINE or as_json or with_series:
            raise click.UsageError(
                f"options come after the command: catalog {ctx.invoked_subcommand} ... --config FILE"
            )
        return
    from site_client.ingest.catalog.command import catalog_json, catalog_text, refuse_failed_labels

    settings = load(config)
    text, report = (catalog_json if as_json else catalog_text)(settings, with_series)
    click.echo(text)
    refuse_failed_labels(report)


@catalog.command()
@config_option
def labels(config: Path) -> None:
    """Name every label file, and show its outcome. For people of this site only."""
    from site_client.ingest.catalog.command import labels_text

    click.echo(labels_text(load(config)))


@catalog.command()
@click.argument("query", metavar="PATH|UID|PSEUDONYM")
@config_option
def explain(query: str, config: Path) -> None:
    """Explain why a file, folder, series or study is trained on, or why not. For people of this site only.

    It shows each hard filter with the measured value and the limit, the score sheet, what would make it READY, and
    until when it waits. An accession number or a patient ID is understood, too. It names paths: run it as root or as
    the trainer's user.
    """
    from site_client.ingest.catalog.command import explain_text

    click.echo(explain_text(load(config), query))


@catalog.command()
@click.argument("file", type=FILE)
@click.option("--pictures/--no-pictures", default=True, help="Show one slice of each series in the brain window.")
@config_option
def page(file: Path, pictures: bool, config: Path) -> None:
    """Write the whole catalog as an HTML page that only you can read. It is never sent."""
    from site_client.ingest.catalog.command import write_page

    write_page(load(config), file, pictures)
    click.echo(f"written: {file}, readable by you alone; remove it when you have looked")


@catalog.group()
def confirm() -> None:
    """Confirm a change that takes labels or opt-outs away."""


@confirm.command("labels")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
def confirm_labels(config: Path, yes: bool) -> None:
    """Put the labels in force that the files now hold, although known ones go."""
    from site_client.ingest.catalog.command import confirm_held_labels, held_labels_text

    settings = load(config)
    held, text = held_labels_text(settings)
    click.echo(text)
    if held is not None and (yes or click.confirm("Shall training forget the labels that are missing?")):
        confirm_held_labels(settings, held)
        click.echo("confirmed; the next round uses the labels of the files")


@confirm.command("opt-outs")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
def confirm_opt_outs(config: Path, yes: bool) -> None:
    """Train again on patients who are no longer on the list of those who opted out."""
    from site_client.ingest.catalog.command import confirm_missing_opt_outs, missing_opt_outs_text

    settings = load(config)
    missing, text = missing_opt_outs_text(settings)
    click.echo(text)
    if missing and (yes or click.confirm("Do these patients no longer object?")):
        confirm_missing_opt_outs(settings)
        click.echo("confirmed; the next round may use their studies")
