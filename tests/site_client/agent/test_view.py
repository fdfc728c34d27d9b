"""What the agent says about itself, as `hemofed-site status` reads it."""

from datetime import UTC, datetime
from pathlib import Path

from site_client.agent.status_file import AgentStatus, read_status, write_status

VIEW = AgentStatus(
    written_at=datetime(2026, 3, 1, tzinfo=UTC),
    state="SITE_PAUSED",
    reasons=("NET_WINDOW",),
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


def test_what_was_written_is_read_the_last_word_counts_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_status(tmp_path, VIEW)
    write_status(tmp_path, VIEW)
    assert read_status(tmp_path) == VIEW
    assert [one.name for one in tmp_path.iterdir()] == ["status.json"]
    assert (tmp_path / "status.json").stat().st_mode & 0o777 == 0o600


def test_before_its_first_word_and_after_a_power_cut_there_is_none(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_bytes(b"")
    assert read_status(tmp_path) is None
