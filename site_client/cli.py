"""hemofed-site: what hospital IT types. Every command parses, calls one function, and answers.

Imports are inside the commands: `agent` must start without torch and pydicom, `trainer` without grpc.
"""

import sys
from pathlib import Path

import click

from site_client.config import DEFAULT_FILE, load
from site_client.errors import SiteError

CONFIG = click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_FILE,
    envvar="HEMOFED_SITE_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The site.toml to read.",
)


_FAILED, _NEEDS_SOMEBODY = 1, 78  # the second, EX_CONFIG of sysexits.h, tells the units not to try again
_SERVICES = ("agent", "trainer")


class _Commands(click.Group):
    """Turns an expected failure into its one sentence and its exit status; anything else keeps its traceback."""

    def invoke(self, context: click.Context) -> object:
        from federation.errors import FederationError

        try:
            return super().invoke(context)
        except (SiteError, FederationError) as error:
            click.echo(f"hemofed-site: {error}", err=True)
            again = isinstance(error, SiteError) and error.retryable
            context.exit(_NEEDS_SOMEBODY if context.invoked_subcommand in _SERVICES and not again else _FAILED)


@click.group(cls=_Commands)
@click.version_option(package_name="hemofed")
def main() -> None:
    """Takes part in federated training without showing an image to anybody."""


@main.command()
@click.argument("address")
@click.argument("token")
@CONFIG
def join(address: str, token: str, config: Path) -> None:
    """Enrol this host with the consortium, at ADDRESS (host:port) with the TOKEN the coordinator gave you."""
    from site_client.agent.commands.join import join as run

    run(load(config), address, token, say=click.echo)


@main.command()
@click.confirmation_option(prompt="Leave for good? Only a new invitation by the coordinator brings this site back")
@CONFIG
def leave(config: Path) -> None:
    """Tell the coordinator that this site goes for good. Stop the agent first; then the package may be purged."""
    from site_client.agent.commands.leave import leave as run

    click.echo(run(load(config)))


@main.command()
@CONFIG
def agent(config: Path) -> None:
    """Run the agent: it has the network and never sees a patient."""
    from site_client.agent.service import run

    sys.exit(run(load(config)))


@main.command()
@CONFIG
def trainer(config: Path) -> None:
    """Run the trainer: it sees patients and has no network."""
    from site_client.trainer.service import run

    sys.exit(run(load(config), config))


@main.command("init-weights")
@click.option("--architecture", required=True, help="Network, a name of the registry.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@click.option(
    "--from",
    "published",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Published weights for the backbone of an -affine architecture: .pth or .safetensors.",
)
@click.option("--licence", default="", help="Of --from, as you know it. It stands in the plan and on the dashboard.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A .safetensors file.")
def init_weights(architecture: str, seed: int, published: Path | None, licence: str, out: Path) -> None:
    """Write the initial weights of a network, for a coordinator to start a run with.

    Without --from they are fresh. A file of ImageNet weights is for research only, by ImageNet's own terms.
    """
    from site_client.model.initial_weights import write_fresh, write_published

    if published is None:
        click.echo(write_fresh(architecture, seed, out))
        return
    if not licence.strip():
        raise click.UsageError("expected --licence with --from, got none; say what the file's publisher allows")
    click.echo(write_published(architecture, seed, published, licence, out))


@main.command()
@CONFIG
def run(config: Path) -> None:
    """Run agent and trainer as two processes; ends when either does. For systemd use the two units instead."""
    from site_client.foreground import run_pair

    load(config)
    sys.exit(run_pair(config))


@main.command()
@click.option("--for", "minutes", type=click.IntRange(1), metavar="MINUTES", help="Until then; else until resume.")
@click.option("--after-round", is_flag=True, help="Let the job at hand end first.")
@CONFIG
def pause(minutes: int | None, after_round: bool, config: Path) -> None:
    """Stop training within a second, whatever the idle gate says. The agent goes on answering."""
    from datetime import UTC, datetime, timedelta

    from site_client.trainer.idle import operator

    length = None if minutes is None else timedelta(minutes=minutes)
    operator.pause(load(config).folders.state, datetime.now(UTC), length, after_round=after_round)
    click.echo("paused" if minutes is None else f"paused for {minutes} minutes")


