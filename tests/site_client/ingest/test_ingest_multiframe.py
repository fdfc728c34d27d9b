"""Enhanced CT: a file of frames gives what its images would, one by one; what is no CT of a head says why."""

import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.files.header import Header
from site_client.ingest.files.reader import Reader
from site_client.ingest.files.readers import shared_readers
from site_client.ingest.files.slices import Slice
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import Volume, read_volume
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.enhanced import CONVERTED, Edit, enhanced, item
from tests.site_client.ingest.test_ingest_catalog import label


@pytest.fixture
def singles(tmp_path: Path) -> list[Path]:
    """A head of 24 slices, outside of the export."""
    return Scanner(tmp_path / "singles").series()


def read_back(catalog: Catalog) -> Volume:
    return read_volume(catalog.dataset().studies[0].series)


def header_of(path: Path, secret: SiteSecret, reader: Reader) -> Header | Reason:
    (header,) = reader.headers([(path, path.stat().st_size)], secret, Rules())
    return header


def reasons(catalog: Catalog) -> list[tuple[str, ...]]:
    return [summary.reasons for summary in catalog.series()]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """The volume of the single images."""
    folder = tmp_path_factory.mktemp("twin")
    Scanner(folder / "singles").series()
    label(folder, "1.2.3")
    with closing(Catalog.open(folder / "twin.sqlite", SiteSecret(bytes(32)), Rules(settle_s=0))) as catalog:
        catalog.scan(folder / "singles", [folder / "labels.csv"])
        return read_back(catalog)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with closing(Reader()) as reader:
        yield reader


@pytest.mark.parametrize(
    ("syntax", "options"),
    [
        (ExplicitVRLittleEndian, {}),
        (ExplicitVRLittleEndian, {"defined_lengths": True}),
        (ImplicitVRLittleEndian, {}),
        (ImplicitVRLittleEndian, {"defined_lengths": True}),
        (DeflatedExplicitVRLittleEndian, {}),
        (RLELossless, {"offsets": "basic"}),
        (JPEGLSLossless, {}),
        (JPEGLSLossless, {"offsets": "extended"}),
        (JPEG2000Lossless, {"offsets": "basic", "fragments": 2}),
        (ExplicitVRLittleEndian, {"sop_class": CONVERTED}),
    ],
)
def test_a_multiframe_head_is_bit_for_bit_its_single_images(
    scanner: Scanner, catalog: Catalog, singles: list[Path], twin: Volume, syntax: UID, options: dict[str, object]
) -> None:
    # In another order than that of the slices.
    order = [*singles[::2], *singles[1::2]]
    enhanced(order, scanner.root / "E1", syntax=syntax, **options)  # type: ignore[arg-type]  # keywords of `enhanced`
    label(scanner.root, "1.2.3")
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series, report.files) == (1, {}, {"S_JUNK": 1})
    volume = read_back(catalog)
    assert np.array_equal(volume.hu, twin.hu)
    assert volume.spacing_mm == twin.spacing_mm
    assert np.array_equal(volume.positions_mm, twin.positions_mm)
    assert np.array_equal(volume.thickness_mm, twin.thickness_mm)
    assert catalog.scan(scanner.root).files_read == 0


def test_a_multiframe_file_in_an_archive_is_read_too(
    scanner: Scanner, catalog: Catalog, singles: list[Path], twin: Volume, tmp_path: Path
) -> None:
    path = enhanced(singles, tmp_path / "E1", syntax=JPEGLSLossless)
    with zipfile.ZipFile(scanner.root / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "E1")
    label(scanner.root, "1.2.3")
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.files_seen) == (1, 3)
    assert np.array_equal(read_back(catalog).hu, twin.hu)
    assert catalog.scan(scanner.root).files_read == 0
    catalog.doubt(catalog.dataset().studies[0].series.series_key)
    assert [catalog.scan(scanner.root).files_read for _ in range(2)] == [2, 0]


