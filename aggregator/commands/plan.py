"""hemofed-aggregator plan: a plan is checked, and goes out as a file for the custodian; `run start` takes it signed."""

import os
from dataclasses import asdict
from pathlib import Path

import click
from federation import forecast

from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import print_json
from aggregator.errors import PlanFileRefused
from aggregator.runs import plan_file
from aggregator.runs.forecast_words import forecast_words, gaussian_words
from aggregator.runs.gaussian_pld import gaussian_epsilon
from aggregator.signing_requests import PlanRequest, write_file


@click.group()
def plan() -> None:
    """Plans: check, export for the custodian."""


@plan.command("check")
@click.argument("plan_toml", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The initial model, safetensors.")
@as_json
def plan_check(plan_toml: Path, model: Path, as_json: bool) -> None:
    """Show what a run of PLAN (a plan.toml) sends, takes and spends of its privacy budgets.

    Exit status 1 if the plan is refused, or if `plan export` would want --force for it.
    """
    proposed = plan_file.read_plan(plan_toml, model, os.urandom)
    private = forecast.privacy_forecast(proposed)
    gaussian = None if proposed.privacy is None else gaussian_epsilon(proposed.privacy, proposed.rounds)
    objections = forecast.objections(proposed)
    if as_json:
        print_json(
            {
                "traffic": asdict(forecast.traffic(proposed)),
                "privacy": private and asdict(private) | {"gaussian_epsilon": gaussian},
                "objections": objections,
            }
        )
    else:
        click.echo(f"{proposed.name}: {proposed.architecture}, {proposed.rounds} rounds and one that evaluates")
        click.echo("\n".join(forecast_words(proposed)))
        if private is not None:
            click.echo(gaussian_words(gaussian))
    if objections:
        raise PlanFileRefused("; ".join(objections))


@plan.command("export")
@click.argument("plan_toml", metavar="PLAN", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The initial model, safetensors.")
@click.option("--force", is_flag=True, help="Export a plan that `plan check` objects to.")
@click.pass_obj
def plan_export(context: CommandContext, plan_toml: Path, file: Path, model: Path, force: bool) -> None:
    """Write PLAN (a plan.toml) to FILE, for `hemofed-custodian sign` on the custodian's machine.

    deploy/plan.toml explains every key of a plan; `hemofed-site init-weights` makes the initial model.
    """
    proposed = plan_file.read_plan(plan_toml, model, context.app().random)
    objections = forecast.objections(proposed)
    if objections and not force:
        raise PlanFileRefused(f"{'; '.join(objections)}; or add --force")
    write_file(file, PlanRequest(proposed.to_bytes()))
    click.echo(f"{file}: plan {proposed.digest.hex()} ({proposed.name}).")
    click.echo(f"On the custodian's machine: hemofed-custodian sign {file.name}", err=True)
    click.echo(f"Back here:                  hemofed-aggregator run start {file.name}.signed --model {model}", err=True)
