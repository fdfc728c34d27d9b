"""`run rollback`: out to the custodian, who reads it in words, and back; one number is signed for one model only."""

from dataclasses import replace
from pathlib import Path

from federation.rollback import RunRollback

from aggregator.config import load_settings
from aggregator.context import open_context
from aggregator.signing_requests import RollbackRequest, SignedRollbackFile, read_file, write_file
from aggregator.states import RoundState
from aggregator.store import Cause, round_rows, run_rows
from tests.aggregator.test_cli_aggregator import Console, console, fresh, with_run
from tests.contract.conftest import PLAN

__all__ = ["console", "fresh", "with_run"]  # fixtures


def abandon_round(console: Console) -> None:
    app = open_context(load_settings(console.config))
    with app.store.write() as session:
        [run] = run_rows.all_runs(session)
        row = round_rows.get(session, run.run_id, 1)
        cause = Cause(app.clock(), "a test", "its end")
        round_rows.move(session, row, RoundState.ABANDONED, cause.of(round_rows.subject(row)), {"reason": "its end"})
    app.store.close()


def test_a_paused_run_between_two_rounds_goes_back_by_the_custodians_signature(with_run: Console) -> None:
    request = with_run.folder / "rollback.request"
    export = ("run", "rollback", "0", str(request))
    assert "expected a paused run" in with_run.refused(*export)
    assert with_run("run", "pause").exit_code == 0
    assert "between two rounds, got one in progress" in with_run.refused(*export)
    abandon_round(with_run)
    assert "made no model" in with_run.refused("run", "rollback", "1", str(request))
    assert with_run(*export).exit_code == 0
    [run] = with_run.json("run", "list")
    words = with_run.custodian.succeeds("review", str(request))
    assert f"Rollback 1 of run {run['run']} (pilot)" in words
    assert "by the aggregator's word the initial model" in words
    assert "expected a signed rollback" in with_run.refused("run", "import-rollback", str(request))
    signed = with_run.custodian.sign(request)
    assert "is signed already" in with_run.custodian.refused("review", str(signed))
    done = with_run("run", "import-rollback", str(signed))
    assert done.exit_code == 0, done.output
    assert "goes on from the model of round 0" in done.stdout
    assert "has gone on since" in with_run.refused("run", "import-rollback", str(signed))
    assert with_run("run", "resume").exit_code == 0
    [trail] = [row for row in with_run.json("audit") if row["after"] == "rolled back"]
    assert trail["why"].startswith("rolled back by the custodian to the model of round 0")


def test_the_custodian_signs_one_rollback_of_a_number_and_shows_what_is_left(console: Console, tmp_path: Path) -> None:
    path, custodian = tmp_path / "rollback.request", console.custodian
    rollback = RunRollback(PLAN.digest, 1, 9, bytes(32), 3)

    def request(changed: RunRollback, *passed: str) -> Path:
        write_file(path, RollbackRequest(changed.to_bytes(), PLAN.to_bytes(), list(passed)))
        return path

    words = custodian.succeeds("review", str(request(rollback, "the model of round 4, abcd, refused")))
    assert "leaves      the model of round 4, abcd, refused" in words
    assert isinstance(read_file(custodian.sign(path)), SignedRollbackFile)
    assert isinstance(read_file(custodian.sign(path)), SignedRollbackFile), "the same one again"
    other = replace(rollback, model_digest=bytes([1]) * 32)
    assert "expected a rollback of number 2 or higher" in custodian.refused("review", str(request(other)))
    assert isinstance(read_file(custodian.sign(request(replace(other, number=2)))), SignedRollbackFile)
    strange = replace(other, number=3, plan_digest=bytes(32))
    assert "expected the plan of the rollback's run" in custodian.refused("review", str(request(strange)))
