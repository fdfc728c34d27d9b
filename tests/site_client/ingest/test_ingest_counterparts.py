"""Files that other programs wrote: dcmtk, gdcm and OpenJPH compress and list, hemofed reads."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.files.readers import shared_readers
from site_client.ingest.files.slices import Slice
from site_client.ingest.series.volume import Volume, read_volume
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.test_ingest_catalog import label

GDCM = "/usr/bin/gdcmconv"  # of the distribution: another version than the one that decodes here


def short(scanner: Scanner) -> list[Path]:
    """A head of 12 thick slices: a program is started for each."""
    return scanner.series(slices=12, step_mm=10.0, tags={"SliceThickness": "10"})


def tool(name: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def convert(paths: Sequence[Path], command: Sequence[str]) -> None:
    for path in paths:
        target = path.with_name(path.name + "new")
        subprocess.run([tool(command[0]), *command[1:], path, target], check=True, capture_output=True)
        target.replace(path)


def volume(catalog: Catalog) -> Volume:
    return read_volume(catalog.dataset().studies[0].series)


@pytest.mark.parametrize(
    "command",
    [
        ("dcmcjpeg", "+e1"),
        ("dcmcjpeg", "+el"),
        ("dcmcjpls", "+el"),
        ("dcmcrle",),
        ("dcmconv", "+ti"),
        ("dcmconv", "+tb"),
        ("dcmconv", "+td"),
        *((GDCM, option) for option in ("--jpeg", "--jpegls", "--j2k", "--rle", "--deflated")),
    ],
)
def test_a_series_that_another_program_compressed_without_loss_is_bit_for_bit_the_same(
    scanner: Scanner, catalog: Catalog, command: Sequence[str]
) -> None:
    paths = short(scanner)
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    plain = volume(catalog)
    convert(paths, command)
    report = catalog.scan(scanner.root)
    assert (report.files_read, report.studies_ready) == (12, 1)
    assert np.array_equal(volume(catalog).hu, plain.hu)


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        (("dcmcjpeg", "+ee"), {"R_LOSSY", "Q_NO_DECODER"}),  # 12 bits
        ((GDCM, "--jpeg", "--lossy", "-q", "90"), {"R_LOSSY", "Q_NO_DECODER"}),
        ((GDCM, "--jpegls", "--lossy", "-e", "3"), {"R_LOSSY"}),
        ((GDCM, "--j2k", "--lossy", "-r", "10"), {"R_LOSSY"}),
    ],
)
def test_a_series_that_another_program_compressed_with_loss_is_refused_for_it(
    scanner: Scanner, catalog: Catalog, command: Sequence[str], codes: set[str]
) -> None:
    convert(short(scanner), command)
    catalog.scan(scanner.root)
    assert set(next(summary.reasons for summary in catalog.series())) == codes


def test_a_dicomdir_of_dcmtk_is_the_list_of_what_should_have_come(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series()
    root = scanner.root
    command = [tool("dcmmkdir"), "+r", "+I", "-Pgp", "+id", str(root), "+D", str(root / "DICOMDIR")]
    subprocess.run(command, check=True, capture_output=True)
    report = catalog.scan(root)
    assert (report.studies_ready, report.files) == (1, {"S_DIRECTORY": 1})
    paths[-1].unlink()
    report = catalog.scan(root)
    assert (report.studies_ready, report.series) == (0, {"Q_INCOMPLETE": 1})


def test_an_archive_of_zip_is_read_as_its_folder(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series()
    subprocess.run([tool("zip"), "-rqm", "a.zip", "."], check=True, cwd=scanner.root)
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.files, report.files_seen) == (1, {"S_ARCHIVE": 1}, 25)


def test_an_archive_that_zip_locked_is_locked(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series()
    subprocess.run([tool("zip"), "-rqm", "-P", "secret", "a.zip", "."], check=True, cwd=scanner.root)
    assert catalog.scan(scanner.root).files == {"S_ARCHIVE": 1, "Q_ARCHIVE_LOCKED": 24}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", ["201", "202", "203"])
def test_high_throughput_jpeg_2000_of_openjph_decodes_bit_for_bit(scanner: Scanner, syntax: str, signed: bool) -> None:
    path = scanner.series(slices=1)[0]
    dataset = dcmread(path)
    stream = Path(__file__).with_name("htj2k") / ("signed.j2c" if signed else "unsigned.j2c")
    dataset.Rows, dataset.Columns, dataset.PixelRepresentation = 40, 48, int(signed)
    dataset.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2.4.{syntax}")
    dataset.PixelData = encapsulate([stream.read_bytes()])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    (image,) = shared_readers().slices([path])
    y, x = np.mgrid[:40, :48]
    assert isinstance(image, Slice)
    assert np.array_equal(image.stored, (37 * x + 101 * y + x * y) % 3001 - (1024 if signed else 0))


def test_without_its_decoder_high_throughput_jpeg_2000_has_no_decoder() -> None:
    # The plugin alone is of no use to pydicom: without pylibjpeg nothing decodes.
    program = (
        "import sys; sys.modules['pylibjpeg'] = None; from pydicom.uid import UID; "
        "from site_client.ingest.files.decoders import has_decoder; "
        "print([has_decoder(UID(f'1.2.840.10008.1.2.4.{number}')) for number in (201, 202, 203, 80)])"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert told == "[False, False, False, True]\n"
