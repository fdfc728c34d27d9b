"""The worker's messages about its progress, and the time left that the service derives from them."""

from federation.vocabulary import SiteState

from site_client.trainer.worker_messages import TrainingSpeed, WorkerMessage, as_line, from_line


def _training(step: int) -> WorkerMessage:
    return WorkerMessage(SiteState.TRAINING, 100 * step // 1000, step, 1000, 0.5, 20)


def test_a_message_comes_through_the_pipe_as_it_was() -> None:
    assert from_line(as_line(_training(3))) == _training(3)


def test_after_a_resumption_the_time_left_comes_from_the_steps_since_then() -> None:
    speed = TrainingSpeed()
    speed.observe(WorkerMessage(SiteState.PREPARING, 0, 7, 9, None, 9), 0.0)  # an hour of preparing
    speed.observe(_training(901), 3600.0)
    assert speed.seconds_left(_training(901)) is None
    speed.observe(_training(911), 3620.0)
    assert speed.seconds_left(_training(911)) == 178


def test_there_is_no_time_left_to_tell_outside_training() -> None:
    speed = TrainingSpeed()
    speed.observe(_training(1), 0.0)
    speed.observe(_training(2), 1.0)
    assert speed.seconds_left(WorkerMessage(SiteState.PREPARING)) is None
