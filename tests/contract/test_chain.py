"""federation.chain: the same bits everywhere, the published optimizers, and a typed refusal for everything else."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation.chain import next_model
from federation.encoding import DecodedSum, Layout, SiteHeader, decode_sum, encode, pack_sum, unpack_sum
from federation.encoding import rotation as rotation_module
from federation.errors import ChainRefused
from federation.manifest import Manifest, Model, TensorSpec, load_model, save_model
from federation.plan import ServerKind, ServerOptimizer, TrainingPlan

from tests.contract.mean import mean_update

Make = Callable[..., TrainingPlan]
MakeHeader = Callable[..., SiteHeader]
Deltas = Callable[[int, int], np.ndarray]

SERVERS = {
    ServerKind.FEDAVG: ServerOptimizer(ServerKind.FEDAVG, 0.7),
    ServerKind.FEDAVGM: ServerOptimizer(ServerKind.FEDAVGM, 0.7, beta1=0.9),
    ServerKind.FEDADAM: ServerOptimizer(ServerKind.FEDADAM, 0.01, beta1=0.9, beta2=0.99, tau=1e-3),
    ServerKind.FEDYOGI: ServerOptimizer(ServerKind.FEDYOGI, 0.01, beta1=0.9, beta2=0.99, tau=1e-3),
}
EVERY_SERVER = pytest.mark.parametrize("server", SERVERS.values(), ids=[kind.name for kind in SERVERS])
PARAMETERS = 20_000


@pytest.fixture(scope="module")
def played(
    make_plan: Make, make_header: MakeHeader, heavy_tailed: Deltas
) -> Callable[..., tuple[TrainingPlan, DecodedSum]]:
    def play(server: ServerOptimizer, seed: int = 0) -> tuple[TrainingPlan, DecodedSum]:
        plan = make_plan(parameters=PARAMETERS, server=server)
        layout = Layout.of(plan, PARAMETERS)
        rng = np.random.default_rng(seed)
        uploads = [
            encode(layout, heavy_tailed(PARAMETERS, seed + site), make_header(studies=50 + site), rng)
            for site in range(3)
        ]
        return plan, decode_sum(layout, uploads[0] + uploads[1] + uploads[2], 3)

    return play


def _base(plan: TrainingPlan) -> Model:
    return Model(plan.manifest, np.random.default_rng(9).standard_normal(PARAMETERS).astype(np.float32))


@EVERY_SERVER
def test_a_site_that_has_the_published_sum_computes_the_same_model(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]], server: ServerOptimizer
) -> None:
    plan, opened = played(server)
    layout = Layout.of(plan, PARAMETERS)
    published = unpack_sum(layout, pack_sum(layout, opened), 3)
    assert next_model(plan, _base(plan), published).digest == next_model(plan, _base(plan), opened).digest


@EVERY_SERVER
def test_the_result_does_not_depend_on_chunks_or_on_how_the_transform_is_split(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]], server: ServerOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, opened = played(server)
    expected = next_model(plan, _base(plan), opened).digest
    monkeypatch.setattr(rotation_module, "_CHUNK", 1 << 10)
    monkeypatch.setattr(rotation_module, "_RADIX_BITS", 1)
    assert next_model(plan, _base(plan), opened).digest == expected


@EVERY_SERVER
def test_the_result_does_not_depend_on_how_many_threads_share_the_pieces(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]], server: ServerOptimizer
) -> None:
    plan, opened = played(server)
    assert len(Layout.of(plan, PARAMETERS).pieces) == 2
    expected = next_model(plan, _base(plan), opened).digest
    assert next_model(plan, _base(plan), opened, threads=2).digest == expected


@EVERY_SERVER
def test_three_rounds_follow_the_published_formulas(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]], server: ServerOptimizer
) -> None:
    plan, _ = played(server)
    layout = Layout.of(plan, PARAMETERS)
    model = _base(plan)
    weights = model.weights.astype(np.float64)
    first, second = np.zeros(PARAMETERS), np.full(PARAMETERS, server.tau**2)
    for seed in range(3):
        opened = played(server, seed)[1]
        mean = mean_update(layout, opened)
        model = next_model(plan, model, opened)
        if server.kind is ServerKind.FEDAVG:
            step = mean
        elif server.kind is ServerKind.FEDAVGM:
            first = server.beta1 * first + mean
            step = first
        else:
            first = server.beta1 * first + (1 - server.beta1) * mean
            if server.kind is ServerKind.FEDADAM:
                second = server.beta2 * second + (1 - server.beta2) * mean**2
            else:
                second -= (1 - server.beta2) * mean**2 * np.sign(second - mean**2)
            step = first / (np.sqrt(second) + server.tau)
        weights = (weights + server.learning_rate * step).astype(np.float32).astype(np.float64)
        assert np.allclose(model.weights, weights, rtol=1e-6, atol=1e-9)
    assert len(model.server_state) == {"FEDAVG": 0, "FEDAVGM": 1}.get(server.kind.name, 2)


def test_fedavg_moves_the_model_by_the_weighted_mean_of_the_updates(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]], heavy_tailed: Deltas
) -> None:
    plan, opened = played(ServerOptimizer(ServerKind.FEDAVG, 1.0))
    base = _base(plan)
    moved = next_model(plan, base, opened).weights.astype(np.float64) - base.weights
    expected = np.average([heavy_tailed(PARAMETERS, site) for site in range(3)], axis=0, weights=[50, 51, 52])
    assert np.sum((moved - expected) ** 2) / np.sum(expected**2) < 2e-2


def test_the_base_model_and_its_memory_are_left_as_they_were(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]],
) -> None:
    plan, opened = played(SERVERS[ServerKind.FEDYOGI])
    base = next_model(plan, _base(plan), opened)
    before = base.digest
    next_model(plan, base, opened)
    assert Model(base.manifest, base.weights, base.server_state).digest == before


@EVERY_SERVER
def test_a_base_model_that_is_used_up_leads_to_the_same_one_and_gives_it_its_place(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]], server: ServerOptimizer
) -> None:
    plan, opened = played(server)
    base = next_model(plan, _base(plan), opened)
    expected = next_model(plan, base, opened)
    place = base.weights.__array_interface__["data"]
    followed = next_model(plan, base, opened, uses_up=True)
    assert followed.digest == expected.digest
    assert followed.weights.__array_interface__["data"] == place
    with pytest.raises(ValueError, match="read-only"):
        followed.weights[0] = 0


@EVERY_SERVER
def test_a_model_read_from_its_file_can_be_used_up(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]], server: ServerOptimizer, tmp_path: Path
) -> None:
    plan, opened = played(server)
    base = next_model(plan, _base(plan), opened)
    save_model(tmp_path / "base.safetensors", base)
    before = (tmp_path / "base.safetensors").read_bytes()
    followed = next_model(plan, load_model(tmp_path / "base.safetensors"), opened, uses_up=True)
    assert followed.digest == next_model(plan, base, opened).digest
    assert (tmp_path / "base.safetensors").read_bytes() == before


def test_sums_too_large_for_float32_are_exact(make_plan: Make, make_header: MakeHeader) -> None:
    """Levels that are nearly alike lie in nearly one coordinate after the transform, the largest there can be."""
    size = 1 << 14
    plan = make_plan(parameters=size, server=ServerOptimizer(ServerKind.FEDAVG, 1.0))
    layout = Layout.of(plan, size)
    words = encode(layout, np.zeros(size, np.float32), make_header(), np.random.default_rng(0))
    opened = decode_sum(layout, words * np.uint64(60), 60)
    levels = np.full(size, 60 * layout.level_max, opened.levels.dtype)
    levels[5] -= 1
    whole = 2 * levels.astype(np.int64) - 60 * layout.level_max
    stride = 1
    while stride < size:
        left, right = np.moveaxis(whole.reshape(-1, 2, stride), 1, 0)
        whole = np.stack([left + right, left - right], axis=1).reshape(-1)
        stride *= 2
    assert whole.max() > 2**24
    assert int(np.float32(whole.max())) != whole.max()
    factor = layout.range / layout.level_max * layout.weight_cap / opened.header.weight / np.sqrt(size)
    found = mean_update(layout, replace(opened, levels=levels))
    assert np.array_equal(np.sort(np.abs(found)), np.sort(np.abs(whole * factor)))


def test_after_an_evaluation_only_round_the_model_is_the_same(make_plan: Make, make_header: MakeHeader) -> None:
    plan = make_plan(parameters=PARAMETERS)
    layout = Layout.of(plan, 0)
    words = encode(layout, None, make_header(), np.random.default_rng(0))
    base = _base(plan)
    assert next_model(plan, base, decode_sum(layout, words * np.uint64(3), 3)).digest == base.digest


def test_a_model_of_another_manifest_is_refused(played: Callable[..., tuple[TrainingPlan, DecodedSum]]) -> None:
    plan, opened = played(SERVERS[ServerKind.FEDAVG])
    other = Model(Manifest((TensorSpec("other", (PARAMETERS,)),)), np.zeros(PARAMETERS, np.float32))
    with pytest.raises(ChainRefused, match="manifest"):
        next_model(plan, other, opened)


def test_a_sum_of_another_length_is_refused(played: Callable[..., tuple[TrainingPlan, DecodedSum]]) -> None:
    plan, opened = played(SERVERS[ServerKind.FEDAVG])
    with pytest.raises(ChainRefused, match="coordinates"):
        next_model(plan, _base(plan), replace(opened, levels=opened.levels[:-1]))


def test_the_memory_of_another_server_optimizer_is_refused(
    played: Callable[..., tuple[TrainingPlan, DecodedSum]],
) -> None:
    plan, opened = played(SERVERS[ServerKind.FEDADAM])
    model = Model(plan.manifest, _base(plan).weights, (np.zeros(PARAMETERS),))
    with pytest.raises(ChainRefused, match="server-optimizer"):
        next_model(plan, model, opened)


def test_a_round_that_would_leave_the_range_of_float32_is_refused(make_plan: Make, make_header: MakeHeader) -> None:
    plan = make_plan(parameters=4, server=ServerOptimizer(ServerKind.FEDAVG, 10.0), **{"encoding.clip_norm": 1000.0})
    layout = Layout.of(plan, 4)
    words = encode(layout, np.full(4, 400, np.float32), make_header(), np.random.default_rng(0))
    brink = Model(plan.manifest, np.full(4, np.finfo(np.float32).max))
    near = next_model(plan, brink, decode_sum(layout, words, 1))
    assert near.digest == brink.digest  # 4000 is nothing beside 3e38
    huge = Model(plan.manifest, np.full(4, np.finfo(np.float32).max), (np.full(4, 1e39),))
    momentum = make_plan(
        parameters=4, server=ServerOptimizer(ServerKind.FEDAVGM, 1.0, beta1=0.5), **{"encoding.clip_norm": 1000.0}
    )
    with pytest.raises(ChainRefused, match="no usable model"):
        next_model(momentum, huge, decode_sum(layout, words, 1))


SCRIPT = """
import sys, hashlib, numpy as np
from federation.encoding.rotation import hadamard
vector = (np.arange(1 << 18) * 7919 % 4033 - 2016).astype(np.float64)
hadamard(vector)
print(hashlib.sha256(vector.tobytes()).hexdigest())
"""


def test_the_inverse_rotation_is_the_same_on_other_processors_and_threads() -> None:
    results = set()
    for core, threads in (("Haswell", "1"), ("Sandybridge", "2"), ("", "2")):
        environment = {
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "proto"),
        }
        if core:
            environment["OPENBLAS_CORETYPE"] = core
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        results.add(run.stdout)
    assert len(results) == 1
