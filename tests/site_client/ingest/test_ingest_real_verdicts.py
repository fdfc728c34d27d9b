"""Every real file, and every case that once failed, against the verdict that a person stated for it.

HEMOFED_REAL_DATA names the folder of real files; the cases stand beside it, in cases/ingest.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.explain import Explainer
from site_client.ingest.catalog.report import ScanReport
from site_client.ingest.catalog.tables import FileRow, StackRow
from site_client.ingest.files.addresses import parse_address
from site_client.ingest.files.readers import Readers
from site_client.ingest.files.slices import Slice
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import Rules
from tests.site_client.ingest.conftest import Clock, Scanner

pytestmark = pytest.mark.real_data
TABLE = tomllib.loads(Path(__file__).with_name("real_data_verdicts.toml").read_text())
SCANS = {scan["root"]: scan["files"] for scan in TABLE["scans"]}


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("HEMOFED_REAL_DATA")
    if not folder:
        pytest.skip("HEMOFED_REAL_DATA does not name a folder of real DICOM")
    return Path(folder)


@pytest.fixture(scope="module")
def cases(data: Path) -> Path:
    folder = data.parent / "cases" / "ingest"
    if not folder.is_dir():
        pytest.skip("no folder of cases stands beside that of real files")
    return folder


def verdicts(catalog: Catalog, secret: SiteSecret) -> dict[str, set[str]]:
    """All codes of each file: its own, or those of its series; READY."""
    seal = secret.path_seal()
    codes: dict[str, set[str]] = defaultdict(set)
    with Session(catalog._engine) as session:
        for row in session.execute(select(FileRow.path, FileRow.code).where(FileRow.code.is_not(None))):
            codes[str(parse_address(seal.decrypt(row.path)).file)].add(row.code)
        explainer = Explainer(session, secret, Rules(settle_s=0), 0.0)
        for stack in session.scalars(select(StackRow)):
            for address in explainer.files_of(stack).paths:
                codes[str(parse_address(address).file)] |= set(stack.reasons.split()) or {stack.state}
    return codes


def test_words_and_codes_of_the_table_belong_together() -> None:
    known = {reason.name for reason in Reason} | {"READY"}
    assert {code for codes in TABLE["words"].values() for code in codes} <= known
    for row in (row for rows in SCANS.values() for row in rows):
        assert set(row["codes"]) <= known
        for word in row["words"]:
            assert set(TABLE["words"][word]) & set(row["codes"]), (word, row["files"])


@pytest.mark.parametrize("root", SCANS)
def test_every_file_has_exactly_the_verdict_of_the_table(
    data: Path, catalog: Catalog, secret: SiteSecret, root: str
) -> None:
    folder = data / root
    catalog.scan(folder)
    found = verdicts(catalog, secret)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert sorted(found) == files
    rows = {
        file: [row for row in SCANS[root] if any(fnmatchcase(file, name) for name in row["files"])] for file in files
    }
    assert {file: len(matching) for file, matching in rows.items() if len(matching) != 1} == {}
    assert {file: found[file] for file in files} == {file: set(rows[file][0]["codes"]) for file in files}
    assert all(any(fnmatchcase(file, name) for file in files) for row in SCANS[root] for name in row["files"])


def test_the_table_names_every_folder_of_the_data(data: Path) -> None:
    assert {path.name for path in data.iterdir() if path.is_dir()} <= set(SCANS)


def test_files_whose_decoder_is_missing_are_not_called_damaged(data: Path, secret: SiteSecret) -> None:
    """As on a machine with pydicom and NumPy alone."""
    program = (
        "import sys\n"
        "for name in ('gdcm', 'pylibjpeg', 'openjpeg', 'jpeg_ls', 'PIL'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from site_client.ingest.files.header_pass import read_header\n"
        "from site_client.ingest.pseudonym import SiteSecret\n"
        "from site_client.ingest.rules import Rules\n"
        "for path in sorted(Path(sys.argv[1]).rglob('CT?_*')):\n"
        "    header = read_header(path, path.stat().st_size, SiteSecret(bytes(32)), Rules())\n"
        "    print(path.name, *(reason.name for reason in header.reasons if reason.name.startswith('Q_')))\n"
    )
    command = [sys.executable, "-c", program, str(data / "wg04_ct_syntaxes" / "data" / "WG04")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    needs_none = ("UNC", "RLE")
    assert told == [
        line.split()[0] + ("" if line.split()[0].endswith(needs_none) else " Q_NO_DECODER") for line in told
    ]
    assert len(told) == 14


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("tiny_1x1.dcm", {"R_EXTENT", "R_TOO_FEW", "R_NOT_HEAD", "R_NO_BRAIN"}),
        ("gdcm_abort_jpegls.dcm", {"Q_DECODE", "R_EXTENT", "R_TOO_FEW"}),
        ("vr_D0_slope.dcm", {"Q_MISSING_TAG", "Q_NO_PIXELS", "R_EXTENT", "R_TOO_FEW"}),
        ("deflate_110KB_to_100MB.dcm", {"Q_DECODE_LIMIT"}),
        ("rle_no_sequence_delimiter.dcm", {"R_EXTENT", "R_TOO_FEW"}),
        ("left_justified_highbit15.dcm", {"R_EXTENT", "R_TOO_FEW"}),
    ],
)
def test_a_case_costs_itself_its_code_and_the_good_series_nothing(
    cases: Path, scanner: Scanner, catalog: Catalog, secret: SiteSecret, name: str, codes: set[str]
) -> None:
    scanner.series("1.2.4")
    shutil.copyfile(cases / name, scanner.root / name)
    assert catalog.scan(scanner.root).studies_ready == 1
    assert verdicts(catalog, secret)[name] == codes


def test_the_left_justified_case_is_shifted_once(cases: Path) -> None:
    readers = Readers(1)
    (image,) = readers.slices([cases / "left_justified_highbit15.dcm"])
    readers.close()
    assert isinstance(image, Slice)
    assert (image.stored.min(), image.stored.max()) == (13, 1934)  # the file's 16-bit words, 208 to 30944, by sixteen


def test_the_case_of_an_unclosed_quote_names_the_line(cases: Path, scanner: Scanner, catalog: Catalog) -> None:
    scanner.series()
    report = catalog.scan(scanner.root, [cases / "unclosed_quote_999rows.csv"])
    assert report.labels.studies_labelled == 0
    (sentence,) = report.labels.refused_files
    assert "line 2" in sentence


def made(cases: Path, name: str, folder: Path) -> None:
    """Writes a series of the cases' own generator."""
    spec = importlib.util.spec_from_file_location("cases_make", cases / "make.py")
    assert spec is not None  # the file is there
    assert spec.loader is not None  # it is Python
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(folder)


