"""`hemofed-site leave` against a real coordinator over real TLS: said once, heard for good, and never half done."""

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from federation.roster import verify_roster

from site_client.agent.commands.leave import leave
from site_client.agent.egress import verify
from site_client.agent.egress.calls import FETCH_ROSTER, LEAVE
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger, read
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.link import Link, enrolled
from site_client.agent.rounds.journal import CurrentRound, RoundJournal
from site_client.cli import main
from site_client.config import AggregatorAddress, PolicySettings, SiteSettings
from site_client.errors import IdentityRefused, InUse, Refused, StepRefused, Unreachable
from site_client.records import RunId
from site_client.typed_json import Digest
from tests.system.consortium import Consortium, consortium

from tests.custodian import CUSTODIAN  # isort: skip

from aggregator.errors import WrongState  # isort: skip
from aggregator.store import site_rows  # isort: skip
from aggregator.store.people import audit_trail  # isort: skip


JOINED = ["Enrolment/Join", "Enrolment/Join"]  # before and after the custodian has signed


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Consortium]:
    with consortium(tmp_path) as made:
        yield made


def folder_of(settings: SiteSettings) -> Path:
    return settings.folders.agent / "identity"


def sent(settings: SiteSettings) -> list[str]:
    return [entry.rpc for entry in read(settings.folders.agent / "ledger.jsonl")]


def roster(coordinator: Consortium) -> list[str]:
    """The next roster that the custodian signs."""
    coordinator.sign_roster()
    return [entry.site for entry in verify_roster(coordinator.enrolment.roster(), CUSTODIAN.public_key()).entries]


def standing(coordinator: Consortium, site: str) -> str:
    with coordinator.app.store.read() as session:
        return str(site_rows.standing(site_rows.get(session, site)))


def ask_for_roster(settings: SiteSettings, identity: SiteIdentity) -> None:
    """As a machine that kept a copy of the certificate. Errors: Refused."""
    ledger = Ledger(settings.folders.agent / "copy.jsonl", identity.keys.signing, lambda: datetime.now(UTC))
    link = Link(enrolled(settings, identity))
    try:
        Egress(Guard(PolicySettings()), ledger, link).send(FETCH_ROSTER, FETCH_ROSTER.request())
    finally:
        link.close()
        ledger.close()


def test_a_farewell_is_heard_recorded_on_both_sides_and_for_good(coordinator: Consortium) -> None:
    settings, _ = coordinator.joined("mercy"), coordinator.joined("north")
    copy = SiteIdentity(folder_of(settings))
    said = leave(settings)
    assert said.startswith("mercy has left")
    assert (standing(coordinator, "mercy"), roster(coordinator)) == ("left", ["north"])
    with coordinator.app.store.read() as session:
        newest = audit_trail(session, "site:mercy")[0]
    assert (newest.actor, newest.before, newest.after) == ("site:mercy", "approved", "left")
    with pytest.raises(Refused, match="has left; to come back, ask the coordinator"):
        ask_for_roster(settings, copy)
    assert sent(settings) == [*JOINED, "Enrolment/Leave"]
    verified = verify.verify(settings.folders.agent / "ledger.jsonl", copy.keys.signing_public.hex())
    assert verified.entries == len(sent(settings))


def test_the_key_of_the_certificate_goes_and_what_verifies_the_ledger_stays(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    leave(settings)
    held = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder_of(settings).iterdir()}
    assert "tls.pem" not in held
    assert set(held.values()) == {0o600}
    assert {"signing.key", "sealing.key", "left"} <= set(held)
    with pytest.raises(IdentityRefused, match=r"this host left on .*ask for an invitation"):
        SiteIdentity(folder_of(settings))


