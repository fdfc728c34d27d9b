"""A base model that was damaged on the aggregator's disk is not built upon."""

from dataclasses import replace

from federation.manifest import save_model

from aggregator.states import RoundState
from aggregator.store import run_rows


def test_a_base_model_that_is_another_by_now_abandons_the_round_and_says_so(federation) -> None:
    run = federation.start(rounds=1)
    federation.until(RoundState.REVEAL)
    with federation.app.store.read() as session:
        blob = run_rows.newest_model(session, run.run_id).blob
    (stored,) = (path for path in (federation.folder / "blobs").rglob(f"*{blob.hex()}*") if path.is_file())
    stored.chmod(0o600)
    save_model(stored, replace(federation.initial, weights=federation.initial.weights + 1))
    for _ in range(3):
        federation.turn()
    assert federation.round(1).state is RoundState.ABANDONED
    assert "restore the state folder" in (federation.round(1).reason or "")
