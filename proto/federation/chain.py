"""The next model, from this one and a decoded sum: the same bits at every site and at the aggregator.

The sum's levels are whole numbers; the inverse rotation of whole numbers is exact in float64 (encoding.rotation). What
follows is elementwise IEEE 754 arithmetic in a fixed order (+ - * / sqrt, each correctly rounded), so neither the
number of threads nor the processor changes a bit.

    FedAvg   x + lr * D                                                           McMahan et al., AISTATS 2017
    FedAvgM  m = beta1 * m + D;  x + lr * m                                       Hsu et al., arXiv 1909.06335
    FedAdam  m = beta1 * m + (1 - beta1) * D;  v = beta2 * v + (1 - beta2) * D^2;
             x + lr * m / (sqrt(v) + tau)                                         Reddi et al., ICLR 2021, algorithm 2
    FedYogi  as FedAdam with v = v - (1 - beta2) * D^2 * sign(v - D^2)            ibid.

D is the mean update, weighted by min(studies, cap); in a private round, minus the mean gradient. m starts at 0 and v at
tau^2. Only the plan's moving tensors move, and server vectors have their length.

The norm of D is bounded: every honest update has at most the clip norm, and rounding adds little. A sum beyond the
bound leads to no model, so a member that does not clip moves the model no further than the honest ones could.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.encoding import DecodedSum, Layout
from federation.encoding.rotation import block_of, put, take, unrotated
from federation.encoding.sums import NORM_SLACK
from federation.errors import ChainRefused, ManifestMismatch
from federation.manifest import Model
from federation.plan import ServerKind, ServerOptimizer, TrainingPlan

Reals = NDArray[np.float64]

_NORM_CHUNK = 1 << 16
_NORM_EXPONENT = math.log(1e9)  # honest members are refused with probability exp(-this) at most

_STATES = {ServerKind.FEDAVG: 0, ServerKind.FEDAVGM: 1, ServerKind.FEDADAM: 2, ServerKind.FEDYOGI: 2}


def next_model(
    plan: TrainingPlan, model: Model, decoded: DecodedSum, threads: int = 1, *, uses_up: bool = False
) -> Model:
    """Computes the next model from `model` and the decoded sum of a round.

    An evaluation-only round leaves the model as it is.

    Args:
        plan: The plan of the run.
        model: The round's base model: weights f32[d], server vectors f64[moving.size].
        decoded: The decoded sum of the cohort.
        threads: Number of threads that share the pieces of the rotation. The largest piece is half of all or more.
        uses_up: Write the next model over the input model, which is destroyed, also on error. This saves one
            allocation, and finding that much memory takes longer than filling it.

    Returns:
        A model of the same manifest. Each weight is computed in float64 and rounded to float32 once.

    Raises:
        ChainRefused: The model is not of this plan, the mean update is longer than honest members can make it, or the
            result is not finite. The round then leads to no model.
    """
    if model.manifest != plan.manifest:
        raise ChainRefused("expected a model of the plan's manifest, got one of another")
    if decoded.levels.size == 0:
        return model
    layout = Layout.of(plan, plan.moving.size)
    if decoded.levels.size != layout.coordinates:
        raise ChainRefused(f"expected a sum of {layout.coordinates} coordinates, got {decoded.levels.size}")
    check_norm(layout, decoded)
    size = block_of(layout)
    all_weights = _writable(model.weights, copied=not uses_up)
    moves_all = plan.moving.size == plan.manifest.size
    weights = all_weights if moves_all else plan.moving.take(all_weights)
    state = [_writable(vector, copied=not uses_up) for vector in _state(plan, model)]

    def move(piece: int) -> None:
        # In parts that stay in the cache: the mean as a whole vector would be the peak of memory, here and at a site.
        for numbers, mean in unrotated(layout, decoded.levels, *affine(layout, decoded), piece):
            old = [take(vector, numbers, size) for vector in state]
            new = [np.empty_like(mean) for _ in state]
            step = _STEPS[plan.server.kind](plan.server, mean, old, new)
            for vector, part in zip(state, new, strict=True):
                put(vector, numbers, part)
            # A weight that overflows float32 is refused below, with a reason, rather than warned about here.
            with np.errstate(over="ignore"):
                moved = take(weights, numbers, size) + plan.server.learning_rate * step  # float64, as the step is
                put(weights, numbers, moved.astype(np.float32))

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(move, range(len(layout.pieces))))
    else:
        for piece in range(len(layout.pieces)):
            move(piece)
    if not moves_all:
        plan.moving.put(all_weights, weights)
    try:
        return Model(model.manifest, all_weights, tuple(state))
    except ManifestMismatch as error:
        raise ChainRefused(f"the sum leads to no usable model: {error}") from error


def check_norm(layout: Layout, decoded: DecodedSum) -> None:
    """Refuses a sum whose mean update is longer than honest members can make it.

    In units of half a step, a coordinate of the sum is the whole number s = 2 S - n * level_max. Honest members make
    s = v + e: v is the weighted sum of updates, of norm at most clip_norm * weight / cap, and e the rounding. Clipping
    a coordinate to the quantizer's range only shortens v. Each member rounds a coordinate to one of two levels, two
    units apart, so e is sub-Gaussian with variance proxy n (Hoeffding's lemma). By Hsu, Kakade, Zhang (Electron.
    Commun. Probab. 2012, theorem 2.1, with A = I) the norm of e over k coordinates exceeds
    sqrt(n (k + 2 sqrt(k x) + 2 x)) with probability at most exp(-x).

    In a private round each member adds a share of noise, at most the largest of any cohort of n or more members. Its
    norm over k coordinates is bounded as that of the rounding is, with the variance in place of the proxy: a Skellam
    variable with a variance of hundreds is as good as Gaussian (`tests/contract/test_noised.py`).

    The sum of squares is a whole number, exact on every machine, so all refuse the same sums.

    Raises:
        ChainRefused: The norm is beyond the bound. For honest members that happens once in 10^9 rounds at most.
    """
    squares = 0
    center = decoded.members * layout.level_max
    # Danger: a sum in int64 that wraps around would hide the longest updates. |2 S - center| is at most `center`,
    # because decoding refused larger sums; so the squares of this many coordinates fit, whatever members sent.
    chunk = min(_NORM_CHUNK, (2**63 - 1) // center**2)
    for start in range(0, decoded.levels.size, chunk):
        # Widened first: a level of uint16, doubled, would wrap around as well.
        part = decoded.levels[start : start + chunk].astype(np.int64) * 2 - center
        squares += int(part @ part)
    if math.sqrt(squares) > norm_bound(layout, decoded.members, decoded.header.weight):
        raise ChainRefused(
            "the mean update is longer than clip norm and rounding allow: a member did not clip, or sent noise"
        )


def norm_bound(layout: Layout, members: int, weight: int) -> float:
    """Returns the largest norm of a sum of honest members, in units of half a quantization step: see `check_norm`."""
    k = layout.coordinates
    spread = math.sqrt(k + 2 * math.sqrt(k * _NORM_EXPONENT) + 2 * _NORM_EXPONENT)
    rounded = math.sqrt(members) * spread
    if layout.gradient is not None:
        longest = members * layout.gradient.longest * (1 + NORM_SLACK)
        largest_share = max(
            layout.gradient.noise.share_variance(cohort) for cohort in range(members, layout.members_max + 1)
        )
        noise = 2 * math.sqrt(members * largest_share) * spread
        return 2 * longest * layout.gradient.scale + rounded + noise
    half_step = layout.range / layout.level_max
    return layout.clip_norm * (1 + NORM_SLACK) * weight / layout.weight_cap / half_step + rounded


def affine(layout: Layout, decoded: DecodedSum) -> tuple[int, float]:
    """Returns the center and the factor with which `unrotated` gives the mean update.

    A coordinate's sum of levels S of n members stands for step/2 * (2 S - n * level_max), step = 2 range / level_max.
    In a private round the step is 1 / scale, and the mean is over the patients that n sites are expected to draw.

    Returns:
        The center in half steps, and the update that half a step stands for.
    """
    if layout.gradient is not None:
        patients = layout.gradient.patients * decoded.members
        return decoded.members * layout.level_max, 0.5 / layout.gradient.scale / patients
    half_step = layout.range / layout.level_max
    return decoded.members * layout.level_max, half_step * layout.weight_cap / decoded.header.weight


def _writable(vector: NDArray[Any], *, copied: bool) -> NDArray[Any]:
    """Returns a writable view of a model's numbers, which are read-only elsewhere."""
    own = vector.copy() if copied else vector.view()
    own.flags.writeable = True
    return own


