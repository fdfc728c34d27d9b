"""Rounds are tested in the one World of tests/federation: a real aggregator, real agents, a clock that obeys."""

from tests.federation.conftest import make_world, nursery

__all__ = ["make_world", "nursery"]
