"""Commands that run the two services: agent, trainer, and both in the foreground."""

import sys
from pathlib import Path

import click

from site_client.commands.options import config_option
from site_client.config import load


@click.command()
@config_option
def agent(config: Path) -> None:
    """Run the agent: it has the network and reads no patient data."""
    from site_client.agent.service import run as run_service

    sys.exit(run_service(load(config)))


@click.command()
@config_option
def trainer(config: Path) -> None:
    """Run the trainer: it reads patient data and has no network."""
    from site_client.trainer.service import run as run_service

    sys.exit(run_service(load(config), config))


@click.command()
@config_option
def run(config: Path) -> None:
    """Run agent and trainer in the foreground, without systemd.

    They are two processes; when one ends, the other is stopped.
    """
    from site_client.foreground import run_pair

    load(config)  # so that a mistake in it is one sentence, not one from each process
    sys.exit(run_pair(config))
