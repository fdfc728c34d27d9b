"""A worker with a rank process (training.processes = 2): they stop, are suspended, resume and end as one."""

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
TWO_PROCESSES = (("threads = 1", "threads = 1\nprocesses = 2"),)


@pytest.fixture
def place_of_two(place: Callable[..., Place]) -> Callable[[str], Place]:
    return lambda name: place(name, per_step=3, instead=TWO_PROCESSES)


def _await_step(process: "subprocess.Popen[str]", step: int) -> list[psutil.Process]:
    """Waits until the worker reports this step of training; lists its rank processes."""
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if message["state"] == "SITE_TRAINING" and message["step"] >= step:
            return [psutil.Process(number) for number in family(process)[1:]]
    raise AssertionError("the worker ended before")


def _await_end(process: "subprocess.Popen[str]", rank_processes: list[psutil.Process]) -> int:
    process.communicate(timeout=120)
    gone, alive = psutil.wait_procs(rank_processes, timeout=10)
    assert (len(gone), alive) == (1, [])
    return process.returncode


@pytest.mark.slow  # four trainings of two processes; `training/test_ranks.py` holds the bits in the normal run
@pytest.mark.timeout(600)
def test_stopped_suspended_and_killed_ranks_end_with_the_bits_of_an_undisturbed_run(
    place_of_two: Callable[[str], Place],
) -> None:
    undisturbed = place_of_two("undisturbed").finish()
    assert undisturbed.outcome == "trained"

    at = place_of_two("disturbed")
    process = at.worker()
    ranks = _await_step(process, 1)
    assert suspend(process) < 1.0
    assert is_suspended(process)
    assert [rank.status() for rank in ranks] == [psutil.STATUS_STOPPED]
    resume(process)
    _await_step(process, 2)
    process.send_signal(signal.SIGTERM)
    assert _await_end(process, ranks) == STOPPED
    process = at.worker()
    ranks = _await_step(process, 4)
    suspend(process)
    process.kill()
    assert _await_end(process, ranks) == -signal.SIGKILL
    process = at.worker()
    ranks = _await_step(process, 5)
    ranks[0].kill()  # it takes the worker with it: the service tries again
    assert _await_end(process, ranks) not in (0, STOPPED)
    assert at.finish() == undisturbed
