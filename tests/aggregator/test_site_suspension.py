"""A suspended site: told so, left out of rounds, shown apart, and taken back with what it has."""

from collections.abc import Callable

import pytest

from aggregator.errors import WrongState
from aggregator.states import RoundState, RunState, SeatState
from aggregator.store import site_rows
from tests.aggregator.conftest import Host
from tests.aggregator.test_cli_aggregator import Console, console, fresh
from tests.federation.conftest import make_world, nursery
from tests.federation.world import World

__all__ = ["console", "fresh", "make_world", "nursery"]  # fixtures
MakeWorld = Callable[..., World]


def test_rounds_go_on_without_a_suspended_site_and_do_not_wait_for_it(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    world.step("site-d")  # it has a job, and trains
    world.aggregator.enrolment.suspend("site-d")
    for name in ("site-a", "site-b", "site-c"):
        world.step(name)
        world.train(name)
        world.step(name)
    world.drive()
    assert world.round.state is RoundState.KEYS
    assert world.seats()["site-d"] is SeatState.LEFT_OUT
    assert world.step("site-d") == "close"
    world.silent.add("site-d")
    world.until(RunState.COMPLETED)
    assert "site-d" not in world.seats(2)


def test_a_suspended_site_is_answered_and_sees_it_in_its_own_status(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    site = world.sites["site-d"]
    world.aggregator.enrolment.suspend("site-d")
    turn = site.step(None)
    assert (turn.asked, turn.refusal) == (None, None)
    assert turn.wait_s >= 0.75 * 60  # as often as a site that has nothing to do
    assert site.rounds.suspended
    world.aggregator.enrolment.resume("site-d")
    assert site.step(None).asked == "train"
    assert not site.rounds.suspended


def test_a_site_that_is_resumed_while_the_others_train_goes_on_with_its_update(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    for name in world.sites:
        world.step(name)
        world.train(name)
    world.step("site-d")
    world.aggregator.enrolment.suspend("site-d")
    world.step("site-d")
    world.aggregator.enrolment.resume("site-d")
    world.until(RunState.COMPLETED)
    assert world.seats(1)["site-d"] is SeatState.REVEALED


def test_a_member_of_a_cohort_that_is_suspended_ends_the_round_with_it(make_world: MakeWorld) -> None:
    world = make_world(sites=3, phase="upload")
    world.aggregator.enrolment.suspend("site-c")
    while len(world.rounds()) == 1:
        world.everybody()
    assert world.rounds()[0].state is RoundState.PUBLISHED
    assert world.seats(1)["site-c"] is SeatState.REVEALED
    assert "site-c" not in world.seats(2)


def test_only_an_approved_site_is_suspended_and_only_a_suspended_one_resumed(make_world: MakeWorld) -> None:
    enrolment = make_world(sites=3).aggregator.enrolment
    with pytest.raises(WrongState, match="expected a suspended site, got 'site-a': approved"):
        enrolment.resume("site-a")
    enrolment.suspend("site-a")
    with pytest.raises(WrongState, match="expected an approved site, got 'site-a': suspended"):
        enrolment.suspend("site-a")
    enrolment.revoke("site-a")
    with enrolment.store.read() as session:
        assert site_rows.standing(site_rows.get(session, "site-a")) is site_rows.REVOKED


def test_the_commands_suspend_show_and_resume_and_list_the_suspended_apart(console: Console) -> None:
    for name in ("alpha", "beta", "gamma"):
        console.join(console.json("site", "invite", name, "--auto-approve")["token"], Host())
    console.sign_roster()
    console("site", "suspend", "alpha", "--why", "their scanner is replaced")
    console("site", "revoke", "beta")
    listed = [(row["site"], row["standing"]) for row in console.json("site", "list")]
    assert listed == [("gamma", "approved"), ("alpha", "suspended"), ("beta", "revoked")]
    shown = console.json("site", "show", "alpha")
    assert (shown["standing"], shown["in_roster"]) == ("suspended", True)
    assert (shown["audit"][0]["after"], shown["audit"][0]["why"]) == ("suspended", "their scanner is replaced")
    text = console("site", "show", "alpha").stdout
    assert "certificate_expires_at" in text
    assert "their scanner is replaced" in text
    console("site", "resume", "alpha")
    assert console.json("site", "show", "alpha")["standing"] == "approved"


def test_the_commands_give_a_hospital_new_keys_and_a_new_name(console: Console) -> None:
    console.join(console.json("site", "invite", "alpha", "--auto-approve")["token"], Host())
    console.sign_roster()
    assert "`site rekey alpha`" in console.refused("site", "invite", "alpha")
    console.join(console.json("site", "rekey", "alpha")["token"], Host())
    [row] = console.json("site", "list")
    assert row["standing"] == "approved"
    assert console("site", "approve", "alpha", "--words", row["new_words"]).exit_code == 0
    request = console.folder / "roster.request"
    console("roster", "export", str(request))
    assert "other keys  alpha" in console.custodian.succeeds("review", str(request))
    console.sign_roster()
    console.join(console.json("site", "rename", "alpha", "omega")["token"], Host())
    words = {row["site"]: row["words"] for row in console.json("site", "list")}
    assert console("site", "approve", "omega", "--words", words["omega"]).exit_code == 0
    console.sign_roster()
    assert list(console.json("roster", "show")["sites"]) == ["omega"]
    assert "another name" in console.refused("site", "rename", "omega", "omega")
