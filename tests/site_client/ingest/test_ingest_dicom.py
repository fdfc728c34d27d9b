"""The header pass: one file, one header or one code; no value gets out, nothing raises."""

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.header_pass import read_header
from site_client.ingest.files.pixels import read_slice
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.rules import Rules
from tests.site_client.ingest.conftest import Scanner


def read(path: Path, secret: SiteSecret) -> DicomHeader | Reason:
    header = read_header(path, path.stat().st_size, secret, Rules())
    assert isinstance(header, DicomHeader | Reason)
    return header


@pytest.fixture
def ct(scanner: Scanner) -> Path:
    return scanner.series(slices=1)[0]


def rewrite(path: Path, **tags: object) -> Path:
    dataset = dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def test_a_sound_image_gives_its_geometry_and_no_reason(ct: Path, secret: SiteSecret) -> None:
    header = read(ct, secret)
    assert isinstance(header, DicomHeader)
    assert (header.reasons, header.warnings) == ((), ())
    assert (header.rows, header.columns, header.spacing_mm, header.thickness_mm) == (96, 96, (2.4, 2.4), 5.0)
    assert (header.kernel, header.origin, header.native) == ("soft", "original", True)
    assert header.study_key == secret.study("1.2.3")
    assert DicomHeader.from_json(header.to_json()) == header


def test_neither_header_nor_json_holds_a_uid_or_a_name(ct: Path, secret: SiteSecret) -> None:
    header = read(ct, secret)
    assert isinstance(header, DicomHeader)
    for canary in ("1.2.3", "CANARY", "P1", "STANDARD"):
        assert canary not in header.to_json()
        assert canary not in repr(header)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Reason.S_SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, Reason.S_SOP_CLASS),
        ({"Modality": "MR"}, Reason.S_SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, Reason.Q_MISSING_TAG),
        ({"NumberOfFrames": "2"}, Reason.R_MULTIFRAME),
        ({"SOPInstanceUID": None}, Reason.Q_BAD_UID),
        ({"StudyInstanceUID": ""}, Reason.Q_BAD_UID),
    ],
)
def test_what_is_no_ct_image_is_one_code(ct: Path, secret: SiteSecret, tags: dict[str, object], reason: Reason) -> None:
    assert read(rewrite(ct, **tags), secret) is reason


@pytest.mark.parametrize(
    ("tags", "reasons"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {Reason.R_LOCALIZER}),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, {Reason.R_DERIVED}),
        ({"ImageType": ["DERIVED", "PRIMARY", "RCBF"]}, {Reason.R_PERFUSION}),
        ({"ImageType": ["DERIVED", "SECONDARY"], "RescaleSlope": None}, {Reason.R_DERIVED}),
        ({"RescaleType": "Z_EFF"}, {Reason.R_DERIVED}),
        ({"ContrastBolusAgent": "ISOVUE"}, {Reason.R_CONTRAST}),
        ({"ContrastBolusVolume": "80"}, {Reason.R_CONTRAST}),
        ({"BurnedInAnnotation": "YES"}, {Reason.R_BURNED_IN}),
        ({"LossyImageCompression": "01"}, {Reason.R_LOSSY}),
        ({"BodyPartExamined": "CHEST"}, {Reason.R_NOT_HEAD}),
        ({"ImagePositionPatient": None}, {Reason.Q_NO_POSITION}),
        ({"ImageOrientationPatient": None}, {Reason.Q_NO_POSITION}),
        ({"PixelSpacing": None}, {Reason.Q_GEOMETRY}),
        ({"RescaleIntercept": None}, {Reason.Q_MISSING_TAG}),
        ({"RescaleSlope": "0"}, {Reason.Q_MISSING_TAG}),
        ({"Rows": 0}, {Reason.Q_MISSING_TAG}),
        ({"Rows": 65535, "Columns": 65535}, {Reason.Q_DECODE_LIMIT}),
        ({"PixelData": None}, {Reason.Q_NO_PIXELS}),
        ({"ContrastBolusAgent": "ISOVUE", "BodyPartExamined": "CHEST"}, {Reason.R_CONTRAST, Reason.R_NOT_HEAD}),
    ],
)
def test_every_ground_of_refusal_is_named(
    ct: Path, secret: SiteSecret, tags: dict[str, object], reasons: set[Reason]
) -> None:
    header = read(rewrite(ct, **tags), secret)
    assert isinstance(header, DicomHeader)
    assert set(header.reasons) == reasons


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]},
        {"ImageType": ["ORIGINAL", "SECONDARY", "AXIAL", "ADD"]},
        {"NumberOfFrames": "1"},
        {"ContrastBolusAgent": ""},
        {"ContrastBolusAgent": "none"},
        {"BodyPartExamined": "HEADNECK"},
        {"BodyPartExamined": "SKULLBASE"},
        {"LossyImageCompression": "00"},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"Modality": None},
    ],
)
def test_what_only_sounds_like_a_ground_is_none(ct: Path, secret: SiteSecret, tags: dict[str, object]) -> None:
    header = read(rewrite(ct, **tags), secret)
    assert isinstance(header, DicomHeader)
    assert header.reasons == ()


