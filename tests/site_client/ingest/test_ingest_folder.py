"""The walk: everything is met once, nothing outside is, and no name is trusted."""

import os
import subprocess
from pathlib import Path

import pytest

from site_client.errors import IngestError
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.files.export import is_junk, walk
from site_client.ingest.reasons import Reason
from tests.site_client.ingest.conftest import Scanner


def test_every_file_is_met_once_in_a_fixed_order_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("b/IM0001", "a/1.2.840.113", "a/deep/er/X", "c.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(200))
    assert [(file.path, file.skip) for file in walk(tmp_path)] == [
        ("a/1.2.840.113", None),
        ("a/deep/er/X", None),
        ("b/IM0001", None),
        ("c.dcm", None),
    ]


@pytest.mark.parametrize(
    "name", ["Thumbs.db", ".IM1.dcm.Xa3f", "IM1.dcm.partial", "viewer.EXE", "autorun.inf", "~lock", "report.PDF"]
)
def test_files_no_scanner_writes_are_skipped_by_name(name: str) -> None:
    assert is_junk(name, 5000)


@pytest.mark.parametrize("name", ["image.db", "image.tmp", "image.txt", "Thumbs.db", ".image", "image.partial"])
def test_only_an_image_under_a_strange_name_is_read_and_none_that_is_still_written(
    tmp_path: Path, scanner: Scanner, catalog: Catalog, name: str
) -> None:
    scanner.series()[0].rename(scanner.root / name)
    (scanner.root / "other.db").write_bytes(bytes(500))
    report = catalog.scan(scanner.root)
    unfinished = name in ("image.tmp", ".image", "image.partial")
    assert (report.studies_ready, report.files) == (1, {"S_JUNK": 1 + unfinished})
    assert next(summary.slices for summary in catalog.series()) == 24 - unfinished


def test_a_hidden_folder_is_counted_and_not_entered(tmp_path: Path) -> None:
    (tmp_path / ".snapshot").mkdir()
    (tmp_path / ".snapshot" / "IM1").write_bytes(bytes(500))
    assert [(file.path, file.skip) for file in walk(tmp_path)] == [(".snapshot", Reason.S_HIDDEN)]


def test_a_tree_deeper_than_the_programs_stack_is_walked_to_its_end(tmp_path: Path) -> None:
    # By relative steps: the whole path is longer than the kernel takes at once.
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("IM1").write_bytes(bytes(500))
    finally:
        os.chdir(here)
    (tmp_path / "z").write_bytes(bytes(500))
    files = list(walk(tmp_path))
    # Not by pytest, whose removal of old folders is recursive.
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
    # Either the image or the depth at which the kernel refused the path; and what stands beside it.
    assert len(files) == 2
    assert files[0].skip in (None, Reason.Q_READ)
    assert (files[1].path, files[1].skip) == ("z", None)


def test_an_empty_file_is_junk_and_an_image_without_suffix_is_not() -> None:
    assert is_junk("IM1", 0)
    assert not is_junk("IM1", 5000)


def test_the_hidden_answers_of_a_phantom_are_refused_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "x" / "hidden").mkdir(parents=True)
    (tmp_path / "x" / "hidden" / "truth").write_bytes(bytes(500))
    assert [(file.path, file.skip) for file in walk(tmp_path)] == [("x/hidden", Reason.S_HIDDEN_TRUTH)]


def test_links_are_counted_and_never_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (outside / "IM1").write_bytes(bytes(500))
    (root / "a" / "IM2").write_bytes(bytes(500))
    (root / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "a")
    (root / "away").symlink_to(outside)
    (root / "trick").symlink_to(str(root / "a" / ".." / ".." / "outside" / "IM1"))
    assert {file.path: file.skip for file in walk(root)} == {
        "a/IM2": None,
        "again": Reason.S_LINK,
        "away": Reason.S_OUTSIDE_ROOT,
        "loop": Reason.S_LINK,
        "trick": Reason.S_OUTSIDE_ROOT,
    }


def test_an_export_that_is_not_there_is_an_error_and_not_an_empty_export(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="cannot be listed"):
        list(walk(tmp_path / "unmounted"))
