"""The driver: leases, deadlines, what a failed attempt keeps, and a run that asks for a person."""

from federation.v1 import rounds_pb2 as pb

from aggregator.context import AppContext
from aggregator.rounds import aggregation
from aggregator.rounds.driver import Driver, is_dead, own_name
from aggregator.runs import lifecycle
from aggregator.states import RoundState, RunState, SeatState
from aggregator.store import round_rows
from aggregator.store.tables import Audit

PHASE_S, TRAINING_S = 61, 3601


def test_a_round_leased_by_another_driver_is_left_to_it_until_the_lease_runs_out(federation) -> None:
    federation.start()
    for hospital in federation.hospitals.values():
        hospital.act()
    row, now = federation.round(), federation.clock()
    with federation.app.store.write() as session:
        assert round_rows.lease(session, row.id, "another", now, now.replace(minute=5))
    assert not federation.driver.turn()
    assert federation.round().state is RoundState.TRAINING
    federation.clock.advance(minutes=6)
    federation.settle()
    assert federation.round().state is RoundState.KEYS


def test_a_lease_is_one_drivers_and_may_be_renewed_and_given_back_by_it_alone(federation) -> None:
    federation.start()
    row, now = federation.round(), federation.clock()
    until = now.replace(minute=5)
    with federation.app.store.write() as session:
        assert round_rows.lease(session, row.id, "one", now, until)
        assert not round_rows.lease(session, row.id, "other", now, until)
        assert round_rows.lease(session, row.id, "one", now, until)
        round_rows.release(session, row.id, "other")
        assert round_rows.leases(session) == [(row.id, "one")]
        round_rows.release(session, row.id, "one")
        assert round_rows.leases(session) == []


def test_two_drivers_that_both_open_publish_once(federation, monkeypatch) -> None:
    """The lease is stolen in the middle: the slower one must lose, not publish a second time."""
    federation.start()
    federation.until(RoundState.REVEAL)
    for hospital in federation.hospitals.values():
        hospital.act()
    other, real, stolen = Driver(federation.app), aggregation._publish, []

    def stolen_first(
        app: AppContext, sealed: aggregation.AggregationInput, result: aggregation.AggregationResult, actor: str
    ) -> None:
        if not stolen:
            stolen.append(True)
            federation.clock.advance(minutes=10)  # past the lease
            while other.turn():
                pass
        real(app, sealed, result, actor)

    monkeypatch.setattr(aggregation, "_publish", stolen_first)
    federation.settle()
    with federation.app.store.read() as session:
        published = session.query(Audit).filter(Audit.after == "published").count()
    assert published == 1
    assert federation.round(1).state is RoundState.PUBLISHED
    assert federation.round().number == 2


def test_the_leases_of_a_dead_process_of_this_machine_are_known(federation) -> None:
    own = own_name()
    host, pid, _process, driver = own.split("/")
    assert not is_dead(own)
    assert is_dead(f"{host}/{pid}/of-an-earlier-start/{driver}")
    assert is_dead(f"{host}/4194304/x/{driver}")
    assert not is_dead(f"elsewhere/{pid}/x/{driver}")
    assert not is_dead("no driver's name")


def test_a_member_silent_in_a_phase_is_missed_and_the_others_go_on(federation) -> None:
    federation.start()
    federation.until(RoundState.UPLOAD)
    for name in ("site-a", "site-b", "site-c", "site-d"):
        federation.hospitals[name].act()
    federation.settle()
    assert federation.round().state is RoundState.UPLOAD
    federation.clock.advance(seconds=PHASE_S)
    federation.settle()
    assert federation.round().state is RoundState.CONFIRM
    assert federation.seat("site-e").state is SeatState.MISSED


