"""The only door between the two processes: whole or not there, checked on both sides, and safe from who only looks."""

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation.vocabulary import Outcome, SiteState, StateReason
from hypothesis import given
from hypothesis import strategies as st

from site_client import spool as spool_module
from site_client.errors import SpoolRefused
from site_client.records import (
    NO_HISTOGRAMS,
    RECORD_BYTES_MAX,
    Job,
    RunId,
    Status,
    Update,
    from_json,
    histograms_of,
    to_json,
)
from site_client.spool import AgentSide, TrainerSide
from site_client.typed_json import Digest

RUN = RunId(bytes(range(16)))
JOB = Job(RUN, 3, False, Digest(bytes([1]) * 32), Digest(bytes([2]) * 32))
UPDATE = Update(RUN, 3, Digest(bytes([1]) * 32), Outcome.TRAINED, None, 40, 12.5, 80, True)
DELTA = np.arange(12, dtype=np.float32)
WHEN = datetime(2026, 11, 23, tzinfo=UTC)
STATUS = Status(WHEN, SiteState.TRAINING, (StateReason.FOREIGN_CPU,), RUN, 3, 40, 4, 10, 0.5, 60, 312)


class Crash(BaseException):
    """The power goes."""


def crash(*_: object) -> None:
    raise Crash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"a model")
    return path


@pytest.fixture
def agent(folder: Path) -> AgentSide:
    return AgentSide(folder)


@pytest.fixture
def trainer(folder: Path) -> TrainerSide:
    return TrainerSide(folder)


def test_a_job_and_its_update_go_through_unchanged(agent: AgentSide, trainer: TrainerSide, base: Path) -> None:
    offered = agent.offer_job(JOB, b"signed plan", base)
    assert trainer.jobs() == [offered]
    assert replace(offered, folder=JOB.folder) == JOB
    assert (offered.plan_file.read_bytes(), offered.base_file.read_bytes()) == (b"signed plan", b"a model")
    assert agent.update(RUN, 3) is None
    delivered = trainer.deliver(UPDATE, DELTA)
    assert agent.update(RUN, 3) == delivered
    assert np.array_equal(agent.delta(delivered, 12), DELTA)
    trainer.write_status(STATUS)
    assert agent.status() == STATUS


def test_a_delta_is_read_only_for_the_agent(agent: AgentSide, trainer: TrainerSide) -> None:
    delta = agent.delta(trainer.deliver(UPDATE, DELTA), 12)
    with pytest.raises(ValueError, match="read-only"):
        delta[0] = 1


def test_the_same_offer_again_changes_nothing_and_another_is_refused(agent: AgentSide, base: Path) -> None:
    first = agent.offer_job(JOB, b"signed plan", base)
    before = (first.folder / "job.json").stat().st_mtime_ns
    assert agent.offer_job(JOB, b"signed plan", base) == first
    assert (first.folder / "job.json").stat().st_mtime_ns == before
    with pytest.raises(SpoolRefused, match="a second one"):
        agent.offer_job(replace(JOB, plan_digest=Digest(bytes(32))), b"another", base)


def test_a_withdrawn_job_is_gone_and_its_update_is_swept(agent: AgentSide, trainer: TrainerSide, base: Path) -> None:
    agent.offer_job(JOB, b"plan", base)
    agent.offer_job(replace(JOB, round=4), b"plan", base)
    trainer.deliver(UPDATE, DELTA)
    trainer.deliver(replace(UPDATE, round=4), DELTA)
    agent.withdraw_job(RUN, 3)
    agent.withdraw_job(RUN, 3)
    trainer.sweep()
    assert [job.round for job in trainer.jobs()] == [4]
    assert (trainer.delivered(RUN, 3), trainer.delivered(RUN, 4)) == (False, True)


def test_jobs_come_in_the_order_of_their_rounds(agent: AgentSide, trainer: TrainerSide, base: Path) -> None:
    for number in (10, 2, 9):
        agent.offer_job(replace(JOB, round=number), b"plan", base)
    assert [job.round for job in trainer.jobs()] == [2, 9, 10]


