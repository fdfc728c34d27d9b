"""Commands that run the services: agent, trainer, both in the foreground; and the optional receiver."""

import sys
from pathlib import Path

import click

from site_client.commands.options import FILE, config_option
from site_client.config import load
from site_client.receiver.settings import DEFAULT_FILE as RECEIVER_FILE
from site_client.receiver.settings import load as load_receiver


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
@click.option(
    "--config",
    type=FILE,
    default=RECEIVER_FILE,
    envvar="HEMOFED_RECEIVER_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The receiver.toml to read.",
)
def receiver(config: Path) -> None:
    """Run the optional receiver: it takes images from the archive on the LAN, and has no way out."""
    from site_client.receiver.service import run as run_service

    sys.exit(run_service(load_receiver(config)))


@click.command()
@config_option
def run(config: Path) -> None:
    """Run agent and trainer in the foreground, without systemd.

    They are two processes; when one ends, the other is stopped.
    """
    from site_client.foreground import run_pair

    load(config)  # so that a mistake in it is one sentence, not one from each process
    sys.exit(run_pair(config))