def test_below_the_threshold_the_attempt_starts_over_with_fresh_keys_and_keeps_no_payload(federation) -> None:
    federation.start()
    federation.until(RoundState.SHARES)
    before = federation.hospitals["site-a"].member.advertisement
    for name in ("site-a", "site-b"):
        federation.hospitals[name].act()
    federation.clock.advance(seconds=PHASE_S)
    federation.driver.turn()
    row = federation.round()
    assert (row.state, row.attempt, row.roster_epoch) == (RoundState.TRAINING, 2, 0)
    seats = [federation.seat(name) for name in federation.hospitals]
    assert {seat.state for seat in seats} == {SeatState.READY, SeatState.MISSED}
    assert all(seat.advertisement is None and seat.shares is None for seat in seats)
    federation.until(RoundState.SHARES)
    assert federation.hospitals["site-a"].member.advertisement.mask_key != before.mask_key
    assert federation.complete().state is RunState.COMPLETED


def test_a_failed_reveal_abandons_the_round_and_publishes_nothing(federation) -> None:
    federation.start()
    federation.until(RoundState.REVEAL)
    for name in ("site-a", "site-b", "site-c"):
        federation.hospitals[name].act()
    federation.clock.advance(seconds=PHASE_S)
    federation.settle()
    first = federation.round(1)
    assert first.state is RoundState.ABANDONED
    assert first.sum_blob is None
    assert federation.round().number == 2
    assert federation.round().base_model == federation.initial.digest


def test_three_abandoned_rounds_in_a_row_pause_the_run_and_say_why_and_a_person_resumes_it(federation) -> None:
    run = federation.start(rounds=10)
    for number in (1, 2, 3):
        assert federation.round().number == number
        federation.clock.advance(seconds=TRAINING_S)
        federation.settle()
    assert federation.run().state is RunState.PAUSED
    assert "3 rounds in a row" in federation.run().reason
    federation.clock.advance(seconds=TRAINING_S)
    federation.settle()
    assert federation.round().number == 3
    lifecycle.resume(federation.app, run.run_id)
    assert (federation.round().number, federation.round().state) == (4, RoundState.TRAINING)


def test_a_paused_run_ends_its_round_and_begins_no_other(federation) -> None:
    run = federation.start()
    federation.until(RoundState.KEYS)
    lifecycle.pause(federation.app, run.run_id)
    for _ in range(8):
        federation.turn()
    assert (federation.round().number, federation.round().state) == (1, RoundState.PUBLISHED)
    lifecycle.resume(federation.app, run.run_id)
    assert federation.complete().state is RunState.COMPLETED


def test_an_aborted_run_tells_every_site_to_erase_wherever_its_round_is(federation) -> None:
    run = federation.start()
    federation.until(RoundState.UPLOAD)
    lifecycle.abort(federation.app, run.run_id)
    federation.turn()
    outcomes = {hospital.closes[-1].outcome for hospital in federation.hospitals.values()}
    assert outcomes == {pb.CloseStep.RUN_OVER}
    assert federation.round().state is RoundState.ABANDONED
    assert not federation.driver.turn()


def test_uploads_are_deleted_when_their_round_is_over(federation) -> None:
    federation.start()
    federation.until(RoundState.REVEAL)
    digests = [federation.seat(name).upload_digest for name in federation.hospitals]
    size = len(federation.hospitals["site-a"].uploaded)
    assert all(federation.app.uploads.offer(digest, size).complete for digest in digests)
    federation.turn()
    federation.driver.turn()
    assert federation.round(1).state is RoundState.PUBLISHED
    assert not any(federation.app.uploads.offer(digest, size).complete for digest in digests)


def test_a_round_whose_step_fails_is_left_alone_for_a_while_and_does_not_stop_the_loop(federation, monkeypatch) -> None:
    federation.start()
    for hospital in federation.hospitals.values():
        hospital.act()
    seconds = [100.0]
    driver = Driver(federation.app, monotonic=lambda: seconds[0])
    real, failures = Driver._act, []

    def failing(self: Driver, round_id: int) -> object:
        if not failures:
            failures.append(round_id)
            raise OSError("the disk is full")
        return real(self, round_id)

    monkeypatch.setattr(Driver, "_act", failing)
    assert not driver.turn()
    assert not driver.turn()
    seconds[0] += 6
    assert driver.turn()
    assert federation.round().state is RoundState.KEYS
