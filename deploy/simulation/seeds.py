"""One seed: all arms trained and scored, kept in one file, so that a simulation resumes seed by seed."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from federation.manifest import save_model

from deploy.simulation.arms import TaskContext, Trained, federate, train_pooled
from deploy.simulation.patients import SimulatedSite
from deploy.simulation.scoring import Scores, score
from deploy.simulation.settings import SITES, UNSEEN

CENTRAL: Final = "central"
FEDERATED: Final = "federated"


def local(site: str) -> str:
    """Return the name of a site's local arm."""
    return f"local-{site}"


LOCALS: Final = tuple(local(site) for site in SITES)
MODELS: Final = (CENTRAL, FEDERATED, *LOCALS)


@dataclass(frozen=True, eq=False)
class SeedResult:
    """The result of one seed.

    Attributes:
        seed: Of the trainings.
        scores: By model and test site. A local model is scored at its own site and at the unseen one.
        curves: By model, see `Trained`.
        clipped: Clipped updates of the federation, by round.
        digests: Of the last models, in hex.
        wall_s: Seconds of a clock.
    """

    seed: int
    scores: dict[tuple[str, str], Scores]
    curves: dict[str, tuple[float, ...]]
    clipped: tuple[int, ...]
    digests: dict[str, str]
    wall_s: float


def result_of(context: TaskContext, seed: int, sites: list[SimulatedSite], pool: Executor, folder: Path) -> SeedResult:
    """Read the result of a seed, or make it and write it to `folder` with the central and the federated model."""
    path = folder / f"seed-{seed}.npz"
    if not path.exists():
        start = time.monotonic()
        trained = _train(context, seed, sites, pool)
        folder.mkdir(parents=True, exist_ok=True)
        # Order: the scores last. Their file says that the seed is done, and a stop before it begins the seed anew.
        for name in (CENTRAL, FEDERATED):
            save_model(folder / f"seed-{seed}-{name}.safetensors", trained[name].model)
        save(path, _score(context, seed, sites, trained, pool, start))
    return _load(path)


def _train(context: TaskContext, seed: int, sites: list[SimulatedSite], pool: Executor) -> dict[str, Trained]:
    federated_sites = [site for site in sites if site.name != UNSEEN]
    pooled: dict[str, list[SimulatedSite]] = {CENTRAL: federated_sites}
    pooled |= {local(site.name): [site] for site in federated_sites}
    futures: dict[str, Future[Trained]] = {
        name: pool.submit(train_pooled, context, seed, name, pooled_sites) for name, pooled_sites in pooled.items()
    }
    # Submitted first: the pooled arms train while this thread waits for the rounds of the federation.
    trained = {FEDERATED: federate(context, seed, federated_sites, pool)}
    return trained | {name: future.result() for name, future in futures.items()}


def _score(
    context: TaskContext,
    seed: int,
    sites: list[SimulatedSite],
    trained: dict[str, Trained],
    pool: Executor,
    start: float,
) -> SeedResult:
    futures = {
        (name, site.name): pool.submit(score, context, trained[name].model, site.test)
        for name in MODELS
        for site in sites
        if not name.startswith("local") or site.name == UNSEEN or name == local(site.name)
    }
    return SeedResult(
        seed,
        {key: future.result() for key, future in futures.items()},
        {name: trained[name].curve for name in MODELS},
        trained[FEDERATED].clipped,
        {name: trained[name].model.digest.hex() for name in MODELS},
        time.monotonic() - start,
    )


_ARRAYS: Final[Sequence[str]] = ("logits", "labels", "patient", "study")


def save(path: Path, result: SeedResult) -> None:
    """Write a result, whole or not at all."""
    facts = {
        "seed": result.seed,
        "scores": [list(key) for key in result.scores],
        "curves": result.curves,
        "clipped": result.clipped,
        "digests": result.digests,
        "wall_s": result.wall_s,
    }
    arrays = {
        f"{model}/{site}/{name}": getattr(scores, name)
        for (model, site), scores in result.scores.items()
        for name in _ARRAYS
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new.npz")
    np.savez(draft, facts=np.array(json.dumps(facts)), **arrays)
    draft.rename(path)


def _load(path: Path) -> SeedResult:
    with np.load(path, allow_pickle=False) as file:
        facts = json.loads(str(file["facts"]))
        scores = {
            (model, site): Scores(*(file[f"{model}/{site}/{name}"] for name in _ARRAYS))
            for model, site in facts["scores"]
        }
    curves = {name: tuple(curve) for name, curve in facts["curves"].items()}
    return SeedResult(facts["seed"], scores, curves, tuple(facts["clipped"]), facts["digests"], facts["wall_s"])