def none_ready(*reasons: str) -> Callable[[ScanReport], bool]:
    return lambda report: report.series_ready == 0 and set(reasons) <= set(report.series)


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("two_patients_half_and_half", none_ready("Q_UID_CLASH")),
        ("two_patients_interleaved", none_ready("Q_UID_CLASH")),
        ("gap_two_around_one", none_ready("Q_GAP")),
        ("half_lost", none_ready("Q_INCOMPLETE")),
        ("contrast_every_second", none_ready("R_CONTRAST")),
        ("no_contrast_in_words", lambda report: report.series_ready == 1),
        ("lossy", none_ready("R_LOSSY")),
        ("bad_middle", none_ready("Q_DECODE")),
    ],
)
def test_a_made_case_has_the_verdict_that_its_maker_states(
    cases: Path, tmp_path: Path, catalog: Catalog, name: str, holds: Callable[[ScanReport], bool]
) -> None:
    made(cases, name, tmp_path / "export")
    assert holds(catalog.scan(tmp_path / "export"))


def test_a_made_series_that_grows_waits_whatever_its_times_say(
    cases: Path, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    made(cases, "growing_old_mtime", tmp_path / "export")
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(), clock)
    report = catalog.scan(tmp_path / "export")
    assert (report.series_waiting, report.series_ready) == (1, 0)
    catalog.close()


def test_a_made_lossy_series_follows_the_rule_each_time(
    cases: Path, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    made(cases, "lossy", tmp_path / "export")
    ready = []
    for lossy in (False, True, False):
        catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(settle_s=0, lossy=lossy), clock)
        ready.append(catalog.scan(tmp_path / "export").series_ready)
        catalog.close()
    assert ready == [0, 1, 0]