def test_a_converted_file_takes_the_labels_of_its_images_and_is_a_copy_beside_them(
    scanner: Scanner, catalog: Catalog, tmp_path: Path
) -> None:
    paths = scanner.series()
    enhanced(paths, scanner.root / "E1", sop_class=CONVERTED)
    (tmp_path / "l.csv").write_text("SOPInstanceUID,any\n1.2.3.1.7,1\n")
    report = catalog.scan(scanner.root, [tmp_path / "l.csv"])
    assert (report.files, report.studies_ready) == ({"S_DUPLICATE": 24}, 1)
    for path in paths:
        path.unlink()
    report = catalog.scan(scanner.root, [tmp_path / "l.csv"])
    assert (report.files, report.studies_ready, report.labels.slices_labelled) == ({}, 1, 1)
    assert catalog.dataset().studies[0].slice_labels[6].tolist()[-1] == 1


def test_every_frame_answers_with_a_uid_of_its_own(singles: list[Path], tmp_path: Path, reader: Reader) -> None:
    frames = [Path(f"{enhanced(singles, tmp_path / 'E1')}\0{number}") for number in range(3)]
    converted = [Path(f"{enhanced(singles, tmp_path / 'E2', sop_class=CONVERTED)}\0{number}") for number in range(3)]
    uids = reader.sop_uids([*frames, *converted])
    assert uids == [f"1.2.3.1.9999|{k}" for k in (1, 2, 3)] + [f"1.2.3.1.{k}" for k in (1, 2, 3)]


def of_all(dataset: Dataset) -> Dataset:
    shared: Dataset = dataset.SharedFunctionalGroupsSequence[0]
    return shared


def usage(dataset: Dataset, *given: str) -> None:
    items = [item(ContrastBolusAgentNumber=1, ContrastBolusAgentAdministered=word) for word in given]
    of_all(dataset).ContrastBolusUsageSequence = Items(items)


def of_one_frame(dataset: Dataset, name: str) -> None:
    delattr(dataset.PerFrameFunctionalGroupsSequence[11], name)


def anatomy(dataset: Dataset, meaning: str) -> None:
    region = item(CodeValue="1", CodingSchemeDesignator="SCT", CodeMeaning=meaning)
    of_all(dataset).FrameAnatomySequence = Items([item(AnatomicRegionSequence=Items([region]))])


def agent(dataset: Dataset) -> None:
    code = item(CodeValue="1", CodingSchemeDesignator="SCT", CodeMeaning="Iohexol")
    dataset.ContrastBolusAgentSequence = Items([code])


def both(*edits: Edit) -> Edit:
    def edit(dataset: Dataset) -> None:
        for change in edits:
            change(dataset)

    return edit


def per_frame_usage(dataset: Dataset) -> None:
    agent(dataset)
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        word = "YES" if number == 20 else "NO"
        group.ContrastBolusUsageSequence = Items([item(ContrastBolusAgentAdministered=word)])


def rescale_type(dataset: Dataset, word: str) -> None:
    of_all(dataset).PixelValueTransformationSequence[0].RescaleType = word


