"""hemofed-aggregator plan: a plan is checked, and goes out as a file for the custodian; `run start` takes it signed."""

import os
from pathlib import Path

import click
from federation import forecast
from federation.manifest import load_description, load_model

from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.plan_report import plan_report
from aggregator.errors import PlanFileRefused
from aggregator.runs import plan_file
from aggregator.runs.start_check import model_objections
from aggregator.signing_requests import PlanRequest, write_file


@click.group()
def plan() -> None:
    """Plans: check, export for the custodian."""


@plan.command("check")
@click.argument("plan_toml", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The initial model, safetensors.")
@as_json
@click.pass_obj
def plan_check(context: CommandContext, plan_toml: Path, model: Path, as_json: bool) -> None:
    """Show who may take part in a run of PLAN (a plan.toml), what a round costs, and what the run spends.

    Without a state folder it leaves out who may take part and what earlier rounds took. Exit status 1 if the plan is
    refused, if the run could not begin, or if it would be in vain.
    """
    proposed = plan_file.read_plan(plan_toml, model, os.urandom)
    report = plan_report(proposed, model, context.app() if context.is_initialised else None)
    report.print(as_json)
    if report.objections:
        raise PlanFileRefused("; ".join(report.objections))


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
    objections = [
        *model_objections(proposed, load_model(model), load_description(model)),
        *forecast.objections(proposed),
    ]
    if objections and not force:
        raise PlanFileRefused(f"{'; '.join(objections)}; or add --force")
    write_file(file, PlanRequest(proposed.to_bytes()))
    click.echo(f"{file}: plan {proposed.digest.hex()} ({proposed.name}).")
    click.echo(f"On the custodian's machine: hemofed-custodian sign {file.name}", err=True)
    click.echo(f"Back here:                  hemofed-aggregator run start {file.name}.signed --model {model}", err=True)
