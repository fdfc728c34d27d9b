"""Old files: removed only when ingest has taken them, and never a file that is not the receiver's own."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from pydicom.uid import generate_uid

from site_client.config import FoldersSettings, IngestSettings, SiteSettings
from site_client.ingest.catalog.catalog import open_catalog
from site_client.received_files import answer, answered, ask, asked
from site_client.receiver.age_clock import AgeClock
from site_client.receiver.cleaning import Cleaning
from site_client.receiver.incoming import Incoming, load_secret
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.enhanced import enhanced
from tests.site_client.receiver.conftest import image

DAY_S = 86_400.0


class Clocks:
    """The machine's clock, which can be set, and the one that counts seconds."""

    def __init__(self) -> None:
        self.wall_s, self.monotonic_s = time.time(), 1000.0

    def pass_days(self, days: float) -> None:
        self.wall_s += days * DAY_S
        self.monotonic_s += days * DAY_S

    def of(self, file: Path) -> AgeClock:
        return AgeClock(file, lambda: self.wall_s, lambda: self.monotonic_s)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def clean(incoming: Incoming, tmp_path: Path, clocks: Clocks) -> Callable[[], int]:
    """Takes one step of a receiver that keeps files for a year."""
    clock = clocks.of(tmp_path / "age.clock")
    return Cleaning(incoming, tmp_path / "state" / "trainer" / "taken", 365, clock).run_once


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


def test_only_old_files_that_a_scan_has_settled_are_removed(
    incoming: Incoming, tmp_path: Path, clean: Callable[[], int], clocks: Clocks
) -> None:
    scan = scanner(tmp_path)
    clocks.pass_days(400)
    ordinary = tmp_path / "export" / "1.dcm"
    image().save_as(ordinary, enforce_file_format=True)
    beside = incoming.root / "beside.dcm"
    beside.write_bytes(ordinary.read_bytes())
    name = received(incoming)
    assert clean() == 0  # asks
    assert clean() == 0  # no answer yet
    scan()
    assert clean() == 0  # a series waits for a second scan
    scan()
    unseen = received(incoming)
    clocks.wall_s -= 400 * DAY_S
    assert clean() == 0  # taken, and not old by a clock that was set back
    clocks.wall_s += 400 * DAY_S
    assert clean() == 0  # asked for again
    scan()
    assert clean() == 1
    assert not (incoming.root / name).exists()
    assert all(path.exists() for path in (ordinary, beside, incoming.root / unseen))


def test_a_file_of_many_frames_is_removed_like_the_images_that_it_holds(
    incoming: Incoming, tmp_path: Path, clean: Callable[[], int], clocks: Clocks
) -> None:
    scan = scanner(tmp_path)
    clocks.pass_days(400)
    (tmp_path / "scanned").mkdir()
    paths = Scanner(tmp_path / "scanned").series("1.2.3")
    arrived = enhanced(paths, incoming.arriving / "E.partial")
    assert incoming.put(arrived, "1.2.3.1.9999")
    clean()
    scan()
    assert clean() == 0  # its frames wait for a second scan
    scan()
    assert clean() == 1
    assert not list(incoming.names())


def test_a_file_that_no_scan_has_met_is_never_taken(
    incoming: Incoming, tmp_path: Path, clean: Callable[[], int], clocks: Clocks
) -> None:
    scan = scanner(tmp_path)
    clocks.pass_days(400)
    old = received(incoming, size=2000)  # no DICOM: its verdict is one of the file itself
    clean()
    scan()
    late = received(incoming, size=2000)
    assert clean() == 1
    assert [name for name, _ in incoming.names()] == [late]
    assert old not in answered(tmp_path / "nowhere")


def test_a_clock_that_jumps_ahead_makes_no_file_old_also_not_over_restarts(
    incoming: Incoming, tmp_path: Path, clocks: Clocks
) -> None:
    scan, file, taken = scanner(tmp_path), tmp_path / "age.clock", tmp_path / "state" / "trainer" / "taken"
    received(incoming)
    for _ in range(3):  # each a receiver of its own, in whose day the clock is ten years ahead
        cleaning = Cleaning(incoming, taken, 365, clocks.of(file))
        assert cleaning.run_once() == 0
        clocks.wall_s += 3650 * DAY_S
        for _ in range(3):
            clocks.pass_days(0.3)
            scan()
            assert cleaning.run_once() == 0
        assert cleaning.days_held > 3640
        assert asked(incoming.root) == []
        clocks.wall_s -= 3650 * DAY_S