def frame_type(dataset: Dataset, *words: str) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.CTImageFrameTypeSequence[0].FrameType = list(words)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (agent, {"R_CONTRAST"}),
        (both(agent, lambda ds: usage(ds, "NO")), set()),
        (both(agent, lambda ds: usage(ds, "NO", "YES")), {"R_CONTRAST"}),
        (lambda ds: usage(ds, "YES"), {"R_CONTRAST"}),
        (per_frame_usage, {"R_CONTRAST"}),
        (lambda ds: anatomy(ds, "Chest"), {"R_NOT_HEAD"}),
        (lambda ds: anatomy(ds, "Brain"), set()),
        (lambda ds: rescale_type(ds, "US"), {"R_DERIVED"}),
        (lambda ds: frame_type(ds, "DERIVED", "PRIMARY", "PERFUSION", "RCBF"), {"R_PERFUSION"}),
        (lambda ds: frame_type(ds, "ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"), {"R_LOCALIZER"}),
        (lambda ds: setattr(ds, "BurnedInAnnotation", "YES"), {"R_BURNED_IN"}),
        (lambda ds: setattr(ds, "LossyImageCompression", "01"), {"R_LOSSY"}),
        (lambda ds: of_one_frame(ds, "PlanePositionSequence"), {"Q_NO_POSITION"}),
        (lambda ds: delattr(of_all(ds), "PlaneOrientationSequence"), {"Q_NO_POSITION"}),
        (lambda ds: delattr(of_all(ds), "PixelValueTransformationSequence"), {"Q_MISSING_TAG"}),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]), {"Q_TRUNCATED"}),
        (lambda ds: setattr(ds, "NumberOfSeriesRelatedInstances", 2), {"Q_INCOMPLETE"}),
        (lambda ds: setattr(ds, "InConcatenationTotalNumber", 2), {"Q_INCOMPLETE"}),
    ],
)  # fmt: skip
def test_a_multiframe_file_says_what_it_is_or_lacks(
    scanner: Scanner, catalog: Catalog, singles: list[Path], edit: Callable[[Dataset], None], expected: set[str]
) -> None:
    enhanced(singles, scanner.root / "E1", edit=edit)
    catalog.scan(scanner.root)
    found = {reason for stack in reasons(catalog) for reason in stack}
    # A frame without its position is a stack of its own, and leaves a gap.
    assert found - {"Q_GAP"} == expected if "Q_NO_POSITION" in expected else found == expected


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda ds: delattr(ds, "PerFrameFunctionalGroupsSequence"), Reason.Q_MISSING_TAG),
        (lambda ds: setattr(ds, "NumberOfFrames", 23), Reason.Q_MISSING_TAG),
        (lambda ds: setattr(ds, "NumberOfFrames", 100_000), Reason.Q_DECODE_LIMIT),
        (lambda ds: setattr(ds, "Modality", "MR"), Reason.S_SOP_CLASS),
        (lambda ds: delattr(ds, "StudyInstanceUID"), Reason.Q_BAD_UID),
    ],
)
def test_a_file_whose_frames_cannot_be_told_apart_is_one_code(
    singles: list[Path],
    tmp_path: Path,
    secret: SiteSecret,
    reader: Reader,
    edit: Callable[[Dataset], None],
    reason: Reason,
) -> None:
    assert header_of(enhanced(singles, tmp_path / "E1", edit=edit), secret, reader) is reason


def test_missing_frames_in_the_middle_are_a_gap_and_frames_over_time_are_perfusion(
    scanner: Scanner, catalog: Catalog, singles: list[Path]
) -> None:
    enhanced([*singles[:9], *singles[11:]], scanner.root / "E1")
    catalog.scan(scanner.root)
    assert reasons(catalog) == [("Q_GAP",)]
    enhanced([path for path in singles for _ in range(3)], scanner.root / "E1")
    catalog.scan(scanner.root)
    assert reasons(catalog) == [("R_PERFUSION",)]


def test_both_halves_of_a_concatenation_are_one_series(
    scanner: Scanner, catalog: Catalog, singles: list[Path], twin: Volume
) -> None:
    def half(number: int) -> Callable[[Dataset], None]:
        def edit(dataset: Dataset) -> None:
            dataset.SOPInstanceUID = f"1.2.3.1.99{number}"
            dataset.InConcatenationTotalNumber, dataset.ConcatenationFrameOffsetNumber = 2, 12 * number

        return edit

    enhanced(singles[:12], scanner.root / "E1", edit=half(0))
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    assert "Q_INCOMPLETE" in reasons(catalog)[0]
    enhanced(singles[12:], scanner.root / "E2", edit=half(1))
    assert catalog.scan(scanner.root).studies_ready == 1
    assert np.array_equal(read_back(catalog).hu, twin.hu)