@main.command()
@CONFIG
def resume(config: Path) -> None:
    """Take a pause back: the idle gate decides again."""
    from site_client.trainer.idle import operator

    click.echo("resumed" if operator.resume(load(config).folders.state) else "there was no pause")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@CONFIG
def status(config: Path, as_json: bool) -> None:
    """Show what this site is doing, and how old each value is."""
    from site_client.status import gather, render_json, render_text

    facts = gather(load(config))
    click.echo(render_json(facts) if as_json else render_text(facts))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option("--series", "with_series", is_flag=True, help="Also every series by pseudonym, with its score sheet.")
@CONFIG
def catalog(config: Path, as_json: bool, with_series: bool) -> None:
    """Read the export and its labels, and count what can be trained on, what cannot, and why."""
    from site_client.ingest.catalog.command import catalog_json, catalog_text

    settings = load(config)
    click.echo(catalog_json(settings, with_series) if as_json else catalog_text(settings, with_series))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of lines.")
@click.option("--bundle", type=click.Path(path_type=Path, dir_okay=False), help="Also write a redacted support file.")
@CONFIG
def doctor(as_json: bool, bundle: Path | None, config: Path) -> None:
    """Look at everything this site needs; each red line says how to mend it. Exit status 0, or 2 with a red line."""
    from site_client.doctor.command import examine, exit_status, render_json, render_text

    lines = examine(config)
    click.echo(render_json(lines) if as_json else render_text(lines, colors=sys.stdout.isatty()))
    if bundle is not None:
        from site_client.doctor.bundle import bundle as make
        from site_client.files import replace_file

        replace_file(bundle, make(load(config), lines))
        click.echo(f"support bundle, redacted: {bundle}", err=True)
    sys.exit(exit_status(lines))


@main.command()
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write one HTML page to file.")
@click.option("--no-canary", is_flag=True, help="Leave the drill out, a round on synthetic studies (minutes of CPU).")
@CONFIG
def prove(report: Path | None, no_canary: bool, config: Path) -> None:
    """Show the wall on this machine: what each side tries and the kernel refuses. As root, under systemd.

    Exit status 0 when all was shown, 2 when something is broken, 3 when something could not be shown here.
    """
    from datetime import UTC, datetime

    from site_client.files import replace_file
    from site_client.prove.command import prove as show
    from site_client.prove.report import exit_status, render_html, render_text

    findings = list(show(config, with_drill=not no_canary))
    click.echo(render_text(findings))
    if report is not None:
        replace_file(report, render_html(findings, load(config).name, datetime.now(UTC)).encode(), 0o644)
        click.echo(f"report: {report}", err=True)
    sys.exit(exit_status(findings))


@main.group()
def plan() -> None:
    """Training plans that wait for this hospital's yes or no."""


@plan.command("show")
@click.argument("digest", required=False)
@CONFIG
def plan_show(digest: str | None, config: Path) -> None:
    """Show the plans this site knows, or one of them in full."""
    from site_client.agent.rounds.plans import Plans, describe, summarize

    settings = load(config)
    plans = Plans(settings.folders.agent / "plans")
    click.echo(summarize(plans) if digest is None else describe(plans.find(digest), settings.policy))


@plan.command("approve")
@click.argument("digest")
@CONFIG
def plan_approve(digest: str, config: Path) -> None:
    """Let this site train under the plan whose digest begins with DIGEST (at least 8 characters)."""
    _decide(config, digest, approved=True)


@plan.command("refuse")
@click.argument("digest")
@CONFIG
def plan_refuse(digest: str, config: Path) -> None:
    """Keep this site out of every round of that plan."""
    _decide(config, digest, approved=False)


@main.group()
def ledger() -> None:
    """What left this site: every message, one signed line each, chained."""


_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
_ANCHOR = click.option("--anchor", metavar="ENTRIES:HEAD", help="A length and head the ledger must have had.")


