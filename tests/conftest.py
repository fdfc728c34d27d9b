"""Order of the whole: the files that run longest come first, so that no process ends alone with one of them."""

import pytest

_LONGEST = (
    "test_trainer.py",
    "test_demo.py",
    "test_past_the_histogram.py",
    "test_strangers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move them to the front; all else keeps its order."""
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))
