"""The agent's status file, as `hemofed-site status` reads it."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from federation.vocabulary import SiteState, StateReason

from site_client.agent.status_file import AgentStatus, in_words, read_status, write_status
from site_client.config import FoldersSettings, SiteSettings
from site_client.status import gather

STATUS = AgentStatus(
    written_at=datetime(2026, 3, 1, tzinfo=UTC),
    state=SiteState.PAUSED,
    reasons=(StateReason.NET_WINDOW,),
    run_id="ab" * 16,
    round=3,
    model_digest=None,
    roster_epoch=4,
    certificate_expires_at=datetime(2026, 3, 20, tzinfo=UTC),
    last_contact_at=None,
    last_error="",
    ledger_entries=17,
    roster=("site-a", "site-b", "site-c"),
)


def test_the_newest_status_is_read_and_no_other_file_is_left(tmp_path: Path) -> None:
    write_status(tmp_path, STATUS)
    write_status(tmp_path, STATUS)
    assert read_status(tmp_path) == STATUS
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert (tmp_path / "status.json").stat().st_mode & 0o777 == 0o600


def test_before_the_first_status_and_after_a_power_cut_there_is_none(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_bytes(b"")
    assert read_status(tmp_path) is None


def test_a_suspension_by_the_coordinator_is_said_in_the_words_of_the_status() -> None:
    assert "suspended" not in in_words(STATUS)
    assert in_words(replace(STATUS, suspended=True)) == (
        "paused: NET_WINDOW; suspended by the coordinator: no new round takes this site; round 3"
    )


def test_status_says_that_a_run_went_back_and_nothing_where_it_did_not(tmp_path: Path) -> None:
    folders = FoldersSettings(tmp_path / "state", tmp_path / "spool", tmp_path / "export", (), tmp_path)
    settings = SiteSettings(name="north", folders=folders)
    words = "after round 3 to the model of round 1, by the custodian's signature"
    for rolled_back in (words, ""):
        folders.agent.mkdir(parents=True, exist_ok=True)
        write_status(folders.agent, replace(STATUS, rolled_back=rolled_back))
        told = [fact.value for fact in gather(settings) if fact.name == "rolled_back"]
        assert told == ([words] if rolled_back else [])
