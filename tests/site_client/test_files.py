"""Files that survive a crash at any moment, and belong to whoever has to read them."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from site_client.files import (
    Building,
    belongs_with_its_folder,
    lend_file,
    private_folder,
    remove,
    replace_file,
    sweep_drafts,
)


class Crash(BaseException):
    """The power goes."""


def crash(*_: object) -> None:
    raise Crash


@pytest.mark.parametrize("at", ["fsync", "rename"])
def test_a_crash_while_a_file_is_replaced_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = tmp_path / "status.json"
    replace_file(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", crash) if at == "fsync" else (Path, "rename", crash)))
        with pytest.raises(Crash):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    replace_file(path, b"newer")  # the leftover is no obstacle
    assert path.read_bytes() == b"newer"
    assert [one.name for one in tmp_path.iterdir()] == ["status.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "job"

    def build_half() -> None:
        with Building(target) as draft:
            (draft / "half").write_bytes(b"x")
            raise Crash

    with pytest.raises(Crash):
        build_half()
    assert list(tmp_path.iterdir()) == []
    with Building(target) as draft:
        (draft / "whole").write_bytes(b"x")
        assert not target.exists()
    assert [one.name for one in target.iterdir()] == ["whole"]


def test_a_lent_file_is_the_same_file_and_outlives_the_first_name(tmp_path: Path) -> None:
    source, target = tmp_path / "model", tmp_path / "job" / "base"
    target.parent.mkdir()
    replace_file(source, b"weights")
    lend_file(source, target, 0o640)
    assert source.samefile(target)
    assert target.stat().st_mode & 0o777 == 0o640
    source.unlink()
    assert target.read_bytes() == b"weights"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_a_file_is_copied_to_where_it_can_have_no_second_name(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        source, target = Path(elsewhere) / "model", tmp_path / "base"
        if source.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("the temporary folder is on the same file system")
        replace_file(source, b"weights")
        lend_file(source, target, 0o640)
        assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"weights", 0o640)
        assert source.stat().st_mode & 0o777 == 0o600


def test_a_draft_left_by_a_crash_is_no_obstacle_and_is_swept_on_request(tmp_path: Path) -> None:
    (tmp_path / ".job").mkdir()
    (tmp_path / ".job" / "half").write_bytes(b"x")
    with Building(tmp_path / "job") as draft:
        assert list(draft.iterdir()) == []
    (tmp_path / ".old.new").write_bytes(b"x")
    sweep_drafts(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["job"]


def test_a_folder_loses_its_name_before_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job"
    job.mkdir()
    (job / "plan").write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(Crash):
            remove(job)
    assert not job.exists()
    assert (tmp_path / ".job.gone" / "plan").exists()
    job.mkdir()
    remove(job)
    remove(job)  # nothing there: nothing happens
    assert list(tmp_path.iterdir()) == []


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        replace_file(tmp_path / "key", b"x")
        private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root can make a file for another user")
@pytest.mark.parametrize("make", [lambda p: replace_file(p, b"x"), private_folder], ids=["file", "folder"])
def test_what_root_writes_belongs_to_the_owner_of_its_folder(tmp_path: Path, make: Callable[[Path], object]) -> None:
    os.chown(tmp_path, 4711, 4712)
    make(tmp_path / "decision")
    found = (tmp_path / "decision").stat()
    assert (found.st_uid, found.st_gid) == (4711, 4712)


def test_anybody_else_changes_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "chown", crash)
    (tmp_path / "file").touch()
    belongs_with_its_folder(tmp_path / "file", tmp_path / "file")
