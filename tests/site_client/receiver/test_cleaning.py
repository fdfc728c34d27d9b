"""Old files: removed only when ingest has taken them, and never a file that is not the receiver's own."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from site_client.config import FoldersSettings, IngestSettings, SiteSettings
from site_client.ingest.catalog.catalog import open_catalog
from site_client.received_files import answer, answered, ask, asked
from site_client.receiver.cleaning import Cleaning
from site_client.receiver.incoming import Incoming, load_secret
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.enhanced import enhanced
from tests.site_client.receiver.conftest import image

YEAR_LATER_S = 400 * 86_400.0


@pytest.fixture
def incoming(tmp_path: Path) -> Incoming:
    (tmp_path / "export" / "received").mkdir(parents=True)
    return Incoming(tmp_path / "export" / "received", load_secret(tmp_path / "secret"))


def received(incoming: Incoming, size: int = 0) -> str:
    """One more image in the folder; its name."""
    uid, before = generate_uid(), {name for name, _ in incoming.names()}
    with incoming.new_file() as file:
        path = Path(file.name)
        if size:
            file.write(os.urandom(size))
        else:
            data = image(uid)
            data.SeriesInstanceUID = f"1.2.3.{int(time.monotonic_ns())}"
            data.save_as(file, enforce_file_format=True)
    assert incoming.put(path, uid)
    (name,) = {name for name, _ in incoming.names()} - before
    return name


def scanner(tmp_path: Path) -> Callable[[], None]:
    """The trainer's scan, a minute later each time."""
    folders = FoldersSettings(tmp_path / "state", tmp_path / "spool", tmp_path / "export", (), tmp_path / "cache")
    settings = SiteSettings("north", folders=folders, ingest=IngestSettings(settle_s=60.0))
    now = [datetime.now(UTC)]

    def scan() -> None:
        now[0] += timedelta(hours=3)
        catalog = open_catalog(settings, lambda: now[0])
        catalog.scan(folders.export)
        catalog.close()

    return scan


def test_only_old_files_that_a_scan_has_settled_are_removed(incoming: Incoming, tmp_path: Path) -> None:
    scan, cleaning = scanner(tmp_path), Cleaning(incoming, tmp_path / "state" / "trainer" / "taken", 365)
    later_s = time.time() + YEAR_LATER_S
    ordinary = tmp_path / "export" / "1.dcm"
    image().save_as(ordinary, enforce_file_format=True)
    beside = incoming.root / "beside.dcm"
    beside.write_bytes(ordinary.read_bytes())
    name = received(incoming)
    assert cleaning.run_once(later_s) == 0  # asks
    assert cleaning.run_once(later_s) == 0  # no answer yet
    scan()
    assert cleaning.run_once(later_s) == 0  # a series waits for a second scan
    scan()
    unseen = received(incoming)
    assert cleaning.run_once(time.time()) == 0  # taken, and not old
    assert cleaning.run_once(later_s) == 0  # asked for again
    scan()
    assert cleaning.run_once(later_s) == 1
    assert not (incoming.root / name).exists()
    assert all(path.exists() for path in (ordinary, beside, incoming.root / unseen))


def test_a_file_of_many_frames_is_removed_like_the_images_that_it_holds(incoming: Incoming, tmp_path: Path) -> None:
    scan, cleaning = scanner(tmp_path), Cleaning(incoming, tmp_path / "state" / "trainer" / "taken", 365)
    later_s = time.time() + YEAR_LATER_S
    (tmp_path / "scanned").mkdir()
    paths = Scanner(tmp_path / "scanned").series("1.2.3")
    arrived = enhanced(paths, incoming.arriving / "E.partial")
    assert incoming.put(arrived, "1.2.3.1.9999")
    cleaning.run_once(later_s)
    scan()
    assert cleaning.run_once(later_s) == 0  # its frames wait for a second scan
    scan()
    assert cleaning.run_once(later_s) == 1
    assert not list(incoming.names())


def test_a_file_that_no_scan_has_met_is_never_taken(incoming: Incoming, tmp_path: Path) -> None:
    scan, cleaning = scanner(tmp_path), Cleaning(incoming, tmp_path / "state" / "trainer" / "taken", 1)
    later_s = time.time() + YEAR_LATER_S
    old = received(incoming, size=2000)  # no DICOM: its verdict is one of the file itself
    cleaning.run_once(later_s)
    scan()
    late = received(incoming, size=2000)
    assert cleaning.run_once(later_s) == 1
    assert [name for name, _ in incoming.names()] == [late]
    assert old not in answered(tmp_path / "nowhere")


def test_neither_side_believes_the_other_one_s_file(incoming: Incoming, tmp_path: Path) -> None:
    taken, later_s = tmp_path / "taken", time.time() + YEAR_LATER_S
    name, cleaning = received(incoming), Cleaning(incoming, taken, 1)
    answer(taken, [name])
    assert cleaning.run_once(later_s) == 0  # it has not asked yet
    for hostile in (b"[", b'{"names": ["../../etc/passwd"]}', b'{"names": 3}', b"x" * (5 << 20)):
        (taken / "taken.json").write_bytes(hostile)
        assert cleaning.run_once(later_s) == 0
        (incoming.root / ".leaving.json").write_bytes(hostile)
        assert asked(incoming.root) == []
    (taken / "taken.json").unlink()
    os.mkfifo(taken / "taken.json")
    assert cleaning.run_once(later_s) == 0


def test_a_file_that_was_changed_or_made_by_others_stays(incoming: Incoming, tmp_path: Path) -> None:
    taken, later_s = tmp_path / "taken", time.time() + YEAR_LATER_S
    name, cleaning = received(incoming), Cleaning(incoming, taken, 1)
    foreign = f"ab/ab{'0' * 22}-{'1' * 24}.dcm"
    (incoming.root / foreign).parent.mkdir(exist_ok=True)
    (incoming.root / foreign).write_bytes(b"of others")
    (incoming.root / name).write_bytes(b"changed")
    cleaning.run_once(later_s)
    answer(taken, [name, foreign])
    assert cleaning.run_once(later_s) == 0
    assert (incoming.root / foreign).exists()
    assert (incoming.root / name).exists()


def test_without_an_end_all_stay(incoming: Incoming, tmp_path: Path) -> None:
    received(incoming)
    assert Cleaning(incoming, tmp_path, 0).run_once(time.time() + YEAR_LATER_S) == 0
    assert asked(incoming.root) == []


def test_an_empty_question_gets_no_answer(incoming: Incoming, tmp_path: Path) -> None:
    ask(incoming.root, [])
    scanner(tmp_path)()
    assert not (tmp_path / "state" / "trainer" / "taken").exists()
