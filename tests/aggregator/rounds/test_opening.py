"""Opening: the sum is the sum of what the members put in, the chain is followed, and a kill anywhere is survived."""

from federation.v1 import rounds_pb2 as pb

from aggregator.states import RoundState, RunState


def test_the_run_ends_with_the_model_that_the_plain_sums_lead_to(federation) -> None:
    federation.start()
    assert federation.complete().state is RunState.COMPLETED
    members = sorted(federation.hospitals)
    first = federation.expected_next(federation.initial, 1, members)
    second = federation.expected_next(first, 2, members)
    assert federation.newest_model().digest == second.digest
    for hospital in federation.hospitals.values():
        federation.turn()
        assert hospital.model.digest == second.digest
        assert hospital.working_on is None
        assert [close.outcome for close in hospital.closes] == [pb.CloseStep.PUBLISHED] * 3
    assert federation.round(3).state is RoundState.PUBLISHED
