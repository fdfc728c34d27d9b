"""Where histories happen: a folder in memory if there is one, since every step of theirs is synced to disk."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.federation.nursery import Kind, Nursery
from tests.federation.world import World

IN_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    if not os.access(IN_MEMORY, os.W_OK):
        yield Nursery(tmp_path_factory.mktemp("worlds"))
        return
    folder = Path(tempfile.mkdtemp(prefix="hemofed-worlds-", dir=IN_MEMORY))
    yield Nursery(folder)
    shutil.rmtree(folder)


@pytest.fixture
def make_world(nursery: Nursery) -> Iterator[Callable[..., World]]:
    """make_world(sites=4, rounds=1, ...): a run that has just begun."""
    made: list[World] = []

    def make(**kind: Any) -> World:
        chosen = Kind(**({"sites": 4} | kind))
        made.append(World.begin(nursery, chosen))
        return made[-1]

    yield make
    for world in made:
        world.end()
