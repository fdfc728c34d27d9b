"""A private run at the aggregator: figures only where histograms leave, and the same account as at every site."""

from collections.abc import Callable

import pytest
from federation.plan import Trainable
from federation.privacy import histogram_noise

from aggregator.runs.metrics import NOTHING, Report
from aggregator.runs.privacy_status import privacy_status
from aggregator.states import RoundState, RunState
from aggregator.store import round_rows
from site_client.agent.privacy.costs import CostKind
from site_client.agent.privacy.ledger import read
from tests.federation.invariants import check
from tests.federation.nursery import TRAINING_S
from tests.federation.world import World


@pytest.mark.parametrize("trainable", [Trainable.ALL, Trainable.HEADS])
def test_a_private_run_has_figures_of_patients_where_histograms_leave_and_none_elsewhere(
    make_world: Callable[..., World], trainable: Trainable
) -> None:
    world = make_world(sites=4, rounds=2, private=True, trainable=trainable)
    world.until(RunState.COMPLETED)
    check(world)
    with world.aggregator.app.store.read() as session:
        rows = round_rows.metrics_of_run(session, world.run_id)
    # Rounds 1 and 3 evaluate, round 2 trains alone.
    reports = [Report.from_json(row.report) for row in rows]
    assert [report == NOTHING for report in reports] == [False, True, False]
    assert [(row.studies, row.train_loss) for row in rows] == [(None, None)] * 3
    privacy = world.plan.privacy
    assert privacy is not None
    variance = 4 * histogram_noise(privacy).share_variance(4)
    for report in (reports[0], reports[2]):
        assert (report.unit, report.weighted_log_loss) == ("patient", None)
        assert report.count_deviation == pytest.approx((16 * variance) ** 0.5)


def test_the_aggregators_account_is_that_of_a_site_that_was_always_there(make_world: Callable[..., World]) -> None:
    world = make_world(sites=4, rounds=3, private=True)
    world.until(RoundState.UPLOAD)
    for name in world.sites:
        world.step(name)
    # All uploads have left; then every site vanishes for longer than any deadline.
    for _ in range(8):
        if world.rounds()[0].state is RoundState.ABANDONED:
            break
        world.clock.advance(TRAINING_S + 1)
        world.drive()
    world.until(RunState.COMPLETED)
    with world.aggregator.app.store.read() as session:
        status = privacy_status(session, world.run)
    assert status is not None
    kinds = [charge.cost.kind for charge in read(world.sites["site-a"].agent_folder / "privacy.jsonl")]
    counted = (kinds.count(CostKind.TRAIN), kinds.count(CostKind.VALIDATION))
    assert (status.train.count, status.validation.count) == counted
    assert status.train.epsilon <= status.train_budget
    assert world.rounds()[0].state is RoundState.ABANDONED
