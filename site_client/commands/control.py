"""Commands for the day's work at a hospital: status, pause, resume."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from site_client.commands.options import config_option, json_option
from site_client.config import load


@click.command()
@json_option
@config_option
def status(config: Path, as_json: bool) -> None:
    """Show the state of agent and trainer, and the age of each value."""
    from site_client.status import gather, render_json, render_text

    facts = gather(load(config))
    click.echo(render_json(facts) if as_json else render_text(facts))


@click.command()
@click.option("--for", "minutes", type=click.IntRange(1), metavar="MINUTES", help="Until then; else until resume.")
@click.option("--after-round", is_flag=True, help="Let the round in training end first.")
@config_option
def pause(minutes: int | None, after_round: bool, config: Path) -> None:
    """Pause training within a second, against any decision of the idle gate.

    The agent goes on polling.
    """
    from site_client.trainer.idle import operator

    length = None if minutes is None else timedelta(minutes=minutes)
    operator.pause(load(config).folders.state, datetime.now(UTC), length, after_round=after_round)
    click.echo("paused" if minutes is None else f"paused for {minutes} minutes")


@click.command()
@config_option
def resume(config: Path) -> None:
    """Take a pause back: the idle gate decides again."""
    from site_client.trainer.idle import operator

    click.echo("resumed" if operator.resume(load(config).folders.state) else "there was no pause")
