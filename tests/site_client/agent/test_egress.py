"""The choke point: nothing is on the wire that is not in the ledger first, and what is refused is on neither side."""

import ast
import hashlib
from pathlib import Path

import pytest
from federation.encoding import Layout
from federation.errors import Malformed
from federation.plan import TrainingPlan
from federation.v1 import blobs_pb2, rounds_pb2, secagg_pb2
from federation.v1.blobs_pb2 import RoundRef
from federation.wire import serialize

import site_client
from site_client.agent.egress import payloads
from site_client.agent.egress.calls import POLL, READY, SEND_KEYS
from site_client.agent.egress.egress import Egress, summary
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import EgressDecision, Ledger, read
from site_client.agent.egress.payloads import Payloads
from site_client.errors import EgressRefused
from tests.site_client.agent.conftest import Wire

REF = RoundRef(run_id=bytes(16), round=1)
ACCEPTED = rounds_pb2.Receipt(verdict=rounds_pb2.Receipt.ACCEPTED)


def test_a_message_is_recorded_before_it_is_sent(egress: Egress, ledger: Ledger, wire: Wire, tmp_path: Path) -> None:
    def answer(data: bytes) -> rounds_pb2.Receipt:
        (entry,) = read(tmp_path / "ledger" / "ledger.jsonl")  # already on disk while the wire has it
        assert (entry.sha256, entry.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (entry.rpc, entry.dest, entry.decision) == ("Rounds/Ready", "hub.example:8443", EgressDecision.ALLOWED)
        return ACCEPTED

    wire.answers["Rounds/Ready"] = answer
    assert egress.send(READY, rounds_pb2.ReadyMessage(round=REF)) == ACCEPTED
    assert ledger.entries == 1


def test_every_chunk_of_an_upload_is_recorded(
    egress: Egress, guard: Guard, wire: Wire, plan: TrainingPlan, tmp_path: Path
) -> None:
    layout = Layout.of(plan, plan.manifest.size)
    masked = bytes(layout.bytes)
    wire.answers["Blobs/Put"] = lambda _: blobs_pb2.BlobProgress(held_bytes=len(masked), complete=True)
    digest = hashlib.sha256(masked).digest()
    with guard.upload_of(layout, memoryview(masked), digest):
        egress.send_chunks(
            blobs_pb2.BlobChunk(digest=digest, offset=at, data=masked[at : at + 1000])
            for at in range(0, len(masked), 1000)
        )
    recorded = [(entry.rpc, entry.sha256) for entry in read(tmp_path / "ledger" / "ledger.jsonl")]
    assert recorded == [("Blobs/Put", hashlib.sha256(data).hexdigest()) for _, data in wire.sent]
    assert len(recorded) == -(-len(masked) // 1000)


def test_what_the_guard_refuses_is_not_sent_and_stands_in_the_ledger_as_refused(
    egress: Egress, wire: Wire, tmp_path: Path
) -> None:
    named = secagg_pb2.KeysMessage(round=REF, advertisement=secagg_pb2.Advertisement(site="DOE^JANE"))
    with pytest.raises(EgressRefused):
        egress.send(SEND_KEYS, named)
    assert wire.sent == []
    (entry,) = read(tmp_path / "ledger" / "ledger.jsonl")
    assert (entry.decision, entry.left) == (EgressDecision.REFUSED, False)
    assert "DOE" not in (tmp_path / "ledger" / "ledger.jsonl").read_text()


def test_a_ledger_that_cannot_be_written_keeps_the_message_here(egress: Egress, ledger: Ledger, wire: Wire) -> None:
    reopened = ledger._file._handle
    ledger._file._handle = -1  # as after the disk under it went away
    with pytest.raises(OSError, match="Bad file descriptor"):
        egress.send(READY, rounds_pb2.ReadyMessage(round=REF))
    ledger._file._handle = reopened
    assert wire.sent == []


def test_what_left_can_be_opened_again(guard: Guard, ledger: Ledger, wire: Wire, tmp_path: Path) -> None:
    egress = Egress(guard, ledger, wire, Payloads(tmp_path / "payloads", 10_000))
    wire.answers["Rounds/Ready"] = lambda _: ACCEPTED
    message = rounds_pb2.ReadyMessage(round=REF)
    egress.send(READY, message)
    assert payloads.find(tmp_path / "payloads", 1) == serialize(message)


def test_an_answer_that_is_none_is_refused(egress: Egress, wire: Wire) -> None:
    wire.answers["Rounds/Poll"] = lambda _: blobs_pb2.BlobChunk(digest=bytes(32), offset=1, data=b"x")
    with pytest.raises(Malformed):
        egress.send(POLL, rounds_pb2.PollRequest(state=rounds_pb2.SITE_IDLE))


def test_a_summary_says_what_is_set_and_how_long_and_no_value() -> None:
    message = secagg_pb2.SharesMessage(
        round=REF, shares=[secagg_pb2.EncryptedShare(from_site="mercy", to_site="north", ciphertext=b"secret")] * 2
    )
    assert summary(message) == {"round.run_id": "bytes[16]", "round.round": "number", "shares": "2 x EncryptedShare"}
    poll = rounds_pb2.PollRequest(state=rounds_pb2.SITE_IDLE, version="0.1.0", ledger_entries=7)
    assert summary(poll) == {"state": "choice", "version": "text[5]", "ledger_entries": "number"}


def test_nothing_else_in_the_agent_makes_a_cleared_message_or_holds_a_transport() -> None:
    agent = Path(site_client.__file__).parent / "agent"
    makers = {
        path.name
        for path in agent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Cleared"
    }
    assert makers == {"egress.py"}
