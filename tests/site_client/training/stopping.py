"""The wish to stop a training after a number of studies."""

from collections.abc import Callable
from itertools import count


def stop_after(studies: int | None) -> Callable[[], bool]:
    """Return a question that training asks once a study: false `studies` times, then true. None is never true."""
    asked = count()
    return lambda: studies is not None and next(asked) >= studies