def test_each_frame_has_its_own_digest_and_another_header_changes_all(singles: list[Path], tmp_path: Path) -> None:
    same = [singles[0]] * 3
    readers = shared_readers()
    first = enhanced(same, tmp_path / "E1")
    images = readers.slices([Path(f"{first}\0{number}") for number in range(3)])
    again = readers.slices([Path(f"{first}\0{number}") for number in range(3)])
    enhanced(same, first, edit=lambda dataset: rescale_type(dataset, "US"))
    other = readers.slices([Path(f"{first}\0{number}") for number in range(4)])
    digests = [image.sha256 if isinstance(image, Slice) else image for image in (*images, *again, *other)]
    assert digests[:3] == digests[3:6]
    assert len(set(digests)) == 7
    assert digests[-1] is Reason.Q_DECODE  # there is no fourth frame


def test_people_read_of_the_file_and_of_a_frame(
    scanner: Scanner, catalog: Catalog, singles: list[Path], tmp_path: Path
) -> None:
    path = enhanced(singles, scanner.root / "E1")
    catalog.scan(scanner.root)
    for query in (str(path), f"{path}, frame 3"):
        text = "\n".join(catalog.explain(query))
        assert text.startswith(f"file E1{query[len(str(path)) :]}: ")
        assert "READY and chosen" in text
        assert "24 images in ." in text
    catalog.write_page(tmp_path / "page.html", with_pictures=True)
    assert "data:image" in (tmp_path / "page.html").read_text()


@pytest.mark.skipif(shutil.which("dcmconv") is None, reason="dcmtk is not installed")
def test_a_file_that_dcmtk_wrote_in_the_other_byte_order_is_the_same(
    scanner: Scanner, catalog: Catalog, singles: list[Path], twin: Volume, tmp_path: Path
) -> None:
    path = enhanced(singles, tmp_path / "E1")
    subprocess.run(["dcmconv", "+tb", path, scanner.root / "E1"], check=True)
    label(scanner.root, "1.2.3")
    assert catalog.scan(scanner.root).studies_ready == 1
    assert np.array_equal(read_back(catalog).hu, twin.hu)


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
def test_dcmtk_reads_the_files_of_these_tests_as_enhanced_ct(singles: list[Path], tmp_path: Path) -> None:
    path = enhanced(singles, tmp_path / "E1", defined_lengths=True)
    dump = subprocess.run(["dcmdump", "+P", "SOPClassUID", "+P", "5200,9230", path], capture_output=True, text=True)
    assert dump.returncode == 0
    assert "=EnhancedCTImageStorage" in dump.stdout
    assert dump.stdout.count("PlanePositionSequence") == 24
    assert dump.stderr == ""


def test_a_damaged_multiframe_file_is_a_code(
    singles: list[Path], tmp_path: Path, secret: SiteSecret, reader: Reader
) -> None:
    rng = np.random.default_rng(7)
    sources = [
        enhanced(singles[:4], tmp_path / f"E{place}", syntax=syntax).read_bytes()
        for place, syntax in enumerate((ExplicitVRLittleEndian, JPEGLSLossless, RLELossless))
    ]
    readers = shared_readers()
    for number in range(400):
        data = bytearray(sources[number % len(sources)])
        groups = data.index(b"\x00\x52\x29\x92")
        for _ in range(rng.integers(1, 6)):
            low, high = ((132, groups), (groups, groups + 4000), (groups, len(data)))[rng.integers(3)]
            place = int(rng.integers(low, min(high, len(data))))
            match rng.integers(4):
                case 0:
                    data[place] = int(rng.integers(256))
                case 1:
                    data[place : place + 4] = (b"\xff\xff\xff\xff", bytes(4), b"\xfe\xff\x0d\xe0")[rng.integers(3)]
                case 2:
                    del data[place : place + int(rng.integers(1, 40))]
                case _:
                    data[place : place + 2] = (b"SQ", b"UN", b"OB", b"DS")[rng.integers(4)]
        path = tmp_path / "CANARYNAME"
        path.write_bytes(data)
        header = header_of(path, secret, reader)
        images = readers.slices([Path(f"{path}\0{frame}") for frame in range(4)])
        assert isinstance(header, Header | Reason)
        assert all(isinstance(image, Slice | Reason) for image in images)
        assert not [word for word in ("CANARYNAME", "ANNA", "1.2.3") if word in repr(header) + repr(images)]
