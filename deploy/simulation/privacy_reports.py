"""The two reports about privacy: an audit of the noise, and the price of an epsilon in AUC."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from deploy.simulation.arms import TaskContext
from deploy.simulation.audit import CANARIES, DELTA, GUESSES, audit, audit_plan
from deploy.simulation.features import feature_sets
from deploy.simulation.patients import SimulatedSite
from deploy.simulation.private_heads import ROUNDS, HeadResult, heads_at, predicted_loss, split_sites
from site_client.benchmark.svg import FiguresMissing, as_svg, line_style, style

AUDIT_EPSILON: Final = 4.0
AUDIT_SEEDS: Final = 20
EPSILONS: Final = (math.inf, 8.0, 4.0, 2.0, 1.0)


def audit_report(out: Path, command: str) -> str:
    """Audit one round of epsilon 4 with 20 seeds, and write audit.md and audit.json to `out`.

    Returns:
        The text of audit.md.
    """
    plan = audit_plan(AUDIT_EPSILON)
    results = [audit(plan, seed) for seed in range(1, AUDIT_SEEDS + 1)]
    largest = max(result.epsilon_low for result in results)
    verdict = "The claim is not falsified." if largest <= AUDIT_EPSILON else "THE CLAIM IS FALSIFIED."
    lines = [
        "# Audit of the noise in a private round",
        "",
        f"Made by `{command}`. One round, every patient part of it, {CANARIES} canaries, {GUESSES} guesses, "
        f"delta {DELTA:g}. Lower bounds of epsilon hold with 95 % each.",
        "",
        f"Claimed: {AUDIT_EPSILON:g}. Largest lower bound of {len(results)} seeds: {largest:.2f}. {verdict}",
        "",
        "| seed | right guesses | epsilon is at least |",
        "|---|---|---|",
        *(f"| {seed} | {result.correct} | {result.epsilon_low:.2f} |" for seed, result in enumerate(results, 1)),
        "",
        "An audit falsifies and never proves. Without noise it finds 5.09: `tests/system/test_privacy_audit.py` has "
        "the mutants that it catches.",
    ]
    return _write(out, "audit", lines, {"claimed": AUDIT_EPSILON, "results": [asdict(result) for result in results]})


def heads_report(out: Path, context: TaskContext, sites: list[SimulatedSite], seeds: int, command: str) -> str:
    """Train heads at each epsilon, and write private_heads.md, .json and .svg to `out`.

    Returns:
        The text of private_heads.md.
    """
    vectors, test = feature_sets(context, 1, sites)
    federated = list(split_sites(vectors, len(sites) - 1, 1))
    results = []
    for epsilon in EPSILONS:
        results.append(heads_at(epsilon, federated, test, range(1, seeds + 1)))
        click.echo(f"epsilon {epsilon:g}: AUC {statistics.mean(results[-1].auc):.3f}")
    without = statistics.mean(results[0].auc)
    size = f"{len(federated)} sites of {len(federated[0].x)} vectors with {vectors.x.shape[1]} features"
    lines = [
        "# What an epsilon costs: heads on a frozen trunk",
        "",
        "Synthetic patients: a result on them is never clinical evidence. Made by",
        "",
        f"    {command}",
        "",
        f"{size}; each vector, a slice of a phantom, stands for one patient. {ROUNDS} rounds, {seeds} seeds; "
        f"{len(test.x)} vectors of an unseen site judge. r is the noise over the signal (docs/PRIVACY.md).",
        "",
        "| epsilon | r | server rate | AUC of any, each seed | mean | lost | the rule expects |",
        "|---|---|---|---|---|---|---|",
        *(_row(result, without) for result in results),
        "",
        "![AUC over epsilon](private_heads.svg)",
    ]
    content = {"size": size, "test": len(test.x), "results": [_as_json(result) for result in results]}
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "private_heads.svg").write_text(_figure(results, without))
    except FiguresMissing as error:
        click.echo(str(error), err=True)
    return _write(out, "private_heads", lines, content)


def _row(result: HeadResult, without: float) -> str:
    mean = statistics.mean(result.auc)
    aucs = ", ".join(f"{auc:.3f}" for auc in result.auc)
    low, high = predicted_loss(result.ratio)
    expected = f"{low:.2f} to {high:.2f}" if math.isfinite(result.epsilon) else "–"
    name = f"{result.epsilon:g}" if math.isfinite(result.epsilon) else "no noise"
    return (
        f"| {name} | {result.ratio:.3f} | {result.rate:g} | {aucs} | {mean:.3f} | {without - mean:.3f} | {expected} |"
    )


def _as_json(result: HeadResult) -> dict[str, object]:
    return asdict(result) | {"epsilon": result.epsilon if math.isfinite(result.epsilon) else None}


def _figure(results: Sequence[HeadResult], without: float) -> str:
    noised = [result for result in results if math.isfinite(result.epsilon)]
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 3.6))
        axes = figure.subplots()
        places = [result.epsilon for result in noised]
        lost = [without - statistics.mean(result.auc) for result in noised]
        look: dict[str, Any] = line_style(0)
        axes.plot(places, lost, label="measured, mean over seeds", **look)
        for result in noised:
            axes.plot([result.epsilon] * len(result.auc), [without - auc for auc in result.auc], "_", color="#0072B2")
        bounds = [predicted_loss(result.ratio) for result in noised]
        axes.fill_between(
            places, [low for low, _ in bounds], [high for _, high in bounds], alpha=0.2, label="the rule expects"
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_xlabel("epsilon of the whole training")
        axes.set_ylabel("AUC lost against no noise")
        axes.legend()
        return as_svg(figure, "AUC lost over epsilon, measured and as the rule expects")


def _write(out: Path, name: str, lines: list[str], content: dict[str, object]) -> str:
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    (out / f"{name}.md").write_text(text)
    (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return text
