"""Archives are read as the folders that they stand for, within limits; nothing is unpacked onto a disk."""

import io
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from federation.labels import ANY

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.files.addresses import name_inside, parse_address
from site_client.ingest.files.readers import Readers
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import FILE_BYTES_MAX, Rules
from site_client.ingest.series.volume import read_volume
from tests.site_client.ingest.conftest import Clock, Scanner
from tests.site_client.ingest.test_ingest_catalog import label


def packed(files: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def moved(paths: Sequence[Path], folder: str = "CT") -> list[tuple[str, bytes]]:
    """The files as members of an archive; they leave the export."""
    members = [(f"{folder}/{path.name}", path.read_bytes()) for path in paths]
    for path in paths:
        path.unlink()
    return members


def listing(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}


@pytest.fixture
def members(scanner: Scanner) -> list[tuple[str, bytes]]:
    """A head of 24 slices."""
    return moved(scanner.series())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_series_in_an_archive_is_the_series_of_its_folder(
    scanner: Scanner, catalog: Catalog, method: int, depth: int
) -> None:
    paths = scanner.series()
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    plain = catalog.dataset().studies[0].series
    hu = read_volume(plain).hu
    data = packed(moved(paths), method)
    for level in range(depth - 1):
        data = packed([(f"inner/level{level}.zip", data)], method)
    (scanner.root / "export.zip").write_bytes(data)
    before = listing(scanner.root)
    report = catalog.scan(scanner.root)
    series = catalog.dataset().studies[0].series
    assert (report.files, report.studies_ready) == ({"S_ARCHIVE": depth, "S_JUNK": 1}, 1)
    assert (series.content_hash, series.series_key) == (plain.content_hash, plain.series_key)
    assert np.array_equal(read_volume(series).hu, hu)
    assert listing(scanner.root) == before
    again = catalog.scan(scanner.root)
    assert (again.files_read, again.files_seen, again.files) == (0, report.files_seen, report.files)


def test_a_scan_of_unchanged_archives_opens_none(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (scanner.root / "a.zip").write_bytes(packed([("in.zip", packed(members))]))
    catalog.scan(scanner.root)

    def refuse(*_: object) -> None:
        raise AssertionError("opened")

    with monkeypatch.context() as patched:
        for name in ("archive", "slices", "sop_uids"):
            patched.setattr(Readers, name, refuse)
        assert catalog.scan(scanner.root).files_read == 0


def test_a_changed_archive_is_read_again_and_a_removed_one_leaves_nothing(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]]
) -> None:
    archive = scanner.root / "a.zip"
    archive.write_bytes(packed(members))
    assert catalog.scan(scanner.root).studies_ready == 1
    status = archive.stat()
    # Fewer members, and the times of before: a copying program sets any.
    archive.write_bytes(packed(members[:23]))
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = catalog.scan(scanner.root)
    assert (report.files_read, report.files_seen) == (24, 24)
    assert [summary.slices for summary in catalog.series()] == [23]
    archive.unlink()
    report = catalog.scan(scanner.root)
    assert (report.files_seen, report.studies_ready, catalog.series()) == (0, 0, [])


