"""Real scanners' files, each with the assessment that a person reached by looking at it."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.files.export import walk
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.header_pass import read_header
from site_client.ingest.files.hounsfield import to_hu
from site_client.ingest.files.pixels import read_slice
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import Rules
from site_client.ingest.series.assess import AssessedSeries, assess_series
from site_client.ingest.series.stacks import Image
from site_client.ingest.series.volume import read_volume
from tests.site_client.ingest.conftest import Clock

pytestmark = pytest.mark.real_data

SYNTAXES = "data/WG04"


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("HEMOFED_REAL_DATA")
    if not folder:
        pytest.skip("HEMOFED_REAL_DATA does not name a folder of real DICOM")
    return Path(folder)


def codes(folder: Path, secret: SiteSecret) -> Counter[str]:
    counts: Counter[str] = Counter()
    for file in walk(folder):
        result = file.skip or read_header(folder / file.path, file.size_bytes, secret, Rules())
        counts[result.name if isinstance(result, Reason) else "CT"] += 1
    return counts


def assessed(folder: Path, secret: SiteSecret, rules: Rules | None = None) -> list[AssessedSeries]:
    rules = rules or Rules()
    paths = [folder / file.path for file in walk(folder) if file.skip is None]
    headers = [read_header(path, path.stat().st_size, secret, rules) for path in paths]
    by_series: dict[str, list[Image]] = {}
    for place, header in enumerate(headers):
        if isinstance(header, DicomHeader):
            by_series.setdefault(header.series_key, []).append(Image(place, header))
    assessments = (assess_series(images, lambda place: paths[place], rules) for images in by_series.values())
    return [stack for assessment in assessments for stack in assessment.stacks]


def reasons(stacks: list[AssessedSeries]) -> list[set[str]]:
    return [{reason.name for reason in stack.reasons} for stack in stacks]


def test_the_ge_head_is_accepted_with_its_overlap_its_two_thicknesses_and_its_zero_intercept(
    data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text("StudyInstanceUID,any\n")
    report = catalog.scan(data / "dcm_qa_ct" / "In" / "GE", [tmp_path / "labels.csv"])
    assert (report.studies_ready, report.series, report.files) == (1, {}, {})
    assert set(report.warnings) == {"W_VARIABLE_SPACING", "W_MIXED_THICKNESS", "W_OVERLAP"}


def test_the_ge_volume_is_measured_along_the_normal_and_holds_no_padding(
    data: Path, secret: SiteSecret, tmp_path: Path
) -> None:
    (series,) = assessed(data / "dcm_qa_ct" / "In" / "GE", secret)
    steps = np.diff(series.stack.positions_mm)
    assert steps[:13] == pytest.approx(4.0, abs=0.02)
    assert steps[13] == pytest.approx(1.08, abs=0.02)
    assert steps[14:] == pytest.approx(7.0, abs=0.02)
    assert series.stack.positions_mm[-1] - series.stack.positions_mm[0] == pytest.approx(144, abs=0.5)
    paths = [data / "dcm_qa_ct" / "In" / "GE" / file.path for file in walk(data / "dcm_qa_ct" / "In" / "GE")]
    middle = to_hu(read_slice(paths[17]).stored, read_slice(paths[17]).scale)
    first = to_hu(read_slice(paths[0]).stored, read_slice(paths[0]).scale)
    assert middle.min() >= -1024
    assert np.mean(first == -1024) == pytest.approx(0.24, abs=0.02)
    assert np.mean((middle >= 0) & (middle <= 80)) == pytest.approx(0.32, abs=0.03)


def test_a_whole_volume_is_read_back_by_its_hash(data: Path, secret: SiteSecret) -> None:
    from site_client.ingest.records import SeriesKey, SeriesRecord

    folder = data / "dcm_qa_ct" / "In" / "GE"
    paths = [folder / file.path for file in walk(folder)]
    (series,) = assessed(folder, secret)
    files = tuple(paths[image.file] for image in series.stack.images)
    volume = read_volume(SeriesRecord(SeriesKey("x"), series.content_hash, files))
    assert volume.hu.shape == (28, 512, 512)
    assert volume.thickness_mm.tolist() == [4.0] * 14 + [7.0] * 14


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("S21570/S1000", {"R_LOCALIZER", "R_NOT_AXIAL", "R_EXTENT", "R_TOO_FEW"}),
        ("S21570/S2010", {"R_EXTENT", "R_NO_BRAIN", "R_NOT_HEAD"}),
        ("S21570/S2020", {"R_EXTENT", "R_NO_BRAIN", "R_NOT_HEAD", "R_TOO_FEW"}),
        ("S21610/S2010", {"R_EXTENT", "R_NO_BRAIN", "R_TOO_FEW"}),
        ("S21610/S3010", {"R_EXTENT", "R_NO_BRAIN", "R_TOO_FEW"}),
    ],
)
def test_philips_series_are_refused_for_what_they_are(
    data: Path, secret: SiteSecret, folder: str, expected: set[str]
) -> None:
    (codes_found,) = reasons(assessed(data / "dcm_qa_ct" / "In" / "Philips" / folder, secret))
    assert codes_found >= expected - {"R_NOT_HEAD"}
    assert codes_found <= expected | {"R_NOT_HEAD"}


def test_directories_and_summaries_are_skipped_by_their_class(data: Path, secret: SiteSecret) -> None:
    assert codes(data / "dcm_qa_ct" / "In" / "Philips", secret) == {"CT": 54, "S_SOP_CLASS": 7, "S_DIRECTORY": 12}


def test_the_stated_spacing_of_a_tilted_series_is_not_its_spacing(data: Path, secret: SiteSecret) -> None:
    for folder, step in (("S2010", 2.37), ("S3010", 2.40)):
        (series,) = assessed(data / "dcm_qa_ct" / "In" / "Philips" / "S21610" / folder, secret)
        assert np.diff(series.stack.positions_mm) == pytest.approx(step, abs=0.01)


def test_of_three_reconstructions_the_soft_five_millimetre_one_is_chosen(
    data: Path, secret: SiteSecret, tmp_path: Path, clock: Clock
) -> None:
    rules = Rules(settle_s=0, check_coverage=False, check_content=False)
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, rules, clock)
    report = catalog.scan(data / "dcm_qa_ct" / "In" / "Philips" / "S21570")
    assert (report.studies_ready, report.series_ready, report.series["R_LOWER_SCORE"]) == (1, 3, 2)
    chosen = next(summary for summary in catalog.series() if summary.chosen)
    assert chosen.sheet[1] == ("thickness_mm", "5.00", 1000)
    catalog.close()


@pytest.mark.parametrize("syntax", ["REF", "RLE", "JPLL", "JLSL", "J2KR"])
def test_every_lossless_encoding_decodes_bit_for_bit(data: Path, syntax: str) -> None:
    folder = data / "wg04_ct_syntaxes" / SYNTAXES
    for image in ("CT1", "CT2"):
        (reference,), (path,) = (list((folder / name).glob(f"{image}_*")) for name in ("REF", syntax))
        assert np.array_equal(read_slice(path).stored, read_slice(reference).stored)


@pytest.mark.parametrize(("syntax", "largest"), [("JLSN", 4), ("J2KI", 402)])
def test_lossy_encodings_are_refused_and_decode_as_badly_as_they_should(
    data: Path, secret: SiteSecret, syntax: str, largest: int
) -> None:
    folder = data / "wg04_ct_syntaxes" / SYNTAXES
    assert all("R_LOSSY" in stack for stack in reasons(assessed(folder / syntax, secret)))
    (reference,), (path,) = (list((folder / name).glob("CT2_*")) for name in ("REF", syntax))
    assert np.abs(read_slice(path).stored - read_slice(reference).stored).max() == largest


def test_the_contrast_chest_has_three_reasons_and_the_single_head_slice_its_extent(
    data: Path, secret: SiteSecret
) -> None:
    for syntax in ("REF", "JLSL", "J2KR"):
        stacks = reasons(assessed(data / "wg04_ct_syntaxes" / SYNTAXES / syntax, secret))
        chest = next(stack for stack in stacks if "R_CONTRAST" in stack)
        assert chest >= {"R_CONTRAST", "R_NOT_HEAD", "R_EXTENT"}
        assert {"R_EXTENT", "R_TOO_FEW"} in stacks


def test_no_hu_falls_below_air_although_the_padding_says_minus_three_thousand(data: Path) -> None:
    (path,) = (data / "wg04_ct_syntaxes" / SYNTAXES / "REF").glob("CT1_*")
    image = read_slice(path)
    assert image.stored.min() == -2000
    hu = to_hu(image.stored, image.scale)
    assert hu.min() == -1024
    assert np.mean(hu == -1024) == pytest.approx(0.21, abs=0.02)


def test_the_encodings_of_one_image_are_copies_of_it(
    data: Path, secret: SiteSecret, tmp_path: Path, clock: Clock
) -> None:
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(settle_s=0), clock)
    report = catalog.scan(data / "wg04_ct_syntaxes")
    assert report.files["S_DUPLICATE"] == 11  # five of each image's seven encodings, and the chest's small crop
    assert report.series["R_PERFUSION"] == 1  # the map of cerebral blood flow, two frames in one file
    assert report.files["S_SOP_CLASS"] == 4
    assert report.studies_ready == 0
    catalog.close()


def test_the_abdomen_is_known_by_its_content(data: Path, secret: SiteSecret) -> None:
    (folder,) = (data / "wg04_ct_syntaxes" / "data" / "dcmqi").rglob("ct-3slice")
    (codes_found,) = reasons(assessed(folder, secret))
    assert codes_found == {"R_NOT_HEAD", "R_EXTENT", "R_TOO_FEW"}


def test_reading_the_sets_changes_nothing_in_them(data: Path, catalog: Catalog) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    catalog.scan(data)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
