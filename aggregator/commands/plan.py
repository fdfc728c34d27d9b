"""hemofed-aggregator plan: a plan goes out as a file for the custodian; `run start` takes it back signed."""

from pathlib import Path

import click

from aggregator.commands.base import CommandContext
from aggregator.runs import plan_file
from aggregator.signing_requests import PlanRequest, write_file


@click.group()
def plan() -> None:
    """Plans: export for the custodian."""


@plan.command("export")
@click.argument("plan_toml", metavar="PLAN", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The initial model, safetensors.")
@click.pass_obj
def plan_export(context: CommandContext, plan_toml: Path, file: Path, model: Path) -> None:
    """Write PLAN (a plan.toml) to FILE, for `hemofed-custodian sign` on the custodian's machine.

    deploy/plan.toml explains every key of a plan; `hemofed-site init-weights` makes the initial model.
    """
    proposed = plan_file.read_plan(plan_toml, model, context.app().random)
    write_file(file, PlanRequest(proposed.to_bytes()))
    click.echo(f"{file}: plan {proposed.digest.hex()} ({proposed.name}).")
    click.echo(f"On the custodian's machine: hemofed-custodian sign {file.name}", err=True)
    click.echo(f"Back here:                  hemofed-aggregator run start {file.name}.signed --model {model}", err=True)
