"""How long the agent waits after failures."""

from site_client.agent.backoff import Backoff


def test_failures_in_a_row_double_the_wait_up_to_a_minute() -> None:
    backoff = Backoff(spread=lambda: 1.0)
    assert [backoff.failed(0) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    backoff.succeeded()
    assert backoff.failed(0) == 1


def test_a_line_that_moves_something_between_two_cuts_is_tried_at_once_each_time() -> None:
    backoff = Backoff(spread=lambda: 1.0)
    assert [backoff.failed(progress) for progress in (1, 2, 5, 5, 5, 6)] == [1, 1, 1, 2, 4, 1]


def test_the_wait_is_spread_over_half_of_it() -> None:
    waits = {Backoff().failed(0) for _ in range(50)}
    assert all(0.5 <= wait_s < 1.0 for wait_s in waits)
    assert len(waits) > 10
