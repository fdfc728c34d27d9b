"""Reports of `plan check` and `run start --dry-run` about a plan."""

from dataclasses import asdict, dataclass
from pathlib import Path

import click
from federation import forecast
from federation.manifest import load_description, load_model
from federation.plan import TrainingPlan

from aggregator.commands.printing import print_json
from aggregator.context import AppContext
from aggregator.runs import start_check
from aggregator.runs.forecast_words import forecast_words, gaussian_words
from aggregator.runs.gaussian_pld import gaussian_epsilon
from aggregator.runs.start_check import MeasuredRounds, Participation


@dataclass(frozen=True)
class PlanReport:
    """A plan's figures, and why its run could not begin or would be in vain.

    Attributes:
        plan: The plan.
        sites: Who may take part; None where there is no state folder.
        measured: What earlier rounds took; None before the first, or without a state folder.
        hindrances: Why a run could not begin, one sentence each.
    """

    plan: TrainingPlan
    sites: Participation | None
    measured: MeasuredRounds | None
    hindrances: tuple[str, ...]

    @property
    def objections(self) -> tuple[str, ...]:
        """The hindrances, and why a run would be in vain; empty for a plan that can begin and work."""
        return (*self.hindrances, *forecast.objections(self.plan))

    def print(self, as_json: bool) -> None:
        """Print everything but the objections as text, or all of it as JSON."""
        plan, private = self.plan, forecast.privacy_forecast(self.plan)
        gaussian = None if plan.privacy is None else gaussian_epsilon(plan.privacy, plan.rounds)
        if as_json:
            sites = None
            if self.sites is not None:
                ends = self.sites.roster_ends
                sites = asdict(self.sites) | {"roster_ends": ends and ends.isoformat(timespec="seconds")}
            print_json(
                {
                    "traffic": asdict(forecast.traffic(plan)),
                    "privacy": private and asdict(private) | {"gaussian_epsilon": gaussian},
                    "sites": sites,
                    "measured": self.measured and asdict(self.measured),
                    "objections": self.objections,
                }
            )
            return
        click.echo(f"{plan.name}: {plan.architecture}, {plan.rounds} rounds and one that evaluates")
        if self.sites is None:
            click.echo("may take part   not known here: this machine has no state folder")
        else:
            click.echo("\n".join(start_check.start_words(plan, self.sites, self.measured)))
        click.echo("\n".join(forecast_words(plan)))
        if private is not None:
            click.echo(gaussian_words(gaussian))


def plan_report(plan: TrainingPlan, model: Path, app: AppContext | None, *, queue: bool = False) -> PlanReport:
    """Check a plan against its initial model, and against the rows of `app` if there is a state folder.

    Args:
        plan: The plan.
        model: The file of its initial model.
        app: The aggregator.
        queue: Whether the run may wait for another one to end.
    """
    hindrances = start_check.model_objections(plan, load_model(model), load_description(model))
    sites = measured = None
    if app is not None:
        with app.store.read() as session:
            sites = start_check.participation(session, app.clock())
            measured = start_check.measured_rounds(session)
        hindrances += start_check.start_objections(plan, sites, measured, queue=queue)
    return PlanReport(plan, sites, measured, tuple(hindrances))
