"""What bleeds in a study: which subtypes together, how many, how large, how dense, where.

Drawn in head space from the lesion stream alone. Volumes and HU follow the published quantiles; difficulty below 1
makes lesions larger and brighter, above 1 smaller and fainter.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from federation.labels import LABELS, SUBTYPES

from site_client.phantom.profiles import Patients
from site_client.phantom.statistics import SUBTYPE_SETS, draw_count, draw_hu, draw_ml

Prevalence = Literal["profile", "rsna", "natural", "balanced"]
Style = Literal[
    "lens", "convexity", "falcine", "tentorial", "sulcal", "sylvian", "basal", "deep", "lobar", "hind", "level", "cast"
]

STUDY_PERCENT: Final[dict[str, tuple[float, ...]]] = {
    # RSNA-like: study any 40 %; subtype shares keep the published slice ratios.
    "rsna": (2.0, 17.0, 13.0, 16.0, 15.0, 40.0),
    "natural": (0.3, 2.0, 0.9, 1.8, 2.6, 6.0),
    "balanced": (14.0, 20.0, 16.0, 20.0, 20.0, 50.0),
}


@dataclass(frozen=True)
class Lesion:
    """One bleed. hu: of its core; ml: its volume before anything is averaged; edema_mm: rim of a parenchymal bleed."""

    subtype: str
    style: Style
    ml: float
    hu: float
    center_mm: tuple[float, float, float]
    edema_mm: float = 0.0
    flatness: float = 0.3


def percent_of(prevalence: Prevalence, patients: Patients) -> tuple[float, ...]:
    """Percent of studies by label, RSNA order."""
    return patients.percent if prevalence == "profile" else STUDY_PERCENT[prevalence]


def draw_lesions(
    random: np.random.Generator, percent: tuple[float, ...], chronic: float, difficulty: float
) -> tuple[Lesion, ...]:
    """The bleeds of one study, none for a negative one."""
    positive = random.random() < percent[-1] / 100
    chosen = _draw_set(random, percent)
    if not positive:
        return ()
    lesions: list[Lesion] = []
    for subtype in chosen:
        lesions.extend(_of_subtype(random, subtype, chronic, difficulty))
    return tuple(lesions)


def set_weights(percent: tuple[float, ...]) -> dict[tuple[str, ...], float]:
    """Weights of the published subtype sets, tilted so that each subtype's share of positives comes out as asked.

    Iterative scaling: each set's weight is multiplied by a factor of each of its subtypes until the shares agree.
    """
    target = {name: min(0.98, percent[i] / percent[-1]) for i, name in enumerate(SUBTYPES)}
    factor = dict.fromkeys(SUBTYPES, 1.0)
    weights: dict[tuple[str, ...], float] = {}
    for _ in range(200):
        weights = {names: n * float(np.prod([factor[s] for s in names])) for names, n in SUBTYPE_SETS.items()}
        total = sum(weights.values())
        weights = {names: w / total for names, w in weights.items()}
        for name in SUBTYPES:
            share = sum(w for names, w in weights.items() if name in names)
            factor[name] *= (target[name] * (1 - share) + 1e-9) / (share * (1 - target[name]) + 1e-9)
    return weights


_WEIGHTS: dict[tuple[float, ...], dict[tuple[str, ...], float]] = {}


def _draw_set(random: np.random.Generator, percent: tuple[float, ...]) -> tuple[str, ...]:
    if len(percent) != len(LABELS):
        raise ValueError(f"expected one share for each of {len(LABELS)} labels, got {len(percent)}")
    if percent not in _WEIGHTS:
        _WEIGHTS[percent] = set_weights(percent)
    weights = _WEIGHTS[percent]
    edges = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(edges, random.random() * edges[-1] * (1 - 1e-12)))]


def _of_subtype(random: np.random.Generator, subtype: str, chronic: float, difficulty: float) -> list[Lesion]:
    count = draw_count(random, subtype)
    volumes = sorted((draw_ml(random, subtype) for _ in range(count)), reverse=True)
    side = float(random.choice([-1.0, 1.0]))
    mean_hu = draw_hu(random, subtype)
    if subtype == "subdural" and random.random() < chronic:
        mean_hu = float(random.uniform(14, 38))
    found = []
    for rank, ml in enumerate(volumes):
        style, center = _place(random, subtype, side, ml, rank)
        found.append(
            Lesion(
                subtype,
                style,
                _eased_ml(ml, difficulty, rank),
                _core_hu(subtype, mean_hu + float(random.normal(0, 2.0)), difficulty),
                center,
                edema_mm=float(random.uniform(1.5, 9.0)) if subtype == "intraparenchymal" else 0.0,
                flatness=float(random.uniform(0.8, 1.25)),
            )
        )
    return found


def _eased_ml(ml: float, difficulty: float, rank: int) -> float:
    floor = 10.0 * max(0.0, 1.0 - difficulty) if rank == 0 else 0.0
    return float(min(140.0, max(ml * difficulty**-0.8, floor)))


def _core_hu(subtype: str, mean_hu: float, difficulty: float) -> float:
    """The published means are partial-volume averaged; thin lesions lose most, so their cores are densest."""
    lost = {"epidural": 4, "intraparenchymal": 8, "intraventricular": 12, "subarachnoid": 16, "subdural": 6}[subtype]
    core = mean_hu + lost
    away = 34.0
    if difficulty < 1 and abs(core - away) < 40:
        core = away + max(core - away, 12.0) * (1 + 1.0 * (1 - difficulty))
    elif difficulty > 1:
        core = away + (core - away) / difficulty
    return float(np.clip(core, 8.0, 95.0))


def _place(
    random: np.random.Generator, subtype: str, side: float, ml: float, rank: int
) -> tuple[Style, tuple[float, float, float]]:
    if rank and random.random() < 0.35:
        side = -side
    jitter = random.normal(0, 1, 3)
    match subtype:
        case "epidural":
            return "lens", (side * 60, 6 + 24 * jitter[1], 14 + 18 * jitter[2])
        case "subdural":
            return _place_subdural(random, side, jitter, rank)
        case "subarachnoid":
            return _place_subarachnoid(random, side, jitter)
        case "intraventricular":
            style: Style = "cast" if ml > 9 or random.random() < 0.2 else "level"
            return style, (side * 14, 10 + 20 * jitter[1], 14)
        case _:
            return _place_parenchymal(random, side, jitter)


def _place_subdural(
    random: np.random.Generator, side: float, jitter: np.ndarray, rank: int
) -> tuple[Style, tuple[float, float, float]]:
    pick = random.random()
    if rank == 0 or pick < 0.55:
        return "convexity", (side * 58, -5 + 25 * jitter[1], 26 + 14 * jitter[2])
    if pick < 0.85:
        return "falcine", (side * 2, 20 + 38 * jitter[1], 42 + 10 * jitter[2])
    return "tentorial", (side * 26, 48 + 8 * jitter[1], 0.0)


def _place_subarachnoid(
    random: np.random.Generator, side: float, jitter: np.ndarray
) -> tuple[Style, tuple[float, float, float]]:
    pick = random.random()
    if pick < 0.25:
        return "basal", (10 * jitter[0], -4 + 10 * jitter[1], -13 + 3 * jitter[2])
    if pick < 0.5:
        return "sylvian", (side * 44, 4 + 10 * jitter[1], 4 + 4 * jitter[2])
    angle, lift = random.uniform(-np.pi, np.pi), random.uniform(0.0, 0.9)
    around = np.sqrt(1 - lift**2)
    return "sulcal", (62 * around * np.sin(angle), 80 * around * np.cos(angle), 68 * lift)


def _place_parenchymal(
    random: np.random.Generator, side: float, jitter: np.ndarray
) -> tuple[Style, tuple[float, float, float]]:
    pick = random.random()
    if pick < 0.5:
        return "deep", (side * (22 + 5 * jitter[0]), 2 + 9 * jitter[1], 6 + 6 * jitter[2])
    if pick < 0.9:
        place = [(40, -48, 12), (44, 45, 22), (52, -8, -14), (34, -58, 2), (26, 30, 46), (46, 5, 34)][
            int(random.integers(6))
        ]
        return "lobar", (side * (place[0] + 4 * jitter[0]), place[1] + 6 * jitter[1], place[2] + 6 * jitter[2])
    return "hind", (side * abs(14 * jitter[0]), 48 + 9 * jitter[1], -30 + 6 * jitter[2])
