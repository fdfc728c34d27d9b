"""hemofed-aggregator model: the models of a run are listed and exported."""

from pathlib import Path

import click

from aggregator.commands import listings
from aggregator.commands.base import CommandContext, as_json, of_run
from aggregator.commands.printing import print_json, print_rows
from aggregator.runs import export


@click.group()
def model() -> None:
    """Models of a run: list, export."""


@model.command("list")
@of_run
@as_json
@click.pass_obj
def model_list(context: CommandContext, run_id: str | None, as_json: bool) -> None:
    """Every model, and how the federation judged it."""
    with context.app().store.read() as session:
        rows = listings.list_models(session, listings.chosen_run(session, run_id))
    print_rows(rows, ("round", "model_digest", "size_bytes", "created_at"), as_json)


@model.command("export")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@of_run
@click.option("--round", "number", type=int, help="Made by this round, 0 for the initial one; default: the newest.")
@as_json
@click.pass_obj
def model_export(context: CommandContext, out: Path, run_id: str | None, number: int | None, as_json: bool) -> None:
    """Write a model to OUT (safetensors), after checking it against its digest."""
    app = context.app()
    with app.store.read() as session:
        run = listings.chosen_run(session, run_id)
        chosen = export.choose(session, run, number)
    # Outside the transaction: a large model takes longer to copy than a database should be held.
    export.export(app.blobs, chosen, run, out)
    if as_json:
        print_json({"path": str(out.absolute()), "round": chosen.round_number, "model_digest": chosen.digest.hex()})
        return
    click.echo(f"{out}: model of round {chosen.round_number}, digest {chosen.digest.hex()}")
