"""Files of another process: all but a regular file is refused before a byte is read, and nothing is waited for."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from federation.v1.plan_pb2 import SignedPlan

from site_client.agent.status_file import read_status
from site_client.config import FoldersSettings, SiteSettings
from site_client.errors import SpoolRefused, StateRefused
from site_client.records import Job, RunId
from site_client.spool import AgentSide, TrainerSide
from site_client.status import gather
from site_client.trainer.idle.watch import read_record
from site_client.untrusted_files import UntrustedFolder, open_folder, open_regular, read_regular
from tests.site_client.hostile_files import HOSTILE

HANGS_AFTER_S = 60
RUN = RunId(bytes(range(16)))
NOBODY = 65534
NO_FILE = ("pipe", "link_to_zeros", "link_to_nowhere", "link_to_itself", "folder", "terabyte")


@pytest.mark.timeout(HANGS_AFTER_S)
@pytest.mark.parametrize("case", NO_FILE)
def test_what_is_no_file_of_the_size_is_refused_in_a_clause(tmp_path: Path, case: str) -> None:
    HOSTILE[case](tmp_path / "file")
    with pytest.raises(ValueError, match=r"it is (no regular file|larger than 100 bytes)"):
        read_regular(tmp_path / "file", 100)


def test_a_socket_and_a_device_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "socket", Path("/dev/zero"), Path("/dev/null")):
            with pytest.raises(ValueError, match="it is no regular file"):
                open_regular(path, 100)


def test_a_file_that_grows_is_read_up_to_one_byte_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with open_regular(tmp_path / "file", 100) as file:
        (tmp_path / "file").write_bytes(bytes(1000))
        assert len(file.read(101)) == 101
    assert read_regular(tmp_path / "file", 1000) == bytes(1000)


def test_a_folder_is_entered_by_its_own_name_only_and_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "file").write_bytes(b"own")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"other")
    with open_folder(tmp_path, "in", "deep") as folder:
        (tmp_path / "in" / "deep").rename(tmp_path / "in" / "gone")
        (tmp_path / "in" / "deep").symlink_to(tmp_path / "other")
        assert read_regular("file", 100, folder) == b"own"
    with pytest.raises(ValueError, match="deep is no folder"), open_folder(tmp_path, "in", "deep"):
        pass
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ValueError, match="no folder"), open_folder(tmp_path, "in", "deep"):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_file_that_may_not_be_read_is_refused_without_its_path() -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        folder.chmod(0o755)
        for name, mode in (("open", 0o755), ("closed", 0o700)):
            (folder / name).mkdir()
            (folder / name).chmod(mode)
        (folder / "open" / "status.json").write_bytes(b"{}")
        (folder / "open" / "status.json").chmod(0o600)
        os.seteuid(NOBODY)
        try:
            for name in ("open", "closed"):
                reader = UntrustedFolder(folder, name, 100)
                assert reader.has("status.json") is (name == "open")
                with pytest.raises(SpoolRefused, match="permission denied") as refusal:
                    reader.read("status.json")
                assert root not in str(refusal.value)
            with pytest.raises(SpoolRefused, match="permission denied"):
                UntrustedFolder(folder, "closed", 100).names()
        finally:
            os.seteuid(0)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "base").write_bytes(b"a model")
    offered = Job(RUN, 3, False, bytes([1]) * 32, bytes([2]) * 32)  # type: ignore[arg-type]  # Digests
    return AgentSide(tmp_path / "spool").offer_job(offered, SignedPlan().SerializeToString(), tmp_path / "base")


@pytest.mark.timeout(HANGS_AFTER_S)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_job_is_refused_by_the_trainer_and_withdrawn_by_the_agent(
    tmp_path: Path, job: Job, case: str
) -> None:
    HOSTILE[case](job.folder / "job.json")
    trainer = TrainerSide(tmp_path / "spool")
    if case == "missing":
        assert trainer.jobs() == []
    else:
        with pytest.raises(SpoolRefused, match="job"):
            trainer.jobs()
    AgentSide(tmp_path / "spool").withdraw_others(None, 0)
    assert trainer.jobs() == []


@pytest.mark.timeout(HANGS_AFTER_S)
@pytest.mark.parametrize("case", [case for case in HOSTILE if case != "missing"])
@pytest.mark.parametrize("file", ["status.json", "gate.json"])
def test_a_hostile_file_of_the_state_folder_is_refused_by_name(tmp_path: Path, file: str, case: str) -> None:
    readers: dict[str, Callable[[Path], object]] = {"status.json": read_status, "gate.json": read_record}
    HOSTILE[case](tmp_path / file)
    if (file, case) == ("status.json", "empty"):
        assert read_status(tmp_path) is None  # a power cut empties it
        return
    with pytest.raises(StateRefused, match=f"^{file} in the state folder is damaged"):
        readers[file](tmp_path)


@pytest.mark.timeout(HANGS_AFTER_S)
@pytest.mark.parametrize("case", [case for case in HOSTILE if case != "missing"])
def test_the_status_command_shows_a_hostile_file_of_the_trainer_as_one_value(tmp_path: Path, case: str) -> None:
    settings = SiteSettings("mercy", folders=FoldersSettings(tmp_path / "state", tmp_path / "spool"))
    (tmp_path / "spool" / "to_agent").mkdir(parents=True)
    HOSTILE[case](tmp_path / "spool" / "to_agent" / "status.json")
    facts = {fact.name: fact.value for fact in gather(settings)}
    assert str(facts["trainer_state"]).startswith("unknown: ")
    assert "state" in facts
