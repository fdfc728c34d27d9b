"""hemofed-aggregator run: a run is started, watched, hurried, paused, resumed, aborted."""

from collections.abc import Callable
from pathlib import Path

import click
from federation.v1.plan_pb2 import SignedPlan, SignedRollback
from federation.wire import parse

from aggregator.commands import listings
from aggregator.commands.base import CommandContext, as_json, load_authority, of_run
from aggregator.commands.plan_report import plan_report
from aggregator.commands.printing import Form, listing, print_json, print_rows, printable, table
from aggregator.commands.run_story import tell
from aggregator.errors import PlanFileRefused, RequestRefused
from aggregator.runs import export, lifecycle
from aggregator.runs import rollback as rollbacks
from aggregator.runs.privacy_status import privacy_status, status_words
from aggregator.signing_requests import RollbackRequest, SignedPlanFile, SignedRollbackFile, read_file, write_file
from aggregator.sites.roster import custodian_in_force, roster_notices
from aggregator.states import Role, RunState
from aggregator.store.tables import Run


@click.group()
def run() -> None:
    """Runs: start, queue, watch, explain, close a round's training, pause, resume, roll back, abort."""


@run.command("start")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The initial model, safetensors.")
@click.option("--dry-run", is_flag=True, help="Say what `plan check` says, and begin nothing.")
@click.option("--force", is_flag=True, help="Begin although the check finds that it cannot work.")
@click.option("--queue", is_flag=True, help="While another run is in progress, wait for its end.")
@as_json
@click.pass_obj
def run_start(
    context: CommandContext, file: Path, model: Path, dry_run: bool, force: bool, queue: bool, as_json: bool
) -> None:
    """Begin the first round of the signed plan in FILE.

    `plan export` and then `hemofed-custodian sign` make one of a plan.toml.
    """
    app = context.app()
    actor = context.actor(app, Role.VIEWER if dry_run else Role.OPERATOR)
    content = read_file(file)
    if not isinstance(content, SignedPlanFile):
        raise RequestRefused(f"{file}: expected a signed plan; `plan export`, then `hemofed-custodian sign` make one")
    with app.store.read() as session:
        custodian = custodian_in_force(session, load_authority(app))
    signed = parse(SignedPlan, content.signed)
    plan, _ = lifecycle.verified(signed, model, custodian)
    report = plan_report(plan, model, app, queue=queue)
    if dry_run:
        report.print(as_json)
        if report.objections:
            raise PlanFileRefused("; ".join(report.objections))
        return
    # The custodian has read the other objections and signed all the same.
    if report.hindrances and not force:
        raise PlanFileRefused(f"{'; '.join(report.hindrances)}; or add --force")
    started = lifecycle.start_run(app, signed, model, custodian, actor, queue=queue)
    if as_json:
        digest, state = started.plan_digest.hex(), started.state.value
        print_json({"run": started.run_id.hex(), "name": started.name, "plan_digest": digest, "state": state})
        return
    outcome = "is queued" if started.state is RunState.QUEUED else "has begun"
    click.echo(f"Run {started.run_id.hex()} ({started.name}) {outcome}; plan {started.plan_digest.hex()}.")


@run.command("list")
@listing
@click.pass_obj
def run_list(context: CommandContext, form: Form) -> None:
    """Every run, oldest first."""
    with context.app().store.read() as session:
        rows = listings.list_runs(session)
    print_rows(rows, ("run", "name", "state", "rounds", "created_at", "ended_at", "reason"), form)


@run.command("queue")
@listing
@click.pass_obj
def run_queue(context: CommandContext, form: Form) -> None:
    """The runs that wait for the one in progress to end, the next one first. `run abort --run RUN` takes one out."""
    with context.app().store.read() as session:
        rows = listings.list_queue(session)
    print_rows(rows, ("run", "name", "queued_at", "architecture", "rounds", "minimum"), form)


@run.command("explain")
@click.argument("run_id", metavar="RUN", required=False)
@as_json
@click.pass_obj
def run_explain(context: CommandContext, run_id: str | None, as_json: bool) -> None:
    """Tell RUN: each round, each delay and its cause. Default: the one in progress, else the newest."""
    app = context.app()
    with app.store.read() as session:
        story = tell(session, listings.chosen_run(session, run_id), app.clock(), app.settings.pacing)
    if as_json:
        print_json(story.row())
    else:
        click.echo("\n".join(map(printable, story.lines())))