def test_files_age_twice_as_fast_as_time_passes_at_most_and_never_ahead_of_the_clock(
    tmp_path: Path, clocks: Clocks
) -> None:
    random = Random(1)
    clock = clocks.of(tmp_path / "age.clock")
    for _ in range(300):
        level_s, passed_days = clocks.wall_s - clock.lag_s, random.uniform(0, 3)
        if random.random() < 0.2:
            clocks.wall_s += random.choice((-1, 1)) * random.uniform(0, 4000) * DAY_S
        if random.random() < 0.2:  # a restart: what has passed meanwhile is not known
            clock, passed_days = clocks.of(tmp_path / "age.clock"), 0
        clocks.pass_days(passed_days)
        assert clock.now_s() <= min(clocks.wall_s, level_s + 2 * passed_days * DAY_S + 1)
    for _ in range(60):
        clocks.pass_days(1000)
        clock.now_s()
    assert abs(clock.lag_s) < 1


def test_a_receiver_that_stood_still_or_met_a_wrong_clock_says_how_long_files_stay(
    incoming: Incoming, tmp_path: Path, clocks: Clocks
) -> None:
    file, right_s = tmp_path / "age.clock", clocks.wall_s
    clocks.of(file).now_s()
    clocks.pass_days(200.5)
    cleaning = Cleaning(incoming, tmp_path, 365, clocks.of(file))
    assert cleaning.days_held == 200
    clocks.wall_s = 0.0
    assert cleaning.days_held == 0
    file.unlink()  # as docs/HOSPITAL.md says, once the machine has the right time
    clocks.wall_s = right_s
    assert Cleaning(incoming, tmp_path, 365, clocks.of(file)).days_held == 0


def test_neither_side_believes_the_other_one_s_file(
    incoming: Incoming, tmp_path: Path, clean: Callable[[], int], clocks: Clocks
) -> None:
    taken = tmp_path / "state" / "trainer" / "taken"
    taken.parent.mkdir(parents=True)
    clocks.pass_days(400)
    name = received(incoming)
    answer(taken, [name])
    assert clean() == 0  # it has not asked yet
    for hostile in (b"[", b'{"names": ["../../etc/passwd"]}', b'{"names": 3}', b"x" * (5 << 20)):
        (taken / "taken.json").write_bytes(hostile)
        assert clean() == 0
        (incoming.root / ".leaving.json").write_bytes(hostile)
        assert asked(incoming.root) == []
    (taken / "taken.json").unlink()
    os.mkfifo(taken / "taken.json")
    assert clean() == 0


def test_a_file_that_was_changed_or_made_by_others_stays(
    incoming: Incoming, tmp_path: Path, clean: Callable[[], int], clocks: Clocks
) -> None:
    taken = tmp_path / "state" / "trainer" / "taken"
    taken.parent.mkdir(parents=True)
    clocks.pass_days(400)
    name = received(incoming)
    foreign = f"ab/ab{'0' * 22}-{'1' * 24}.dcm"
    (incoming.root / foreign).parent.mkdir(exist_ok=True)
    (incoming.root / foreign).write_bytes(b"of others")
    (incoming.root / name).write_bytes(b"changed")
    clean()
    answer(taken, [name, foreign])
    assert clean() == 0
    assert (incoming.root / foreign).exists()
    assert (incoming.root / name).exists()


def test_without_an_end_all_stay(incoming: Incoming, tmp_path: Path, clean: Callable[[], int], clocks: Clocks) -> None:
    received(incoming)
    clock = clocks.of(tmp_path / "age.clock")
    clocks.pass_days(400)
    assert Cleaning(incoming, tmp_path, 0, clock).run_once() == 0
    assert asked(incoming.root) == []


def test_an_empty_question_gets_no_answer(
    incoming: Incoming, tmp_path: Path, clean: Callable[[], int], clocks: Clocks
) -> None:
    ask(incoming.root, [])
    scanner(tmp_path)()
    assert not (tmp_path / "state" / "trainer" / "taken").exists()
