"""hemofed-aggregator model: the models of a run are listed, compared and exported."""

from dataclasses import asdict
from pathlib import Path

import click
from federation.errors import FederationError
from federation.manifest import Model, load_model

from aggregator.commands import listings
from aggregator.commands.base import CommandContext, as_json, of_run
from aggregator.commands.printing import Form, Row, Value, listing, print_json, print_rows, table
from aggregator.context import AppContext
from aggregator.errors import RequestRefused
from aggregator.runs import comparison, export
from aggregator.store import Change, record, run_rows

TENSORS_SHOWN = 10


@click.group()
def model() -> None:
    """Models of a run: list, compare, export."""


@model.command("list")
@of_run
@listing
@click.pass_obj
def model_list(context: CommandContext, run_id: str | None, form: Form) -> None:
    """Every model: which one it was trained from, and whether it is a candidate, accepted, refused or rolled back.

    Models have such a standing where the plan has a gate, or the custodian has signed a rollback.
    """
    with context.app().store.read() as session:
        rows = listings.list_models(session, listings.chosen_run(session, run_id))
    gated = ("trained_from", "standing", "why") if any(row["standing"] for row in rows) else ()
    print_rows(rows, ("round", "model_digest", "size_bytes", "created_at", *gated), form)


@model.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@of_run
@as_json
@click.pass_obj
def model_compare(context: CommandContext, first: str, second: str, run_id: str | None, as_json: bool) -> None:
    """Print the distance from model A to model B, the tensors that moved most, and the judgements on both.

    A number names the round that made the model, 0 the initial one; anything else is a model file.
    """
    app = context.app()
    (a, report_a), (b, report_b) = (_model(app, run_id, name) for name in (first, second))
    compared = comparison.compare(a, b)
    if as_json:
        digests = [a.digest.hex(), b.digest.hex()]
        print_json({"models": digests, **asdict(compared), "reports": [report_a, report_b]})
        return
    cosine = "-" if compared.cosine is None else f"{compared.cosine:.6f}"
    relative = f", {compared.distance / compared.lengths[0]:.2%} of A" if compared.lengths[0] else ""
    click.echo(f"A         {a.digest.hex()}, length {compared.lengths[0]:.4g}")
    click.echo(f"B         {b.digest.hex()}, length {compared.lengths[1]:.4g}")
    click.echo(f"distance  {compared.distance:.4g}{relative}; cosine {cosine}")
    click.echo(f"moved     {compared.moved} of {len(compared.tensors)} tensors, these most:")
    rows: list[Row] = [asdict(tensor) for tensor in compared.tensors[:TENSORS_SHOWN] if tensor.distance]
    click.echo(table(rows, ("name", "numbers", "distance", "relative")))
    judged = [_judged(name, report) for name, report in (("A", report_a), ("B", report_b)) if report is not None]
    if judged:
        click.echo("\n" + table(judged, ("model", "auc_any", "weighted_log_loss")))


def _model(app: AppContext, run_id: str | None, name: str) -> tuple[Model, Value]:
    """Read a model, and its report if a round has judged it."""
    if not name.isdecimal():
        try:
            return load_model(Path(name)), None
        except OSError as error:
            raise RequestRefused(f"expected a number of a round or a model file, got {name}: {error}") from None
        except FederationError as error:
            raise RequestRefused(f"{name}: {error}") from None
    with app.store.read() as session:
        run = listings.chosen_run(session, run_id)
        chosen = export.choose(session, run, int(name))
        [row] = [row for row in listings.list_models(session, run) if row["round"] == chosen.round_number]
    return export.read(app, chosen, run), row["report"]


def _judged(name: str, report: Value) -> Row:
    # list_models puts a mapping there.
    assert isinstance(report, dict)
    labels = report["labels"]
    any_label = labels.get("any") if isinstance(labels, dict) else None
    auc = any_label["auc"] if isinstance(any_label, dict) else None
    return {"model": name, "auc_any": auc, "weighted_log_loss": report["weighted_log_loss"]}


@model.command("export")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@of_run
@click.option("--round", "number", type=int, help="Made by this round, 0 for the initial one; default: the newest.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@as_json
@click.pass_obj
def model_export(
    context: CommandContext, out: Path, run_id: str | None, number: int | None, overwrite: bool, as_json: bool
) -> None:
    """Write a model to OUT (safetensors), after checking it against its digest. The audit says who did."""
    app = context.app()
    actor = context.actor(app)
    with app.store.read() as session:
        run = listings.chosen_run(session, run_id)
        chosen = export.choose(session, run, number)
    # Outside the transaction: a large model takes longer to copy than a database should be held.
    export.export(app, chosen, run, out, overwrite=overwrite)
    why = f"model of round {chosen.round_number}, {chosen.digest.hex()[:16]}"
    with app.store.write() as session:
        record(session, Change(app.clock(), actor, run_rows.subject(run.run_id), why), None, "model exported")
    if as_json:
        print_json({"path": str(out.absolute()), "round": chosen.round_number, "model_digest": chosen.digest.hex()})
        return
    click.echo(f"{out}: model of round {chosen.round_number}, digest {chosen.digest.hex()}")
