"""The report of a simulation: Markdown, JSON, and a figure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from deploy.simulation.figure import draw
from deploy.simulation.patients import SimulatedSite
from deploy.simulation.seeds import SeedResult
from deploy.simulation.settings import SITES, UNSEEN, SimulationSettings
from deploy.simulation.summary import ARMS, SeedSummary, Summary
from site_client.benchmark.svg import FiguresMissing
from site_client.model.inputs import PIPELINE_VERSION
from site_client.phantom.streams import GENERATOR_VERSION

_POPULATIONS: Final = {"sites": "mean of the five sites", "worst": "worst site", "unseen": "unseen site U"}
NOTICE: Final = "Synthetic patients: a result on them is never clinical evidence."


@dataclass(frozen=True)
class SimulationOrigin:
    """The origin of the figures: torch's version, the compute, the machine, the processes, the command."""

    torch: str
    compute: str
    machine: str
    workers: int
    command: str


def write_report(
    out: Path,
    settings: SimulationSettings,
    results: Sequence[SeedResult],
    summary: Summary,
    origin: SimulationOrigin,
    sites: list[SimulatedSite],
) -> None:
    """Write simulation.md, simulation.json and, where matplotlib is installed, simulation.svg to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "notice": NOTICE,
        "settings": asdict(settings),
        "digest": settings.digest,
        "generator": GENERATOR_VERSION,
        "pipeline": PIPELINE_VERSION,
        "origin": asdict(origin),
        "seeds": [result.seed for result in results],
        "wall_s": [round(result.wall_s, 1) for result in results],
        "model_digests": [result.digests for result in results],
        "clipped_updates_by_round": [result.clipped for result in results],
        "training_studies": {site.name: len(site.training) for site in sites if site.name != UNSEEN},
        "validation_studies": {site.name: len(site.validation) for site in sites if site.name != UNSEEN},
        "in_order": summary.in_order,
        **asdict(summary),
    }
    (out / "simulation.json").write_text(json.dumps(content, indent=1) + "\n")
    try:
        (out / "simulation.svg").write_text(draw(summary))
        figure_line = "![curves and intervals](simulation.svg)"
    except FiguresMissing as error:
        figure_line = f"No figure: {error}."
    (out / "simulation.md").write_text(_markdown(settings, results, summary, origin, sites, figure_line))


def _markdown(
    settings: SimulationSettings,
    results: Sequence[SeedResult],
    summary: Summary,
    origin: SimulationOrigin,
    sites: list[SimulatedSite],
    figure_line: str,
) -> str:
    paragraphs = [
        "# Federated against central against alone",
        f"{NOTICE} Made by",
        f"    {origin.command}",
        _circumstances(settings, results, origin, sites),
        "## AUC of `any`, per slice",
        _table({_POPULATIONS[name]: row for name, row in summary.auc.items()}),
        _order(summary),
        "| difference, mean of the five sites unless said | AUC |\n|---|---|\n"
        + "\n".join(f"| {name} | {_text(figure)} |" for name, figure in summary.differences.items()),
        figure_line,
        "## Site by site, per slice",
        _table({f"{site} ({_counts(summary, site)})": row for site, row in summary.by_site.items()}),
        "## Per study (the highest slice decides)",
        _table({_POPULATIONS[name]: row for name, row in summary.study_auc.items()}),
        "## Seeds",
        _seeds(results, summary),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _circumstances(
    settings: SimulationSettings, results: Sequence[SeedResult], origin: SimulationOrigin, sites: list[SimulatedSite]
) -> str:
    training = ", ".join(f"{site.name} {len(site.training)}" for site in sites if site.name in SITES)
    clipped = sum(sum(result.clipped) for result in results)
    updates = len(results) * settings.rounds * len(SITES)
    return (
        f"`{settings.architecture}`, {settings.image_size_px} px, {settings.rounds} rounds of {settings.epochs} local "
        f"passes; central and local: {settings.passes} passes. Training studies: {training}; another fifth of the "
        f"patients validates. Patients are the same for all {len(results)} seeds; weights, order, augmentation and "
        f"rounding are not. Updates in {settings.bits} bits, clipped at norm {settings.clip_norm:g} "
        f"({clipped} of {updates} were). "
        f"torch {origin.torch}, {origin.compute}, {origin.machine}, {origin.workers} workers. "
        "Intervals: 95 %, 2000 bootstrap draws of test patients within each site, the same for all arms. They "
        "cover the choice of patients; the seeds show the spread of trainings."
    )


def _order(summary: Summary) -> str:
    sites = summary.auc["sites"]
    names = " < ".join(sorted(ARMS, key=lambda arm: sites[arm].value))
    gap = summary.differences["central - federated"].value
    return f"Order by the mean of the five sites: **{names}**; gap to central {gap:.3f}."


def _table(rows: dict[str, dict[str, SeedSummary]]) -> str:
    head = f"| | {' | '.join(ARMS)} |\n|---|{'---|' * len(ARMS)}\n"
    return head + "\n".join(f"| {name} | {' | '.join(_text(row[arm]) for arm in ARMS)} |" for name, row in rows.items())


def _text(figure: SeedSummary) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def _counts(summary: Summary, site: str) -> str:
    return f"{summary.test_patients[site]} test patients, {summary.test_positives[site]} positive studies"


def _seeds(results: Sequence[SeedResult], summary: Summary) -> str:
    head = "| seed | " + " | ".join(f"{arm} AUC | {arm} log loss" for arm in ARMS) + " | wall s |\n"
    lines = [head + "|---|" + "---|" * (2 * len(ARMS) + 1)]
    for index, result in enumerate(results):
        cells = [
            f"{summary.auc['sites'][arm].per_seed[index]:.3f} | {summary.log_loss[arm][index]:.3f}" for arm in ARMS
        ]
        lines.append(f"| {result.seed} | {' | '.join(cells)} | {result.wall_s:.0f} |")
    note = "Log loss: weighted as in RSNA 2019, not corrected for the training's sampling of half positive studies."
    return "\n".join(lines) + "\n\n" + note