@run.command("status")
@of_run
@listing
@click.pass_obj
def run_status(context: CommandContext, run_id: str | None, form: Form) -> None:
    """The run, its rounds, and of a private run what it has spent and whether it still learns."""
    app = context.app()
    with app.store.read() as session:
        chosen = listings.chosen_run(session, run_id)
        privacy = privacy_status(session, chosen)
        row = listings.describe_run(session, chosen, privacy)
        notices = roster_notices(session, app.settings.state.folder, app.clock())
    if form is not None:
        if form == "json":
            print_json(row)
        else:
            print_rows(listings.round_lines(row), listings.ROUND_COLUMNS, form)
        return
    click.echo(f"{row['name']} ({row['run']}): {row['state']}" + (f", {row['reason']}" if row["reason"] else ""))
    click.echo(table(listings.round_lines(row), listings.ROUND_COLUMNS))
    click.echo("\n".join(status_words(privacy)))
    for notice in notices:
        click.echo(notice, err=True)


@run.command("close-now")
@of_run
@click.pass_obj
def run_close_now(context: CommandContext, run_id: str | None) -> None:
    """Let the round go on with the hospitals that are ready, without waiting for the others."""
    _change_run(context, run_id, lifecycle.close_now, "training is closed; masking begins with those that are ready")


@run.command("pause")
@of_run
@click.pass_obj
def run_pause(context: CommandContext, run_id: str | None) -> None:
    """End the round in progress as usual, then begin no new one."""
    _change_run(context, run_id, lifecycle.pause, "paused; the round in progress ends as usual")


@run.command("resume")
@of_run
@click.pass_obj
def run_resume(context: CommandContext, run_id: str | None) -> None:
    """Go on after a pause."""
    _change_run(context, run_id, lifecycle.resume, "running")


@run.command("rollback")
@click.argument("number", metavar="MODEL", type=click.IntRange(0))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@of_run
@click.pass_obj
def run_rollback(context: CommandContext, number: int, file: Path, run_id: str | None) -> None:
    """Write the request to FILE that a paused run go on from the model of round MODEL, 0 the initial one.

    `hemofed-custodian sign` on the custodian's machine signs it, and `run import-rollback` takes it. Every hospital
    sees and verifies it. Only the very hospitals of the model's earlier sum take part in the next round.
    """
    app = context.app()
    with app.store.read() as session:
        chosen = listings.chosen_run(session, run_id)
        model = export.choose(session, chosen, number)
        rollback = rollbacks.request_rollback(session, chosen, model)
        passed = rollbacks.passed(session, chosen, model)
        write_file(file, RollbackRequest(rollback.to_bytes(), SignedPlan.FromString(chosen.signed_plan).plan, passed))
    click.echo(f"{file}: run {chosen.name} back to model {model.digest.hex()} of round {number}.")
    click.echo(f"On the custodian's machine: hemofed-custodian sign {file.name}", err=True)
    click.echo(f"Back here:                  hemofed-aggregator run import-rollback {file.name}.signed", err=True)


@run.command("import-rollback")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def run_import_rollback(context: CommandContext, file: Path) -> None:
    """Let the run go on from the model of the signed rollback in FILE; `run resume` begins the next round."""
    app = context.app()
    actor = context.actor(app)
    content = read_file(file)
    if not isinstance(content, SignedRollbackFile):
        raise RequestRefused(f"{file}: expected a signed rollback; `run rollback`, then `hemofed-custodian sign`")
    with app.store.read() as session:
        custodian = custodian_in_force(session, load_authority(app))
    run, rollback = rollbacks.import_rollback(app, parse(SignedRollback, content.signed), custodian, actor)
    click.echo(f"Run {run.run_id.hex()} ({run.name}) goes on from the model of round {rollback.model_round}.")
    click.echo("Next: hemofed-aggregator run resume", err=True)


@run.command("abort")
@of_run
# It asks first, because nothing brings the updates in progress back.
@click.confirmation_option("--yes", prompt="Abort for good? Updates in progress are thrown away.")
@click.pass_obj
def run_abort(context: CommandContext, run_id: str | None) -> None:
    """End the run now. The models so far stay."""
    _change_run(context, run_id, lifecycle.abort, "aborted; its models stay")


def _change_run(context: CommandContext, run_id: str | None, change: Callable[..., None], outcome: str) -> None:
    app = context.app()
    actor = context.actor(app)
    # The choice and the change are two transactions; the change refuses a run that is in another state by then.
    with app.store.read() as session:
        run: Run = listings.chosen_run(session, run_id)
    change(app, run.run_id, actor=actor)
    click.echo(f"Run {run.run_id.hex()} ({run.name}): {outcome}.")