@ledger.command("show")
@click.argument("entry", required=False, type=click.IntRange(1))
@click.option("--last", default=20, show_default=True, type=click.IntRange(1), help="How many of the newest.")
@_JSON
@CONFIG
def ledger_show(entry: int | None, last: int, as_json: bool, config: Path) -> None:
    """Show the newest entries, or open ENTRY with its payload."""
    from site_client.agent.commands.ledger import LedgerView

    view = LedgerView(load(config))
    click.echo(view.show(last, as_json=as_json) if entry is None else view.show_entry(entry, as_json=as_json))


@ledger.command("totals")
@_JSON
@CONFIG
def ledger_totals(as_json: bool, config: Path) -> None:
    """Messages and bytes by day and address, to hold against a proxy's log."""
    from site_client.agent.commands.ledger import LedgerView

    click.echo(LedgerView(load(config)).totals(as_json=as_json))


@ledger.command("verify")
@click.option("--file", "exported", type=click.Path(path_type=Path, dir_okay=False), help="An exported ledger instead.")
@click.option("--key", help="With --file: the site's Ed25519 public key, in hex, as the roster has it.")
@_ANCHOR
@_JSON
@CONFIG
def ledger_verify(exported: Path | None, key: str | None, anchor: str | None, as_json: bool, config: Path) -> None:
    """Check every line, link, signature and kept payload; the first bad entry is named, with exit status 1."""
    from site_client.agent.commands.ledger import LedgerView, verify_file

    if exported is not None:
        click.echo(verify_file(exported, key, anchor, as_json=as_json))
    else:
        click.echo(LedgerView(load(config)).verify(anchor, as_json=as_json))


@ledger.command("export")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@CONFIG
def ledger_export(out: Path, form: str, config: Path) -> None:
    """Write the ledger to a file: jsonl can be verified anywhere, csv is for reading."""
    from site_client.agent.commands.ledger import LedgerView

    click.echo(LedgerView(load(config)).export(out, form))


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.pass_context
def phantom(context: click.Context) -> None:
    """Write synthetic head CT studies with labels, for tests and demonstrations."""
    from site_client.phantom.command import phantom as command

    command.main(context.args, prog_name=f"{context.find_root().info_name} phantom", standalone_mode=False)


_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


@main.command(add_help_option=False, context_settings=_PASSED_ON)
@click.pass_context
def predict(context: click.Context) -> None:
    """Ask a model about every head CT in a folder. Research only."""
    from site_client.inference.command import predict_command

    _pass_on(context, predict_command)


@main.command(add_help_option=False, context_settings=_PASSED_ON)
@click.pass_context
def evaluate(context: click.Context) -> None:
    """Judge a model on studies with labels: JSON and a page of HTML."""
    from site_client.inference.command import evaluate_command

    _pass_on(context, evaluate_command)


@main.command(add_help_option=False, context_settings=_PASSED_ON)
@click.pass_context
def calibrate(context: click.Context) -> None:
    """Fit a model's chances to this site's patients, for predict and evaluate."""
    from site_client.inference.command import calibrate_command

    _pass_on(context, calibrate_command)


@main.command(add_help_option=False, context_settings=_PASSED_ON)
@click.pass_context
def benchmark(context: click.Context) -> None:
    """Train every network on the same patients and write the paper's table."""
    from site_client.benchmark.command import benchmark as command

    _pass_on(context, command)


def _pass_on(context: click.Context, command: click.Command) -> None:
    name = f"{context.find_root().info_name} {context.info_name}"
    context.exit(command.main(context.args, prog_name=name, standalone_mode=False, obj=tuple(context.args)) or 0)


def _decide(config: Path, digest: str, *, approved: bool) -> None:
    from site_client.agent.rounds.plans import Plans

    plans = Plans(load(config).folders.agent / "plans")
    held = plans.find(digest)
    plans.decide(held.digest, approved=approved)
    click.echo(f"{'approved' if approved else 'refused'}: {held.plan.name} ({held.digest.hex()[:16]})")


if __name__ == "__main__":
    main()