def test_an_archive_that_is_still_copied_waits_as_a_file_does(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock, members: list[tuple[str, bytes]]
) -> None:
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(settle_s=60), clock)
    data, archive = packed(members), scanner.root / "a.zip"
    archive.write_bytes(data[: len(data) // 2])
    assert catalog.scan(scanner.root).files == {"Q_ARCHIVE_DAMAGED": 1}
    clock.advance(61)
    archive.write_bytes(data)
    states = []
    for _ in range(2):
        report = catalog.scan(scanner.root)
        states.append((report.series_waiting, report.studies_ready))
        clock.advance(61)
    assert states == [(1, 0), (0, 1)]
    catalog.close()


def test_an_interrupted_scan_of_an_archive_goes_on_where_it_was(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from site_client.ingest.catalog import file_pass

    (scanner.root / "a.zip").write_bytes(packed(members))
    monkeypatch.setattr(file_pass, "BATCH", 8)
    monkeypatch.setattr(file_pass, "_FILES_A_READER", 8)
    write = file_pass.FilePass._write
    written: list[int] = []

    def once(scan: file_pass.FilePass, files: Sequence[file_pass._FileRead]) -> None:
        if written:
            raise KeyboardInterrupt
        write(scan, files)
        written.append(len(files))

    with monkeypatch.context() as patched:
        patched.setattr(file_pass.FilePass, "_write", once)
        with pytest.raises(KeyboardInterrupt):
            catalog.scan(scanner.root)
    report = catalog.scan(scanner.root)
    # The archive itself and the members that had no row yet.
    assert (report.files_read, report.studies_ready) == (1 + 24 - written[0], 1)


def test_members_are_skipped_by_the_rules_of_the_walk_and_tables_are_counted(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]]
) -> None:
    label(scanner.root, "1.2.3")
    image = members.pop()[1]
    extra = [
        ("labels.csv", b"StudyInstanceUID,any\n1.2.3,1\n"),
        ("CT/image.db", image),  # an image under a strange name
        ("CT/thumbs.db", bytes(500)),
        ("__MACOSX/._I1", bytes(500)),
        (".cache/I1", image),
        ("hidden/truth", image),
        ("report.pdf", bytes(500)),
        ("noise", bytes(500)),
        ("../../../tmp/I1", image),
        ("/etc/I1", image),
        ("C:\\I1", image),
    ]
    (scanner.root / "a.zip").write_bytes(packed([*members, *extra]))
    report = catalog.scan(scanner.root)
    assert report.files == {
        "S_ARCHIVE": 1, "S_TABLE": 1, "S_JUNK": 4, "S_HIDDEN": 1, "S_HIDDEN_TRUTH": 1, "S_NOT_DICOM": 1,
        "S_OUTSIDE_ROOT": 3,
    }  # fmt: skip
    assert (report.studies_ready, report.labels.studies_labelled) == (1, 1)
    assert catalog.dataset().studies[0].study_labels[ANY] == 0  # by the table beside the archive


@pytest.mark.parametrize(
    ("name", "path"),
    [("a/b", "a/b"), ("./a//b", "a/b"), ("a\\b", "a/b"), ("a/../b", "b"), ("../b", None), ("a/../../b", None),
     ("/b", None), ("..", None), (".", None), ("", None), ("c:/b", None), ("\\\\host\\b", None), ("a\0b", "ab")],
)  # fmt: skip
def test_a_members_name_is_a_path_inside_or_none(name: str, path: str | None) -> None:
    assert name_inside(name) == path


def test_twins_of_one_name_are_two_files(scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]]) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = packed([*members, members[3], (members[4][0], members[5][1])])
    (scanner.root / "a.zip").write_bytes(data)
    report = catalog.scan(scanner.root)
    assert (report.files, report.studies_ready) == ({"S_ARCHIVE": 1, "S_DUPLICATE": 2}, 1)


def test_a_password_is_counted_by_member_and_stops_no_other(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]]
) -> None:
    data = bytearray(packed([*members, ("CT/locked", members[0][1])]))
    # Bit 0 of the flags, in the list and before the member; the bytes need no cipher for that.
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    data[data.rindex(b"PK\x03\x04") + 6] |= 1
    (scanner.root / "a.zip").write_bytes(data)
    report = catalog.scan(scanner.root)
    assert (report.files, report.studies_ready) == ({"S_ARCHIVE": 1, "Q_ARCHIVE_LOCKED": 1}, 1)
    assert "with its password" in "\n".join(catalog.explain(str(scanner.root / "a.zip" / "CT" / "locked")))


def test_a_damaged_member_costs_itself(scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]]) -> None:
    data = bytearray(packed([*members, ("CT/other", bytes(50_000) + members[0][1])], zipfile.ZIP_STORED))
    data[data.rindex(b"PK\x03\x04") + 1000] ^= 1
    (scanner.root / "a.zip").write_bytes(data)
    report = catalog.scan(scanner.root)
    assert (report.files, report.studies_ready) == ({"S_ARCHIVE": 1, "Q_ARCHIVE_DAMAGED": 1}, 1)


def test_an_archive_beyond_four_gibibytes_is_read(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]]
) -> None:
    path = scanner.root / "large.zip"
    first = packed(members[:1])
    with path.open("w+b") as file:
        file.write(first[: first.index(b"PK\x01\x02")])
        file.truncate(5 << 30)  # a hole, which takes no block of the disk
    with zipfile.ZipFile(path, "a") as archive:
        for name, data in members:
            archive.writestr(name, data)
    assert path.stat().st_size > 5 << 30
    report = catalog.scan(scanner.root)
    assert (report.files, report.studies_ready) == ({"S_ARCHIVE": 1}, 1)


def zeros(megabytes: int, count: int = 1) -> bytes:
    return packed([(f"I{number}", bytes(megabytes << 20)) for number in range(count)])


def overlapping(count: int) -> bytes:
    """One packed member of a megabyte that the list names `count` times: the list grows, the archive does not."""
    data = packed([("I", bytes(1 << 20))])
    start = data.index(b"PK\x01\x02")
    entry, end = data[start : data.index(b"PK\x05\x06")], data[data.index(b"PK\x05\x06") :]
    listed = entry * count
    end = end[:8] + struct.pack("<HHII", count, count, len(listed), start) + end[20:]
    return data[:start] + listed + end


