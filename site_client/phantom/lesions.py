"""The bleeds of a study: their subtypes, number, volume, density and place.

Drawn in head space from the lesion stream alone. Volumes and HU follow the published quantiles; difficulty below 1
makes lesions larger, above 1 smaller and fainter. No clot is denser than blood can be: the brain window ends at 80 HU,
and beyond it an extra-axial bleed would melt into the skull.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
from federation.labels import LABELS, SUBTYPES

from site_client.phantom.profiles import Patients, Percent
from site_client.phantom.statistics import SUBTYPE_SETS, draw_count, draw_hu, draw_ml

Prevalence = Literal["profile", "rsna", "natural", "balanced"]
Style = Literal[
    "lens", "convexity", "falcine", "tentorial", "sulcal", "sylvian", "basal", "deep", "lobar", "hind", "level", "cast"
]

# Mixes beside the profiles' own. "rsna" has 40 % positive studies; its subtypes keep the published ratios of slices.
# "natural" is an emergency department's. "balanced" shows every subtype often.
STUDY_PERCENT: Final[dict[str, Percent]] = {
    "rsna": {
        "epidural": 2,
        "intraparenchymal": 17,
        "intraventricular": 13,
        "subarachnoid": 16,
        "subdural": 15,
        "any": 40,
    },
    "natural": {
        "epidural": 0.3,
        "intraparenchymal": 2,
        "intraventricular": 0.9,
        "subarachnoid": 1.8,
        "subdural": 2.6,
        "any": 6,
    },
    "balanced": {
        "epidural": 14,
        "intraparenchymal": 20,
        "intraventricular": 16,
        "subarachnoid": 20,
        "subdural": 20,
        "any": 50,
    },
}

# The published means are averaged over partial volumes. Thin lesions lose most by it, so their cores are densest.
CLOT_HU_MAX: Final = 80.0  # of clotted blood without plasma; fresh clots have 50 to 70
_CORE_ABOVE_MEAN_HU: Final = {
    "epidural": 4,
    "intraparenchymal": 8,
    "intraventricular": 12,
    "subarachnoid": 16,
    "subdural": 6,
}


@dataclass(frozen=True)
class Lesion:
    """One bleed in head space.

    `ml`: its volume before anything is averaged. `hu`: of its core. `edema_mm`: width of the dark rim around a
    parenchymal bleed. `flatness`: stretches the shape along one axis, about 1.
    """

    subtype: str
    style: Style
    ml: float
    hu: float
    center_mm: tuple[float, float, float]
    edema_mm: float = 0.0
    flatness: float = 0.3


def percent_of(prevalence: Prevalence, patients: Patients) -> Percent:
    """Looks up the percent of studies, by label."""
    return patients.percent if prevalence == "profile" else STUDY_PERCENT[prevalence]


def draw_lesions(
    random: np.random.Generator, percent: Percent, chronic: float, difficulty: float
) -> tuple[Lesion, ...]:
    """Draws the bleeds of one study.

    Args:
        random: The patient's lesion stream.
        percent: Of studies, by label.
        chronic: Share of subdural bleeds that are chronic, and so dark.
        difficulty: Below 1 larger bleeds, above 1 smaller and fainter ones.

    Returns:
        The bleeds, subtype by subtype, the largest of each first; none for a negative study.
    """
    positive = random.random() < percent["any"] / 100
    # Drawn for a negative study too: a change of prevalence must not change the positive patients.
    subtypes = _draw_set(random, percent)
    if not positive:
        return ()
    return tuple(lesion for subtype in subtypes for lesion in _of_subtype(random, subtype, chronic, difficulty))


def set_weights(percent: Percent) -> dict[tuple[str, ...], float]:
    """Computes weights of the published sets of subtypes, so that each subtype has its share of the positive studies.

    Each set's weight is multiplied by a factor of each of its subtypes until the shares agree. Source: iterative
    proportional fitting, Deming and Stephan, Ann. Math. Statist. 11 (1940).

    Args:
        percent: Of studies, by label.

    Returns:
        Weights by set, with sum 1.
    """
    return _fit_weights(tuple(percent[label] for label in LABELS))


@cache  # a tenth of a second of work, and every study of a site asks for the same
def _fit_weights(percents: tuple[float, ...]) -> dict[tuple[str, ...], float]:
    """`percents`: in the order of LABELS, because a mapping cannot be the key of a cache."""
    percent = dict(zip(LABELS, percents, strict=True))
    target = {name: min(0.98, percent[name] / percent["any"]) for name in SUBTYPES}
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


def _draw_set(random: np.random.Generator, percent: Percent) -> tuple[str, ...]:
    weights = set_weights(percent)
    edges = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(edges, random.random() * edges[-1] * (1 - 1e-12)))]


def _of_subtype(random: np.random.Generator, subtype: str, chronic: float, difficulty: float) -> list[Lesion]:
    count = draw_count(random, subtype)
    volumes = sorted((draw_ml(random, subtype) for _ in range(count)), reverse=True)
    side = float(random.choice([-1.0, 1.0]))
    mean_hu = draw_hu(random, subtype)
    if subtype == "subdural" and random.random() < chronic:
        mean_hu = float(random.uniform(14, 38))
    lesions = []
    for rank, ml in enumerate(volumes):
        style, center = _place(random, subtype, side, ml, rank)
        lesions.append(
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
    return lesions


def _eased_ml(ml: float, difficulty: float, rank: int) -> float:
    # An easy study shows at least one bleed of a size that cannot be overlooked.
    floor = 20.0 * max(0.0, 1.0 - difficulty) if rank == 0 else 0.0
    return float(min(140.0, max(ml * difficulty**-1.2, floor)))


def _core_hu(subtype: str, mean_hu: float, difficulty: float) -> float:
    core = mean_hu + _CORE_ABOVE_MEAN_HU[subtype]
    brain = 34.0
    if difficulty > 1:
        core = brain + (core - brain) / difficulty
    return float(np.clip(core, 8.0, CLOT_HU_MAX))


def _place(
    random: np.random.Generator, subtype: str, side: float, ml: float, rank: int
) -> tuple[Style, tuple[float, float, float]]:
    if rank and random.random() < 0.35:  # further bleeds may lie on the other side
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
