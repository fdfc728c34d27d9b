"""Commands that check an installation: doctor, prove."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from site_client.commands.options import FILE, config_option
from site_client.config import load
from site_client.files import replace_file


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of lines.")
@click.option("--bundle", type=FILE, help="Also write a redacted support file.")
@click.option("--quick", is_flag=True, help="Do not time a training step (up to a minute of CPU).")
@config_option
def doctor(as_json: bool, bundle: Path | None, quick: bool, config: Path) -> None:
    """Check this installation, and show how to mend each fault.

    Exit status 0, or 2 with a red line.
    """
    from site_client.doctor.command import examine, exit_status, render_json, render_text

    results = examine(config, quick=quick)
    click.echo(render_json(results) if as_json else render_text(results, colors=sys.stdout.isatty()))
    if bundle is not None:
        from site_client.doctor.bundle import bundle as make_bundle

        replace_file(bundle, make_bundle(load(config), results))
        click.echo(f"support bundle, redacted: {bundle}", err=True)
    sys.exit(exit_status(results))


@click.command()
@click.option("--report", type=FILE, help="Also write one HTML page to file.")
@click.option("--no-canary", is_flag=True, help="Leave the round check on synthetic studies out (minutes of CPU).")
@config_option
def prove(report: Path | None, no_canary: bool, config: Path) -> None:
    """Show the wall on this machine: attempts that the kernel refuses.

    As root, under systemd. Exit status 0 when everything was shown, 2 when something is broken, 3 when something could
    not be shown here.
    """
    from site_client.prove.command import prove as gather_findings
    from site_client.prove.report import exit_status, render_html, render_text

    findings = list(gather_findings(config, with_round_check=not no_canary))
    click.echo(render_text(findings))
    if report is not None:
        replace_file(report, render_html(findings, load(config).name, datetime.now(UTC)).encode(), 0o644)
        click.echo(f"report: {report}", err=True)
    sys.exit(exit_status(findings))
