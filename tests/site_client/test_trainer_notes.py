"""What the worker says of its progress."""

from site_client.trainer.worker_messages import TrainingSpeed, WorkerMessage, as_line, from_line


def _training(step: int) -> WorkerMessage:
    return WorkerMessage("SITE_TRAINING", 100 * step // 1000, step, 1000, 0.5, 20)


def test_a_note_comes_through_the_pipe_as_it_was() -> None:
    assert from_line(as_line(_training(3))) == _training(3)


def test_after_a_resumption_the_time_left_comes_from_the_steps_since_then() -> None:
    pace = TrainingSpeed()
    pace.hear(WorkerMessage("SITE_PREPARING", 0, 7, 9, None, 9), 0.0)  # an hour of preparing
    pace.hear(_training(901), 3600.0)
    assert pace.seconds_left(_training(901)) is None
    pace.hear(_training(911), 3620.0)
    assert pace.seconds_left(_training(911)) == 178


def test_there_is_no_time_left_to_tell_outside_training() -> None:
    pace = TrainingSpeed()
    pace.hear(_training(1), 0.0)
    pace.hear(_training(2), 1.0)
    assert pace.seconds_left(WorkerMessage("SITE_PREPARING")) is None