def test_bombs_are_limits_and_cost_the_rest_of_the_export_nothing(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from site_client.ingest.catalog import archive_lists

    monkeypatch.setattr(archive_lists, "ARCHIVE_MEMBERS_MAX", 500)
    deep = zeros(1)
    for _ in range(5):
        deep = packed([(f"{place}.zip", deep) for place in range(2)])
    bombs = {
        "ratio.zip": zeros(60, 6),  # 360 MB in 370 KB
        "many.zip": packed([(f"I{number}", b"") for number in range(600)], zipfile.ZIP_STORED),
        "overlap.zip": overlapping(400),
        "nested.zip": packed([(f"{place}.zip", zeros(50, 2)) for place in range(3)]),
        "wide.zip": packed([("large.zip", bytes(300 << 20))]),
    }
    for name, data in bombs.items():
        (scanner.root / name).write_bytes(data)
    (scanner.root / "a.zip").write_bytes(packed(members))
    report = catalog.scan(scanner.root)
    assert report.studies_ready == 1
    assert report.files["Q_ARCHIVE_LIMIT"] == len(bombs)
    (scanner.root / "deep.zip").write_bytes(deep)
    # The archives three deep hold others, which are not opened.
    assert catalog.scan(scanner.root).files["Q_ARCHIVE_LIMIT"] == len(bombs) + 8
    assert catalog.scan(scanner.root).files_read == 0


def test_a_member_larger_than_an_image_is_not_unpacked(scanner: Scanner, catalog: Catalog) -> None:
    ct = scanner.series(slices=1)[0]
    data = ct.read_bytes()
    ct.unlink()
    (scanner.root / "a.zip").write_bytes(packed([("I1", data + np.random.default_rng(1).bytes(FILE_BYTES_MAX))], 0))
    catalog.scan(scanner.root)
    assert next(summary.reasons for summary in catalog.series())[0] == "Q_DECODE_LIMIT"


def test_a_list_of_members_that_names_another_file_now_is_read_again(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]], secret: SiteSecret
) -> None:
    archive = scanner.root / "a.zip"
    archive.write_bytes(packed(members))
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    series = catalog.dataset().studies[0].series
    archive.write_bytes(packed(members[5:]))
    readers = Readers(1)
    assert set(readers.slices(series.files)) == {Reason.Q_READ}
    readers.close()


def test_people_name_a_member_as_a_file_of_a_folder(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]]
) -> None:
    (scanner.root / "a.zip").write_bytes(packed([("in.zip", packed(members))]))
    catalog.scan(scanner.root)
    name = members[2][0]
    text = "\n".join(catalog.explain(str(scanner.root / "a.zip" / "in.zip" / name)))
    assert f"file a.zip/in.zip/{name}: " in text
    assert "READY and chosen" in text
    assert "24 images in a.zip/in.zip/CT" in text
    assert "READY and chosen" in "\n".join(catalog.explain(str(scanner.root / "a.zip")))
    assert "\0" not in text
    assert parse_address("a\0" + "1/b/c\0" + "3").frame == 3


def test_a_file_of_an_office_program_is_no_archive(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series()
    for name in ("letter.docx", "table.xlsx"):
        (scanner.root / name).write_bytes(packed([("word/document.xml", bytes(500))]))
    report = catalog.scan(scanner.root, [scanner.root])
    assert (report.studies_ready, report.files) == (1, {"S_JUNK": 2})


def test_a_damaged_archive_is_a_code_whatever_is_wrong_with_it(
    scanner: Scanner, catalog: Catalog, members: list[tuple[str, bytes]]
) -> None:
    """300 archives with up to five faults each; the head beside them is READY, and no name of a member is said."""
    rng = np.random.default_rng(5)
    small = [(f"CANARY/{name}", data[:3000]) for name, data in members[:6]]
    sources = [packed(small), packed(small, 0), packed([("CANARY.zip", packed(small))]), packed(small, 12)]
    for number in range(300):
        data = bytearray(sources[number % len(sources)])
        directory = data.rindex(b"PK\x05\x06") - 300
        for _ in range(rng.integers(1, 6)):
            low, high = ((0, 60), (max(0, directory), len(data)), (0, len(data)))[rng.integers(3)]
            place = int(rng.integers(low, min(high, len(data))))
            match rng.integers(3):
                case 0:
                    data[place] = int(rng.integers(256))
                case 1:
                    data[place : place + 4] = struct.pack("<I", (0, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)[rng.integers(4)])
                case _:
                    del data[place : place + int(rng.integers(1, 40))]
        (scanner.root / f"bad{number}").write_bytes(data)
    (scanner.root / "a.zip").write_bytes(packed(members))
    report = catalog.scan(scanner.root)
    assert report.studies_ready == 1
    assert set(report.files) <= {reason.name for reason in Reason}
    assert report.files["Q_ARCHIVE_DAMAGED"] > 50
    assert "CANARY" not in report.as_text() + repr(report)
