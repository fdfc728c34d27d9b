"""What a run is called when it is over."""

from federation.v1 import rounds_pb2 as pb
from federation.v1.blobs_pb2 import RoundRef

from aggregator.rounds import submissions
from aggregator.states import RoundState, RunState


def test_a_run_whose_every_training_round_was_abandoned_is_aborted_and_says_why(federation) -> None:
    run = federation.start(rounds=1)
    where = RoundRef(run_id=run.run_id, round=1, attempt=1)
    for name in ("site-a", "site-b", "site-c"):
        submissions.accept_decline(federation.app, name, pb.DeclineMessage(round=where, reason=pb.TOO_FEW_STUDIES))
    federation.settle()
    assert federation.round().state is RoundState.ABANDONED
    assert federation.run().state is RunState.ABORTED
    assert "every round of the plan was abandoned" in (federation.run().reason or "")
    assert federation.newest_model().digest == federation.initial.digest