@pytest.mark.parametrize("call", ["write_file", "lend_file"])
def test_a_crash_while_a_job_is_built_shows_the_trainer_nothing(
    agent: AgentSide, trainer: TrainerSide, base: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(spool_module, call, crash)
        patch.setattr("site_client.files.remove", lambda _: None)  # a power cut tidies nothing up
        with pytest.raises(Crash):
            agent.offer_job(JOB, b"plan", base)
    assert trainer.jobs() == []
    assert len(list(agent._out.iterdir())) == 1
    agent.offer_job(JOB, b"plan", base)
    assert len(trainer.jobs()) == 1


def test_a_crash_while_an_update_is_built_shows_the_agent_nothing(
    agent: AgentSide, trainer: TrainerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "write_file", crash)
        with pytest.raises(Crash):
            trainer.deliver(UPDATE, DELTA)
    assert agent.update(RUN, 3) is None
    assert not agent.delivered(RUN, 3)


def test_only_the_service_that_owns_a_side_clears_its_drafts(
    folder: Path, agent: AgentSide, trainer: TrainerSide
) -> None:
    half_job, half_update = folder / "to_trainer" / ".job-x", folder / "to_agent" / ".update-x"
    for draft in (half_job, half_update):
        draft.mkdir()
    AgentSide(folder), TrainerSide(folder)  # somebody else who opens a side
    AgentSide.peek(folder)
    assert (half_job.exists(), half_update.exists()) == (True, True)
    agent.clear_drafts()
    assert (half_job.exists(), half_update.exists()) == (False, True)
    trainer.clear_drafts()
    assert not half_update.exists()


def test_who_only_looks_never_disturbs_an_offer_being_built(folder: Path, agent: AgentSide, base: Path) -> None:
    done = threading.Event()
    odd: list[Job] = []

    def look() -> None:
        while not done.is_set():
            odd.extend(job for job in TrainerSide(folder).jobs() if not job.base_file.exists())
            AgentSide.peek(folder)

    looker = threading.Thread(target=look)
    looker.start()
    for number in range(1, 40):
        agent.offer_job(replace(JOB, round=number), b"plan", base)
    done.set()
    looker.join()
    assert odd == []
    assert len(agent.jobs()) == 39


def test_peeking_makes_no_folder(tmp_path: Path) -> None:
    assert AgentSide.peek(tmp_path / "spool") is None
    assert list(tmp_path.iterdir()) == []


def test_a_changed_delta_is_refused(agent: AgentSide, trainer: TrainerSide, folder: Path) -> None:
    update = trainer.deliver(UPDATE, DELTA)
    path = next(folder.glob("to_agent/update-*/delta.f32"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(SpoolRefused, match="does not have the digest"):
        agent.delta(update, 12)


def test_a_delta_goes_with_a_trained_update_and_with_nothing_else(agent: AgentSide, trainer: TrainerSide) -> None:
    evaluated = replace(UPDATE, outcome=Outcome.EVALUATED)
    for update, delta in ((UPDATE, None), (evaluated, DELTA)):
        with pytest.raises(SpoolRefused, match='a delta goes with "trained"'):
            trainer.deliver(update, delta)
    with pytest.raises(SpoolRefused, match="without a delta"):
        agent.delta(trainer.deliver(evaluated), 12)


def test_an_update_delivered_again_replaces_the_first(agent: AgentSide, trainer: TrainerSide) -> None:
    trainer.deliver(UPDATE, DELTA)
    second = trainer.deliver(replace(UPDATE, studies=41), DELTA + 1)
    assert agent.update(RUN, 3) == second
    assert np.array_equal(agent.delta(second, 12), DELTA + 1)


def test_the_other_side_reads_and_cannot_write(
    folder: Path, agent: AgentSide, trainer: TrainerSide, base: Path
) -> None:
    agent.offer_job(JOB, b"plan", base)
    trainer.deliver(UPDATE, DELTA)
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in folder.rglob("*") if path.is_file()}
    assert set(modes.values()) == {"0o640"}
    assert {oct(path.stat().st_mode & 0o7777) for path in folder.rglob("*") if path.is_dir()} == {"0o750"}


# Records.

RECORDS = [JOB, UPDATE, STATUS, replace(UPDATE, outcome=Outcome.DECLINED, reason=StateReason.NO_LABELS)]


@pytest.mark.parametrize("record", RECORDS, ids=["job", "update", "status", "declined"])
def test_a_record_comes_back_as_it_was(record: Job | Update | Status) -> None:
    assert from_json(type(record), to_json(record)) == record


@pytest.mark.parametrize("record", RECORDS[:3], ids=["job", "update", "status"])
def test_an_unknown_or_missing_key_is_refused(record: Job | Update | Status) -> None:
    table = json.loads(to_json(record))
    for odd in ({**table, "patient_name": "x"}, {key: table[key] for key in list(table)[1:]}):
        with pytest.raises(SpoolRefused, match="is unknown or missing"):
            from_json(type(record), json.dumps(odd).encode())


@pytest.mark.parametrize(
    ("record", "key", "value"),
    [
        (JOB, "run_id", "00" * 15),
        (JOB, "round", 0),
        (JOB, "round", True),
        (JOB, "evaluation_only", 1),
        (UPDATE, "outcome", "leaked"),
        (UPDATE, "loss_sum", "12.5"),
        (UPDATE, "studies", -1),
        (UPDATE, "reason", "DOE^JANE"),
        (UPDATE, "histograms", [[[0] * 64] * 2] * 5),
        (UPDATE, "histograms", [[[0] * 63] * 2] * 6),
        (UPDATE, "histograms", [[["x"] * 64] * 2] * 6),
        (STATUS, "state", "SITE_STATE_UNSPECIFIED"),
        (STATUS, "reasons", ["DOE^JANE"]),
        (STATUS, "reasons", ["DISK"] * 33),
        (STATUS, "written_at", "2026-11-23T09:00:00"),
        (STATUS, "progress_percent", 101),
    ],
)
def test_a_value_out_of_range_is_refused_without_being_repeated(record: Any, key: str, value: Any) -> None:
    table = json.loads(to_json(record)) | {key: value}
    with pytest.raises(SpoolRefused, match=f"{key} is out of range") as refusal:
        from_json(type(record), json.dumps(table).encode())
    assert "DOE" not in str(refusal.value)


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    for kind in (Job, Update, Status):
        with pytest.raises(SpoolRefused):
            from_json(kind, data)


def test_a_reason_goes_with_declined_and_with_nothing_else() -> None:
    for odd in (replace(UPDATE, reason=StateReason.DISK), replace(UPDATE, outcome=Outcome.DECLINED)):
        with pytest.raises(SpoolRefused, match="a reason goes with"):
            to_json(odd)


def test_histograms_have_their_shape() -> None:
    assert histograms_of(np.zeros((6, 2, 64), np.int64)) == NO_HISTOGRAMS
    with pytest.raises(SpoolRefused, match="expected histograms of shape"):
        histograms_of(np.zeros((6, 64), np.int64))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_neither_written_nor_read(number: float) -> None:
    with pytest.raises(SpoolRefused, match="not finite"):
        to_json(replace(UPDATE, loss_sum=number))
    text = json.dumps(json.loads(to_json(UPDATE)) | {"loss_sum": number})
    with pytest.raises(SpoolRefused, match="it is not JSON"):
        from_json(Update, text.encode())


def test_a_record_larger_than_the_limit_is_refused_before_it_is_parsed(
    folder: Path, agent: AgentSide, trainer: TrainerSide, base: Path
) -> None:
    agent.offer_job(JOB, b"plan", base)
    trainer.deliver(UPDATE, DELTA)
    trainer.write_status(STATUS)
    padding = b" " * RECORD_BYTES_MAX
    for path in folder.rglob("*.json"):
        path.write_bytes(padding + path.read_bytes())
    for read in (agent.jobs, agent.status, lambda: agent.update(RUN, 3), trainer.jobs):
        with pytest.raises(SpoolRefused, match=f"larger than {RECORD_BYTES_MAX} bytes"):
            read()


def test_a_record_that_nests_without_end_is_refused() -> None:
    for kind in (Job, Update, Status):
        with pytest.raises(SpoolRefused, match="it is not JSON"):
            from_json(kind, b"[" * RECORD_BYTES_MAX)


def test_a_record_reads_back_as_the_types_of_the_vocabulary() -> None:
    status, update = from_json(Status, to_json(STATUS)), from_json(Update, to_json(UPDATE))
    assert (type(status.state), type(status.reasons[0]), type(update.outcome)) == (SiteState, StateReason, Outcome)
    assert (type(update.run_id), type(status.run_id)) == (RunId, RunId)


def test_a_folder_that_is_no_job_is_not_taken_for_one(folder: Path, agent: AgentSide, base: Path) -> None:
    agent.offer_job(JOB, b"plan", base)
    for name in ("job-x", "job-0-0", f"job-{'0' * 32}-x"):
        (folder / "to_trainer" / name).mkdir()
    assert [job.round for job in agent.jobs()] == [3]


def test_a_job_folder_that_names_another_round_is_refused(folder: Path, agent: AgentSide, base: Path) -> None:
    offered = agent.offer_job(JOB, b"plan", base)
    offered.folder.rename(folder / "to_trainer" / f"job-{RUN.hex()}-4")
    with pytest.raises(SpoolRefused):
        agent.jobs()
