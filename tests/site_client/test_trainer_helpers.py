"""A worker with a helper (training.processes = 2): they stop, stand still, go on and end as one."""

import json
import signal
import subprocess
from collections.abc import Callable

import psutil
import pytest

from site_client.trainer.suspend import family, is_suspended, resume, suspend
from site_client.trainer.worker import STOPPED
from tests.site_client.test_trainer import Place, data, model, place

__all__ = ["data", "model", "place"]  # fixtures
TWO = (("threads = 1", "threads = 1\nprocesses = 2"),)


@pytest.fixture
def two(place: Callable[..., Place]) -> Callable[[str], Place]:
    return lambda name: place(name, per_step=3, instead=TWO)


def _at_step(process: "subprocess.Popen[str]", step: int) -> list[psutil.Process]:
    """Waits for it; the worker's helpers."""
    assert process.stdout is not None
    for line in process.stdout:
        note = json.loads(line)
        if note["state"] == "SITE_TRAINING" and note["step"] >= step:
            return [psutil.Process(number) for number in family(process)[1:]]
    raise AssertionError("it ended before")


def _finish(process: "subprocess.Popen[str]", helpers: list[psutil.Process]) -> int:
    process.communicate(timeout=120)
    gone, alive = psutil.wait_procs(helpers, timeout=10)
    assert (len(gone), alive) == (1, [])
    return process.returncode


@pytest.mark.timeout(600)
def test_stopped_held_and_killed_they_end_with_the_very_bits_of_an_undisturbed_run(two: Callable[[str], Place]) -> None:
    undisturbed = two("undisturbed").finish()
    assert undisturbed.outcome == "trained"

    at = two("disturbed")
    process = at.worker()
    helpers = _at_step(process, 1)
    assert suspend(process) < 1.0
    assert is_suspended(process)
    assert [helper.status() for helper in helpers] == [psutil.STATUS_STOPPED]
    resume(process)
    _at_step(process, 2)
    process.send_signal(signal.SIGTERM)
    assert _finish(process, helpers) == STOPPED
    process = at.worker()
    helpers = _at_step(process, 4)
    suspend(process)
    process.kill()
    assert _finish(process, helpers) == -signal.SIGKILL
    process = at.worker()
    helpers = _at_step(process, 5)
    helpers[0].kill()  # it takes the worker with it: the service tries again
    assert _finish(process, helpers) not in (0, STOPPED)
    assert at.finish() == undisturbed
