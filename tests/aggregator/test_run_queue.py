"""`run start --queue`: a run waits for the one before, and a driver begins it."""

from aggregator.config import load_settings
from aggregator.context import open_context
from aggregator.rounds.driver import Driver
from tests.aggregator.test_cli_aggregator import Console, console, fresh, with_run

__all__ = ["console", "fresh", "with_run"]  # fixtures


def queue(console: Console) -> str:
    """Put another run into the queue; returns its id."""
    signed, model = console.signed_plan(), str(console.folder / "initial.safetensors")
    started = console.json("run", "start", signed, "--model", model, "--force", "--queue")
    assert started["state"] == "queued"
    return str(started["run"])


def drive(console: Console) -> None:
    app = open_context(load_settings(console.config))
    Driver(app).turn()
    app.store.close()


def test_a_queued_run_begins_when_the_one_before_is_over_and_not_sooner(with_run: Console) -> None:
    before = with_run.json("run", "status")["run"]
    queued = [queue(with_run), queue(with_run)]
    drive(with_run)
    assert [row["run"] for row in with_run.json("run", "queue")] == queued
    assert with_run.json("run", "status")["run"] == before  # the newest that has begun
    with_run("run", "abort", "--yes")
    drive(with_run)
    drive(with_run)
    assert [row["state"] for row in with_run.json("run", "list")] == ["aborted", "running", "queued"]
    status = with_run.json("run", "status")
    assert (status["run"], [row["round"] for row in status["rounds"]]) == (queued[0], [1])
    assert "running by the aggregator: the run before it is over" in with_run("run", "explain").stdout


def test_a_run_is_taken_out_of_the_queue_by_aborting_it(with_run: Console) -> None:
    queued = queue(with_run)
    assert with_run("run", "abort", "--run", queued, "--yes").exit_code == 0
    assert with_run.json("run", "queue") == []
    with_run("run", "abort", "--yes")
    drive(with_run)
    assert [row["state"] for row in with_run.json("run", "list")] == ["aborted", "aborted"]


def test_with_no_run_in_progress_nothing_waits(with_run: Console) -> None:
    with_run("run", "abort", "--yes")
    start = ("run", "start", with_run.signed_plan(), "--model", str(with_run.folder / "initial.safetensors"))
    assert with_run.json(*start, "--force", "--queue")["state"] == "running"


def test_a_queued_run_can_be_neither_paused_nor_closed(with_run: Console) -> None:
    queued = queue(with_run)
    for verb in ("pause", "resume", "close-now"):
        assert "it is queued" in with_run.refused("run", verb, "--run", queued)
