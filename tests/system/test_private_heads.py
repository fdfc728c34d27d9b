"""Heads with and without noise: less epsilon costs more, and no noise costs nothing."""

import math

import numpy as np
import pytest
from federation.labels import ANY

from deploy.simulation.private_heads import FeatureSet, heads_at, plan_at, predicted_loss, split_sites


def _vectors(count: int, seed: int) -> FeatureSet:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 16)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.zeros((count, 6), np.int8)
    labels[:, ANY] = x @ np.linspace(-1, 1, 16) + 0.1 * rng.standard_normal(count) > 0.2
    return FeatureSet(x, labels)


def test_less_epsilon_costs_more() -> None:
    sites = list(split_sites(_vectors(1200, 1), 3, 1))
    test = _vectors(1000, 2)
    results = [heads_at(epsilon, sites, test, [1], rounds=30) for epsilon in (math.inf, 8.0, 0.5)]
    auc = [result.auc[0] for result in results]
    assert auc[0] > auc[2]
    assert auc[0] >= auc[1] - 0.01 > auc[2] - 0.05
    assert results[0].ratio == 0.0 < results[1].ratio < results[2].ratio
    assert heads_at(8.0, sites, test, [1], rounds=30) == results[1]


@pytest.mark.parametrize("epsilon", [8.0, 1.0])
def test_a_plan_spends_its_epsilon_and_hardly_less(epsilon: float) -> None:
    plan = plan_at(epsilon, 5, 256, 2000, 100)
    assert plan.privacy is not None
    assert plan.privacy.epsilon_train == epsilon


def test_shares_are_equal_and_without_a_common_vector() -> None:
    vectors = _vectors(103, 3)
    shares = list(split_sites(vectors, 5, 1))
    assert {len(share.x) for share in shares} == {20}
    assert len({row.tobytes() for share in shares for row in share.x}) == 100


@pytest.mark.parametrize(("ratio", "low"), [(0.1, 0.0), (0.5, 0.02), (3.0, 0.1)])
def test_the_rule_has_three_ranges(ratio: float, low: float) -> None:
    assert predicted_loss(ratio)[0] == low
