"""`hemofed-site ledger` and `plan` as hospital IT types them."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from federation.plan import TrainingPlan, sign_plan
from federation.v1 import rounds_pb2
from federation.v1.blobs_pb2 import RoundRef

from site_client.agent.egress.calls import READY
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.egress.payloads import Payloads
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.rounds.plans import PlanDecision, Plans
from site_client.agent.rounds.rollback import Rollback, Witness, read_rollback
from site_client.cli import main
from site_client.doctor.network.enrolment import check_rollback
from site_client.typed_json import encode
from tests.site_client.agent.conftest import Consortium, StandingClock, Wire

Type = Callable[..., Result]


@pytest.fixture
def agent(tmp_path: Path, identity: SiteIdentity, guard: Guard, wire: Wire, clock: StandingClock) -> Path:
    """The agent's folder after three messages left."""
    folder = tmp_path / "state" / "agent"
    ledger = Ledger(folder / "ledger.jsonl", identity.keys.signing, clock)
    egress = Egress(guard, ledger, wire, Payloads(folder / "payloads", 10_000))
    wire.answers["Rounds/Ready"] = lambda _: rounds_pb2.Receipt(verdict=rounds_pb2.Receipt.ACCEPTED)
    for number in (1, 2, 3):
        egress.send(READY, rounds_pb2.ReadyMessage(round=RoundRef(run_id=bytes(range(16)), round=number)))
    ledger.close()
    return folder


@pytest.fixture
def typed(tmp_path: Path) -> Type:
    config = tmp_path / "site.toml"
    config.write_text('name = "mercy"\n[folders]\nstate = "state"\nspool = "spool"\n')
    return lambda *words: CliRunner().invoke(main, [*words, "--config", str(config)])


def test_show_lists_the_newest_and_opens_one(agent: Path, typed: Type) -> None:
    assert typed("ledger", "show", "--last", "2").output.count("Rounds/Ready") == 2
    records = json.loads(typed("ledger", "show", "--json").output)
    assert [record["seq"] for record in records] == [1, 2, 3]
    opened = json.loads(typed("ledger", "show", "2", "--json").output)
    assert opened["payload"] == {"ReadyMessage": {"round": {"runId": "AAECAwQFBgcICQoLDA0ODw==", "round": 2}}}
    assert "ReadyMessage" in typed("ledger", "show", "2").output
    missing = typed("ledger", "show", "9")
    assert (missing.exit_code, "no entry 9" in missing.output) == (1, True)


def test_totals_are_what_left(agent: Path, typed: Type) -> None:
    (day,) = json.loads(typed("ledger", "totals", "--json").output)
    assert (day["dest"], day["messages"]) == ("hub.example:8443", 3)
    assert day["bytes_out"] == sum(r["bytes"] for r in json.loads(typed("ledger", "show", "--json").output))
    assert "2026-11-23" in typed("ledger", "totals").output


def test_verify_passes_and_names_the_first_bad_entry_with_exit_status_1(agent: Path, typed: Type) -> None:
    found = json.loads(typed("ledger", "verify", "--json").output)
    assert (found["entries"], found["payloads_checked"]) == (3, 3)
    anchored = typed("ledger", "verify", "--anchor", f"3:{found['head']}")
    assert (anchored.exit_code, "unbroken" in anchored.output) == (0, True)
    assert typed("ledger", "verify", "--anchor", f"4:{found['head']}").exit_code == 1
    assert "ENTRIES:HEAD" in typed("ledger", "verify", "--anchor", "three").output
    path = agent / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seq":2', b'"seq":7'))
    broken = typed("ledger", "verify")
    assert (broken.exit_code, "entry 2" in broken.output) == (1, True)


def test_an_export_is_verified_on_another_machine_with_the_public_key_alone(
    agent: Path, typed: Type, identity: SiteIdentity, tmp_path: Path
) -> None:
    out = tmp_path / "export.jsonl"
    assert typed("ledger", "export", "--out", str(out)).exit_code == 0
    assert out.read_bytes() == (agent / "ledger.jsonl").read_bytes()
    key = identity.keys.signing_public.hex()
    assert typed("ledger", "verify", "--file", str(out), "--key", key).exit_code == 0
    assert typed("ledger", "verify", "--file", str(out), "--key", "00" * 32).exit_code == 1
    assert "no file" in typed("ledger", "verify", "--file", str(tmp_path / "none")).output
    assert typed("ledger", "export", "--out", str(out), "--format", "csv").exit_code == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["seq"], row["rpc"], row["decision"]) for row in rows] == [
        (str(seq), "Rounds/Ready", "allowed") for seq in (1, 2, 3)
    ]


def test_a_ledger_of_nothing_says_so(typed: Type) -> None:
    assert "nothing has been sent" in typed("ledger", "show").output
    assert "nothing has left" in typed("ledger", "totals").output


def test_a_plan_is_shown_approved_and_refused(
    typed: Type, identity: SiteIdentity, consortium: Consortium, plan: TrainingPlan, tmp_path: Path
) -> None:
    assert "no plan has been offered" in typed("plan", "show").output
    plans = Plans(tmp_path / "state" / "agent" / "plans")
    plans.keep(sign_plan(plan, consortium.custodian), plan.digest, identity.custodian)
    digest = plan.digest.hex()
    assert "waits for you" in typed("plan", "show").output
    assert plan.purpose in typed("plan", "show", digest[:12]).output
    for word, decision in (("approve", PlanDecision.APPROVED), ("refuse", PlanDecision.REFUSED)):
        assert typed("plan", word, digest[:12]).exit_code == 0
        held = plans.get(plan.digest)
        assert held is not None
        assert held.decision is decision
    assert typed("plan", "approve", digest[:7]).exit_code == 1
    assert typed("plan", "approve", "0" * 16).exit_code == 1


def test_a_state_folder_that_was_put_back_is_red_until_it_is_acknowledged(agent: Path, typed: Type) -> None:
    (colored,) = check_rollback(agent)
    assert colored.color == "green"
    refused = typed("ledger", "acknowledge")
    assert refused.exit_code == 1
    assert "there is nothing to do" in refused.output
    noticed = Rollback(datetime(2026, 11, 23, tzinfo=UTC), Witness.AGGREGATOR, 5000, 3)
    (agent / "rolled_back.json").write_bytes(encode(noticed))
    (colored,) = check_rollback(agent)
    assert colored.color == "red"
    assert "ledger acknowledge" in colored.fix
    assert "5000 entries were remembered, 3 were left" in typed("ledger", "acknowledge").output
    (colored,) = check_rollback(agent)
    assert colored.color == "green"
    assert read_rollback(agent) == replace(noticed, acknowledged=True)
