"""`run explain`: each delay of a run and its cause."""

from collections.abc import Callable

from federation.vocabulary import StateReason

from aggregator.commands.run_story import RunStory, tell
from aggregator.rounds.outlook import outlook
from aggregator.rounds.snapshot import read_snapshot
from aggregator.runs import lifecycle
from aggregator.states import RunState, SeatState
from aggregator.store import Cause, round_rows, run_rows
from tests.federation.nursery import PHASE_S, TRAINING_S
from tests.federation.world import World

MakeWorld = Callable[..., World]


def story_of(world: World) -> RunStory:
    app = world.aggregator.app
    with app.store.read() as session:
        return tell(session, run_rows.get(session, world.run_id), app.clock(), app.settings.pacing)


def told(world: World) -> str:
    return "\n".join(story_of(world).lines())


def make_ready(world: World, *names: str) -> None:
    for name in names:
        world.step(name)
        world.train(name)
        world.clock.advance(60)
        world.step(name)


def test_the_story_says_who_is_awaited_and_what_happens_next(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    make_ready(world, "site-a", "site-b")
    world.step("site-c")
    [line] = [line for line in told(world).splitlines() if line.startswith("  training")]
    assert line.startswith("  training, 2 min: site-c: ")
    with world.aggregator.app.store.read() as session:
        row = round_rows.newest(session, world.run_id)
        assert row is not None  # the world began one
        coming = outlook(read_snapshot(session, row, world.clock()), world.clock()).sentence
    assert line.endswith(f"; site-d has never reported; {coming}".removesuffix("."))  # as the dashboard says it
    assert "2 of 4 wanted are ready; masking starts at 4, or at 10:00:00 UTC with at least 3" in line
    world.clock.advance(1800)
    assert "site-c has been silent for 30 min" in told(world)


def test_training_is_told_by_its_first_and_last_site_and_those_it_waited_for(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    make_ready(world, "site-a", "site-b", "site-c")
    world.clock.advance(TRAINING_S)
    world.drive()
    waited = "the round waited 1 h more for site-d, until its deadline or the plan's grace"
    first_and_last = "site-a was ready first, after 1 min, and site-c last, after 3 min"
    assert f"  training, 1 h 3 min: {first_and_last}; {waited}" in told(world)


def test_a_training_that_a_person_closed_says_who(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    make_ready(world, "site-a", "site-b", "site-c")
    lifecycle.close_now(world.aggregator.app, world.run_id, actor="person:ada")
    world.drive()
    assert "site-c last, after 3 min; person:ada closed the training" in told(world)


def test_a_member_that_missed_a_phase_is_named_with_the_time_it_cost(make_world: MakeWorld) -> None:
    world = make_world(sites=4, phase="shares")
    for name in ("site-a", "site-b", "site-c"):
        world.clock.advance(1)
        world.step(name)
    world.clock.advance(PHASE_S)
    world.drive()
    assert "  shares, 1 min 3 s: waited for site-d until the deadline; it did not answer" in told(world)


def test_an_attempt_that_fails_and_the_next_are_told_apart(make_world: MakeWorld) -> None:
    world = make_world(sites=3, phase="keys")
    world.step("site-a")
    world.step("site-b")
    world.clock.advance(PHASE_S)
    world.drive()
    for name in ("site-c", "site-a", "site-b"):  # it is ready again, and the cohort is frozen at the same moment
        world.step(name)
    world.drive()
    world.clock.advance(PHASE_S)
    world.drive()
    lines = told(world).splitlines()
    first = lines.index("  keys, 1 min: waited for site-c until the deadline; it did not answer")
    assert lines[first + 1] == "  training, attempt 2, 0 s: site-c was ready after 0 s"
    assert lines[first + 2].startswith("  keys, attempt 2, 1 min: waited for ")


def test_quick_phases_are_one_line_and_a_published_round_says_how_many(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    world.until(RunState.COMPLETED)
    story = story_of(world)
    assert "3 updates in the sum" in story.rounds[0].outcome
    masking = [delay for delay in story.rounds[0].delays if delay.state == "masking"]
    assert [delay.cause for delay in masking] == [
        "every member answered in the phases keys, shares, upload, confirm, reveal"
    ]
    assert story.turns[-1].endswith("completed by the aggregator: every round of the plan is over")


def test_a_decline_and_an_abandoned_round_have_their_reasons_in_words(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    app = world.aggregator.app
    world.drive()
    with app.store.write() as session:
        row, reason = world.round, StateReason.TOO_FEW_STUDIES
        change = Cause(app.clock(), "site:site-a", reason).of(round_rows.seat_subject(row, "site-a"))
        declined = SeatState.OFFERED, SeatState.DECLINED, change, {"decline_reason": reason}
        round_rows.move_seat(session, row, "site-a", *declined)
    assert "site-a declined (too few studies)" in told(world)
    world.clock.advance(TRAINING_S)
    world.drive()
    first = story_of(world).rounds[0]
    assert "abandoned after" in first.outcome
    assert "site-a declined (too few studies)" in first.delays[0].cause


def test_a_paused_run_says_who_paused_it_and_why(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    lifecycle.pause(world.aggregator.app, world.run_id, "a scanner is replaced", "person:ada")
    lines = told(world).splitlines()
    assert lines[0].endswith("is paused since 2026-11-23 09:00 UTC: a scanner is replaced")
    assert "2026-11-23 09:00 UTC  paused by person:ada: a scanner is replaced" in lines[2]