def test_an_rsna_file_is_taken_although_it_lacks_half_its_header(ct: Path, secret: SiteSecret) -> None:
    rewrite(ct, SOPClassUID=None, SliceThickness=None, ImageType=None, FrameOfReferenceUID=None, ConvolutionKernel=None)
    dataset = dcmread(ct)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom about the UIDs, which is the point
        dataset.SOPInstanceUID, dataset.StudyInstanceUID = "ID_1a2b3c4d5", "ID_6e7f8a9b0"
        dataset.SeriesInstanceUID, dataset.PatientID = "ID_cc11dd22e", "ID_ff33ee44d"
        dataset.file_meta.MediaStorageSOPInstanceUID = "ID_1a2b3c4d5"
        del dataset.file_meta.MediaStorageSOPClassUID
        dataset.save_as(ct, enforce_file_format=False)
    header = read(ct, secret)
    assert isinstance(header, DicomHeader)
    assert (header.reasons, header.warnings) == ((), (Warn.W_NO_SOP_CLASS,))
    assert header.slice_key == secret.slice("ID_1a2b3c4d5")
    assert read_slice(ct).stored.shape == (96, 96)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_raw_transfer_syntax_reads_to_the_same_header_and_pixels(
    ct: Path, secret: SiteSecret, syntax: UID
) -> None:
    before, pixels = read(ct, secret), read_slice(ct).stored
    dataset = dcmread(ct)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    plain = Dataset({element.tag: element for element in dataset})
    plain.file_meta = dataset.file_meta
    plain.save_as(ct, enforce_file_format=True)
    assert read(ct, secret) == before
    assert np.array_equal(read_slice(ct).stored, pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_compression_changes_no_pixel_and_is_no_reason(ct: Path, secret: SiteSecret, syntax: UID) -> None:
    pixels = read_slice(ct).stored
    dataset = dcmread(ct)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(ct)
    header = read(ct, secret)
    assert isinstance(header, DicomHeader)
    assert (header.reasons, header.native) == ((), False)
    assert np.array_equal(read_slice(ct).stored, pixels)
    for cut in (1, 9, ct.stat().st_size // 3):
        ct.write_bytes(ct.read_bytes()[:-cut])
        cut_header = read(ct, secret)
        assert isinstance(cut_header, DicomHeader)
        assert Reason.Q_TRUNCATED in cut_header.reasons


def test_a_syntax_without_a_permissive_decoder_is_a_matter_for_it_and_not_a_broken_file(
    ct: Path, secret: SiteSecret
) -> None:
    dataset = dcmread(ct)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    dataset.save_as(ct)
    header = read(ct, secret)
    assert isinstance(header, DicomHeader)
    assert Reason.Q_NO_DECODER in header.reasons
    assert Reason.Q_TRUNCATED not in header.reasons


def test_a_file_cut_anywhere_in_its_pixels_is_truncated_although_the_parser_accepts_it(
    ct: Path, secret: SiteSecret
) -> None:
    whole = ct.read_bytes()
    for cut in (1, 2, 4000, len(whole) // 2):
        ct.write_bytes(whole[:-cut])
        header = read(ct, secret)
        assert isinstance(header, DicomHeader)
        assert header.reasons == (Reason.Q_TRUNCATED,)


def test_a_file_without_preamble_is_read_and_text_that_resembles_one_is_not(
    ct: Path, secret: SiteSecret, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.write_bytes(ct.read_bytes()[132:])
    assert read(bare, secret) == read(ct, secret)
    assert np.array_equal(read_slice(bare).stored, read_slice(ct).stored)
    text = tmp_path / "text"
    text.write_bytes(b"\x08\0 is not a header, whatever follows. " * 20)
    assert read(text, secret) in (Reason.S_NOT_DICOM, Reason.S_SOP_CLASS)


def test_an_overlong_uid_and_decimal_commas_are_tolerated(ct: Path, secret: SiteSecret) -> None:
    data = ct.read_bytes().replace(b"-115.2\\-115.2\\", b"-115,2\\-115,2\\")
    ct.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewrite(ct, StudyInstanceUID="1.2." + "9" * 61)
    header = read(ct, secret)
    assert isinstance(header, DicomHeader)
    assert header.reasons == ()
    assert header.position == (-115.2, -115.2, 0.0)


def test_a_spreadsheets_number_is_no_uid(ct: Path, secret: SiteSecret) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewrite(ct, StudyInstanceUID="1.2E+30")
    assert read(ct, secret) is Reason.Q_BAD_UID


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1400), junk=st.binary(min_size=1, max_size=12), cut=st.integers(0, 19000))
def test_no_damage_raises_warns_or_logs(
    ct: Path, secret: SiteSecret, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int, junk: bytes, cut: int
) -> None:
    data = bytearray(ct.read_bytes())
    data[place : place + len(junk)] = junk
    broken = tmp_path / "broken"
    broken.write_bytes(bytes(data[: len(data) - cut]))
    with caplog.at_level(logging.DEBUG):
        assert isinstance(read(broken, secret), DicomHeader | Reason)
    assert caplog.text == ""