def test_typed_again_it_sends_nothing_and_says_when_it_left(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    leave(settings, lambda: datetime.now(UTC))
    before = sent(settings)
    assert f"left on {datetime.now(UTC):%Y-}" in leave(settings)
    assert sent(settings) == before


def test_a_farewell_whose_answer_was_lost_is_said_again_and_answered_alike(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    coordinator.enrolment.leave("mercy")  # what the first call did before the line broke
    epoch_before = roster(coordinator)
    assert leave(settings).startswith("mercy has left")
    assert (standing(coordinator, "mercy"), roster(coordinator)) == ("left", epoch_before)
    assert sent(settings)[-1] == LEAVE.name


def test_without_an_answer_nothing_is_lost_and_one_sentence_says_what_to_do(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    unheard = replace(settings, aggregator=AggregatorAddress("127.0.0.1:9"))
    with pytest.raises(Unreachable, match=r"^no answer from 127.0.0.1:9: this site has not left.*revoke this site$"):
        leave(unheard)
    ask_for_roster(settings, SiteIdentity(folder_of(settings)))
    assert leave(settings).startswith("mercy has left")


def test_while_the_agent_holds_the_ledger_nothing_is_sent(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    identity = SiteIdentity(folder_of(settings))
    held = Ledger(settings.folders.agent / "ledger.jsonl", identity.keys.signing, lambda: datetime.now(UTC))
    with pytest.raises(InUse, match="stop it first"):
        leave(settings)
    held.close()
    assert standing(coordinator, "mercy") == "approved"


def test_with_an_ended_certificate_it_says_what_to_do_and_sends_nothing(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    with pytest.raises(IdentityRefused, match="start the agent once"):
        leave(settings, lambda: datetime.now(UTC) + timedelta(days=31))
    assert sent(settings) == JOINED


def test_a_revoked_site_is_told_so(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    coordinator.enrolment.revoke("mercy")
    with pytest.raises(Refused, match="was revoked"):
        leave(settings)
    assert standing(coordinator, "mercy") == "revoked"


def test_the_secrets_of_a_round_in_progress_do_not_outlive_the_farewell(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    journal = RoundJournal(settings.folders.agent / "rounds")
    journal.begin(
        CurrentRound(RunId(bytes(16)), 3, Digest(bytes(32)), Digest(bytes(32)), evaluation_only=False, attempt=1)
    )
    journal.member_file(1).write_bytes(b"secret of the masking")
    leave(settings)
    after = RoundJournal(settings.folders.agent / "rounds")
    assert after.current is None
    assert list(settings.folders.agent.glob("rounds/*/attempt-*")) == []
    with pytest.raises(StepRefused, match="is over for this site"):
        after.begin(CurrentRound(RunId(bytes(16)), 3, Digest(bytes(32)), Digest(bytes(32)), evaluation_only=False))


def test_coming_back_takes_a_new_invitation_and_the_ledger_goes_on(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    old = SiteIdentity(folder_of(settings))
    leave(settings)
    with pytest.raises(WrongState, match="has left already"):
        coordinator.enrolment.revoke("mercy")
    coordinator.joined("mercy")
    again = SiteIdentity(folder_of(settings))
    assert again.certificate_pem != old.certificate_pem
    assert (standing(coordinator, "mercy"), roster(coordinator)) == ("approved", ["mercy"])
    ask_for_roster(settings, again)
    with pytest.raises(Refused, match="current certificate"):
        ask_for_roster(settings, old)
    assert sent(settings) == [*JOINED, "Enrolment/Leave", "Enrolment/Join"]  # the roster in force still lists its keys
    assert leave(settings).startswith("mercy has left")


def test_the_command_asks_first_and_prints_one_sentence(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    toml = coordinator.folder / "site.toml"
    folders = f'state = "{settings.folders.state}"\nspool = "{settings.folders.spool}"\n'
    toml.write_text(f'name = "mercy"\n[aggregator]\naddress = {json.dumps(coordinator.address)}\n[folders]\n{folders}')
    command = ["leave", "--config", str(toml)]
    refused = CliRunner().invoke(main, command, input="n\n")
    assert (refused.exit_code, standing(coordinator, "mercy")) == (1, "approved")
    done = CliRunner().invoke(main, [*command, "--yes"])
    assert (done.exit_code, done.output.count("\n")) == (0, 1)
    assert standing(coordinator, "mercy") == "left"
