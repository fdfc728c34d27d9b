"""Commands for the hospital's decision on a plan."""

from pathlib import Path

import click

from site_client.commands.options import config_option
from site_client.config import load


@click.group()
def plan() -> None:
    """Show training plans, and approve or refuse them."""


@plan.command()
@click.argument("digest", required=False)
@config_option
def show(digest: str | None, config: Path) -> None:
    """Show the plans that were offered, or one of them in full."""
    from site_client.agent.privacy.ledger import spending_of
    from site_client.agent.rounds.plan_description import describe, summarize
    from site_client.agent.rounds.plans import Plans

    settings = load(config)
    plans = Plans(settings.folders.agent / "plans")
    if digest is None:
        click.echo(summarize(plans))
    else:
        click.echo(describe(plans.find(digest), settings.policy, spending_of(settings)))


@plan.command()
@click.argument("digest")
@config_option
def approve(digest: str, config: Path) -> None:
    """Let this site train under the plan whose digest begins with DIGEST (at least 8 characters)."""
    _decide(config, digest, approved=True)


@plan.command()
@click.argument("digest")
@config_option
def refuse(digest: str, config: Path) -> None:
    """Keep this site out of every round of the plan whose digest begins with DIGEST."""
    _decide(config, digest, approved=False)


def _decide(config: Path, digest: str, *, approved: bool) -> None:
    from site_client.agent.rounds.plans import Plans

    plans = Plans(load(config).folders.agent / "plans")
    held = plans.find(digest)
    plans.decide(held.digest, approved=approved)
    click.echo(f"{'approved' if approved else 'refused'}: {held.plan.name} ({held.digest.hex()[:16]})")