def _state(plan: TrainingPlan, model: Model) -> list[Reals]:
    """Returns the server optimizer's vectors f64[moving.size], or its first ones; only to be read."""
    server, size = plan.server, plan.moving.size
    wanted = _STATES[server.kind]
    if len(model.server_state) == wanted and all(vector.size == size for vector in model.server_state):
        return list(model.server_state)
    if model.server_state:
        raise ChainRefused(
            f"expected {wanted} server-optimizer vectors of {size} numbers for {server.kind.name}, got "
            f"{len(model.server_state)} of {model.server_state[0].size}"
        )
    first = (0.0, server.tau * server.tau)
    return [np.full(size, value) for value in first[:wanted]]


# One step each: writes the new vectors, from the old ones and the mean, and returns the direction.


def _fedavg(server: ServerOptimizer, mean: Reals, old: list[Reals], new: list[Reals]) -> Reals:
    return mean


def _fedavgm(server: ServerOptimizer, mean: Reals, old: list[Reals], new: list[Reals]) -> Reals:
    np.add(server.beta1 * old[0], mean, out=new[0])
    return new[0]


def _fedadam(server: ServerOptimizer, mean: Reals, old: list[Reals], new: list[Reals]) -> Reals:
    np.add(server.beta1 * old[0], (1.0 - server.beta1) * mean, out=new[0])
    np.add(server.beta2 * old[1], (1.0 - server.beta2) * (mean * mean), out=new[1])
    return _adapted(server, new)


def _fedyogi(server: ServerOptimizer, mean: Reals, old: list[Reals], new: list[Reals]) -> Reals:
    np.add(server.beta1 * old[0], (1.0 - server.beta1) * mean, out=new[0])
    square = mean * mean
    np.subtract(old[1], (1.0 - server.beta2) * square * np.sign(old[1] - square), out=new[1])
    return _adapted(server, new)


def _adapted(server: ServerOptimizer, new: list[Reals]) -> Reals:
    first, second = new
    direction: Reals = first / (np.sqrt(second) + server.tau)
    return direction


_STEPS: dict[ServerKind, Callable[[ServerOptimizer, Reals, list[Reals], list[Reals]], Reals]] = {
    ServerKind.FEDAVG: _fedavg,
    ServerKind.FEDAVGM: _fedavgm,
    ServerKind.FEDADAM: _fedadam,
    ServerKind.FEDYOGI: _fedyogi,
}
