"""Turns seeds into figures: central, federated and local arms with intervals, and the differences between them.

The sampling unit is the patient. A draw takes each site's test patients with replacement. Every arm and seed is
measured on the same draws, so differences are paired.

The figure of an arm is its mean over seeds. "sites" is the mean over the five federated sites of the AUC of `any` on
the site's own test patients; "worst" is the lowest of the five; "unseen" is the AUC at the site that never trained. The
local arm is each site's own model, and at the unseen site the mean of the five.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from deploy.simulation.scoring import Scores
from deploy.simulation.seeds import CENTRAL, FEDERATED, LOCALS, SeedResult, local
from deploy.simulation.settings import SITES, UNSEEN
from site_client.inference.intervals import DRAWS, Scale, degrees_of_freedom, draw_patients, interval
from site_client.inference.measures import Measure, of_draws
from site_client.inference.ranked import Reals

ARMS: Final = ("local", FEDERATED, CENTRAL)
_DRAW_SEED: Final = 20_240_229


@dataclass(frozen=True)
class SeedSummary:
    """A figure: its mean over seeds, the 95 % interval of that mean over patients, and each seed's own value."""

    value: float
    low: float | None
    high: float | None
    per_seed: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """All figures of a simulation.

    Attributes:
        auc: By population ("sites", "worst", "unseen") and arm, per slice.
        study_auc: Likewise, per study.
        by_site: By site and arm, per slice.
        differences: By name, per slice.
        log_loss: Weighted log loss by arm, mean over the sites, one value a seed.
        curves: By arm, mean over seeds, see `Trained`.
        test_patients: Their number, by site.
        test_positives: Positive test studies, by site.
    """

    auc: dict[str, dict[str, SeedSummary]]
    study_auc: dict[str, dict[str, SeedSummary]]
    by_site: dict[str, dict[str, SeedSummary]]
    differences: dict[str, SeedSummary]
    log_loss: dict[str, tuple[float, ...]]
    curves: dict[str, tuple[float, ...]]
    test_patients: dict[str, int]
    test_positives: dict[str, int]

    @property
    def in_order(self) -> bool:
        """Whether local < federated < central, by the mean over the sites."""
        sites = self.auc["sites"]
        return sites["local"].value < sites[FEDERATED].value < sites[CENTRAL].value


def summarize(results: Sequence[SeedResult], draws: int = DRAWS) -> Summary:
    """Summarize the results of one seed or more."""
    slices = _table(results, lambda scores: scores, draws)
    studies = _table(results, Scores.of_studies, draws)
    populations = {name: _population(slices, name) for name in ("sites", "worst", "unseen")}
    sites, unseen = populations["sites"], populations["unseen"]
    freedom = _freedoms(results[0])
    of_site = {site: results[0].scores[CENTRAL, site] for site in (*SITES, UNSEEN)}
    return Summary(
        auc={name: {arm: _figure(table[arm], freedom[name]) for arm in ARMS} for name, table in populations.items()},
        study_auc={
            name: {arm: _figure(_population(studies, name)[arm], freedom[name]) for arm in ARMS}
            for name in ("sites", "worst", "unseen")
        },
        by_site={site: {arm: _figure(slices[arm, site], freedom[site]) for arm in ARMS} for site in (*SITES, UNSEEN)},
        differences={
            f"{prefix}{first} - {second}": _figure(values[first] - values[second], freedom[name], "difference")
            for prefix, name, values in (("", "sites", sites), ("unseen: ", "unseen", unseen))
            for first, second in ((CENTRAL, FEDERATED), (FEDERATED, "local"))
        },
        log_loss={arm: tuple(_log_loss(result, arm) for result in results) for arm in ARMS},
        curves=_curves(results),
        test_patients={site: scores.patients for site, scores in of_site.items()},
        test_positives={site: int(scores.of_studies().labels[:, -1].sum()) for site, scores in of_site.items()},
    )


def _table(results: Sequence[SeedResult], view: Callable[[Scores], Scores], draws: int) -> dict[tuple[str, str], Reals]:
    """AUC of `any` by arm and site: f64[seeds, draws+1]."""
    rng = np.random.default_rng(_DRAW_SEED)
    sizes = {site: results[0].scores[CENTRAL, site].patients for site in (*SITES, UNSEEN)}
    # Row 0 is the set itself.
    drawn = {site: np.vstack([np.ones(size), draw_patients(size, draws, rng)]) for site, size in sizes.items()}

    def auc(model: str, site: str) -> Reals:
        columns = [view(result.scores[model, site]).column() for result in results]
        return np.stack([of_draws(column, Measure.AUC, drawn[site]) for column in columns])

    table = {(arm, site): auc(arm, site) for arm in (CENTRAL, FEDERATED) for site in (*SITES, UNSEEN)}
    table |= {("local", site): auc(local(site), site) for site in SITES}
    table["local", UNSEEN] = np.mean([auc(name, UNSEEN) for name in LOCALS], axis=0)
    return table


def _population(table: dict[tuple[str, str], Reals], name: str) -> dict[str, Reals]:
    """f64[seeds, draws+1] by arm."""
    if name == "unseen":
        return {arm: table[arm, UNSEEN] for arm in ARMS}
    together = {arm: np.stack([table[arm, site] for site in SITES]) for arm in ARMS}
    if name == "worst":
        return {arm: values.min(axis=0) for arm, values in together.items()}
    return {arm: values.mean(axis=0) for arm, values in together.items()}


def _figure(values: Reals, freedom: int | None, scale: Scale = "share") -> SeedSummary:
    draws = values.mean(axis=0)
    low, high = interval(float(draws[0]), draws[1:], scale, freedom)
    return SeedSummary(float(draws[0]), low, high, tuple(float(seed_value) for seed_value in values[:, 0]))


def _freedoms(result: SeedResult) -> dict[str, int | None]:
    """Degrees of freedom by site and population: patients are drawn within each site."""
    columns = {site: result.scores[CENTRAL, site].column() for site in (*SITES, UNSEEN)}
    counts = {site: (column.positive_patients, column.negative_patients) for site, column in columns.items()}
    counts["sites"] = (sum(counts[site][0] for site in SITES), sum(counts[site][1] for site in SITES))
    counts["worst"] = min((counts[site] for site in SITES), key=min)
    counts["unseen"] = counts[UNSEEN]
    return {name: degrees_of_freedom(*own) for name, own in counts.items()}


def _log_loss(result: SeedResult, arm: str) -> float:
    models = {site: local(site) if arm == "local" else arm for site in SITES}
    return float(np.mean([result.scores[model, site].log_loss for site, model in models.items()]))


def _curves(results: Sequence[SeedResult]) -> dict[str, tuple[float, ...]]:
    def mean(names: Sequence[str]) -> tuple[float, ...]:
        curves = np.array([result.curves[name] for result in results for name in names])
        defined = curves[~np.isnan(curves).any(axis=1)]  # validation slices of one kind only have no AUC
        return tuple(defined.mean(axis=0).tolist()) if len(defined) else (float("nan"),) * curves.shape[1]

    return {"local": mean(LOCALS), FEDERATED: mean([FEDERATED]), CENTRAL: mean([CENTRAL])}
