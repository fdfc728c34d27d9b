"""A study as CT Image Storage files (DICOM PS3.3 A.3), in the header family of its scanner."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from site_client.phantom.lattice import Scan
from site_client.phantom.noise import Floats
from site_client.phantom.profiles import Scanner
from site_client.phantom.streams import GENERATOR_VERSION, PhantomStreams

IMPLEMENTATION_UID = "2.25.180150000000000000000000000000000001"
COMPRESSED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)
FIRST_DAY = datetime(2021, 1, 4)  # dates follow from the seed, never from the clock


@dataclass(frozen=True)
class StudyIdentity:
    """Patient and time, all synthetic. `part` enters the UIDs, so that a twin's differ from its study's."""

    patient_id: str
    age: float
    days: int
    part: str = ""


@dataclass(frozen=True)
class WrittenSeries:
    """A series on disk. `sop_uids` and `files` are caudal to cranial; `sha256`: hex, over the bytes of all files."""

    study_uid: str
    series_uid: str
    sop_uids: tuple[str, ...]
    files: tuple[Path, ...]
    sha256: str


def write_series(
    streams: PhantomStreams,
    identity: StudyIdentity,
    scanner: Scanner,
    scan: Scan,
    image: Floats,
    out: Path,
    *,
    second: bool = False,
    wrapped: bool = False,
) -> WrittenSeries:
    """Writes a series below `out`/<PatientID>/<StudyUID>/<SeriesUID>/, under file names that mean nothing.

    Args:
        streams: Of the study; its header stream decides date, sex, order and compression.
        identity: Patient and time.
        scanner: Decides the header family.
        scan: Geometry.
        image: HU f32[T, H, W].
        out: The folder.
        second: Another reconstruction of the study's scan, as a series of its own.
        wrapped: Store 12-bit values modulo 4096.
    """
    names = (identity.part, "second") if second else (identity.part,)
    # One header stream a study: all its series share date, sex and age.
    dataset, random = _series_header(streams, identity, scanner, scan)
    dataset.SeriesInstanceUID = streams.uid("series", *names)
    dataset.SeriesNumber = "3" if second else "2"
    stored = store(scanner, scan, image)
    if wrapped:
        stored = np.asarray(np.maximum(stored.astype(np.int32) + scanner.intercept, -1000) % 4096, dtype=np.uint16)
        dataset.RescaleIntercept = "0"
    # Half of the scanners number from the vertex down: instance numbers must not tell the order.
    upward = bool(random.random() < 0.5)
    syntax = _syntax(random, scanner)
    folder = _folder(dataset, out)
    sop_uids = tuple(streams.uid("image", *names, str(k)) for k in range(scan.slices))
    files = tuple(folder / f"{streams.name(16, 'file', *names, str(k))}.dcm" for k in range(scan.slices))
    for k, (sop_uid, path) in enumerate(zip(sop_uids, files, strict=True)):
        number = k + 1 if upward else scan.slices - k
        _write_slice(dataset, path, sop_uid, syntax, number, scan, k, stored[k])
    return WrittenSeries(
        str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), sop_uids, files, digest_of(files)
    )


def write_localizer(
    streams: PhantomStreams, identity: StudyIdentity, scanner: Scanner, scan: Scan, image: Floats, out: Path
) -> Path:
    """Writes the lateral localizer of HU f32[T, H, W]: means along the way through the head, 1 mm a row."""
    ds, _ = _series_header(streams, identity, scanner, scan)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    ds.SeriesDescription, ds.SeriesNumber = "SCOUT", "1"
    ds.SeriesInstanceUID = streams.uid("series", identity.part, "localizer")
    seen = np.repeat(image.mean(axis=2), np.maximum(1, np.round(scan.thickness_mm)).astype(int), axis=0)[::-1]
    values = np.round(np.clip(seen, -1000, 3000)) - scanner.intercept
    stored = values.astype(np.int16) if scanner.signed else values.astype(np.uint16)
    ds.Rows, ds.Columns = stored.shape
    ds.PixelSpacing = ["1", _ds(scan.pixel_mm)]
    ds.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
    first, top = scan.position_mm(0), scan.position_mm(scan.slices - 1)
    ds.ImagePositionPatient = ["0", _ds(float(first[1])), _ds(float(top[2]))]
    ds.InstanceNumber, ds.SliceThickness = "1", ""
    path = _folder(ds, out) / f"{streams.name(16, 'file', identity.part, 'localizer')}.dcm"
    syntax = ImplicitVRLittleEndian if scanner.implicit else ExplicitVRLittleEndian
    _save(
        ds,
        path,
        streams.uid("image", identity.part, "localizer"),
        syntax,
        stored,
    )
    return path


def digest_of(files: Iterable[Path]) -> str:
    """Computes the hex SHA-256 over the bytes of the files in order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _folder(dataset: Dataset, out: Path) -> Path:
    folder = out / str(dataset.PatientID) / str(dataset.StudyInstanceUID) / str(dataset.SeriesInstanceUID)
    folder.mkdir(parents=True)
    return folder


def _syntax(random: np.random.Generator, scanner: Scanner) -> UID:
    """Draws a series' transfer syntax: the scanner's own, or a lossless one after an archive's compression."""
    archived, kind = random.random() < scanner.compressed, int(random.integers(len(COMPRESSED)))
    if archived:
        return COMPRESSED[kind]
    return ImplicitVRLittleEndian if scanner.implicit else ExplicitVRLittleEndian


def store(scanner: Scanner, scan: Scan, image: Floats) -> npt.NDArray[np.int16] | npt.NDArray[np.uint16]:
    """Converts HU f32[T, H, W] to stored values of the same shape: intercept, range, padding outside the circle."""
    values = np.round(image) - scanner.intercept
    low, high = (-32768, 32767) if scanner.signed else (0, 2**scanner.bits_stored - 1)
    values = np.clip(values, max(low, -1024 - scanner.intercept), min(high, 3071 - scanner.intercept))
    pixels = (np.arange(scan.size_px) - (scan.size_px - 1) / 2) / scan.size_px
    outside = np.hypot(pixels[:, None], pixels[None, :]) > 0.5
    # Scanners fill the corners outside the circle of reconstruction with padding, or with the lowest value.
    values[:, outside] = scanner.padding if scanner.padding is not None else low
    return values.astype(np.int16) if scanner.signed else values.astype(np.uint16)


def _series_header(
    streams: PhantomStreams, identity: StudyIdentity, scanner: Scanner, scan: Scan
) -> tuple[Dataset, np.random.Generator]:
    """Fills in the attributes that all series of the study share; gives the header stream after it, too."""
    random = streams.generator("header")
    ds = Dataset()
    taken = FIRST_DAY + timedelta(days=int(random.integers(1400)) + identity.days, seconds=int(random.integers(86400)))
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID = streams.uid("study", identity.part)
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = taken.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = taken.strftime("%H%M%S")
    ds.AccessionNumber = streams.name(8, "accession", identity.part)
    ds.Modality = "CT"
    ds.Manufacturer = scanner.manufacturer
    # No attribute may tell of the lesion: descriptions are constants.
    ds.StudyDescription = "CT HEAD WITHOUT CONTRAST (SYNTHETIC)"
    ds.SeriesDescription = "HEAD"
    ds.PatientName = f"PHANTOM^{identity.patient_id}"
    ds.PatientID = identity.patient_id
    # Age and birth date agree, as far as a year can tell.
    ds.PatientBirthDate = f"{taken.year - int(identity.age)}0101"
    ds.PatientSex = "M" if random.random() < 0.5 else "F"
    ds.PatientAge = f"{int(identity.age):03d}Y"
    ds.BodyPartExamined = "HEAD"
    ds.KVP = str(scanner.kvp)
    # Its sign differs between vendors; readers have to use the orientation.
    ds.GantryDetectorTilt = f"{np.rad2deg(-scan.tilt_rad):.1f}"
    ds.ConvolutionKernel = scanner.kernel_name
    ds.PatientPosition = "HFS"
    ds.StudyID = "1"
    ds.AcquisitionNumber = "1"
    ds.FrameOfReferenceUID = streams.uid("frame", identity.part)
    ds.PositionReferenceIndicator = "OM"
    ds.ImageOrientationPatient = [_ds(v) for v in (*scan.row_direction, *scan.column_direction)]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows = ds.Columns = scan.size_px
    ds.PixelSpacing = [_ds(scan.pixel_mm)] * 2
    _pixel_module(ds, scanner)
    return ds, random


def _pixel_module(ds: Dataset, scanner: Scanner) -> None:
    ds.BitsAllocated = 16
    ds.BitsStored = scanner.bits_stored
    ds.HighBit = scanner.bits_stored - 1
    ds.PixelRepresentation = int(scanner.signed)
    if scanner.padding is not None and scanner.padding_tag:
        ds.add_new(0x00280120, "SS" if scanner.signed else "US", scanner.padding)
    centers, widths = scanner.window
    ds.WindowCenter = [_ds(v) for v in centers]
    ds.WindowWidth = [_ds(v) for v in widths]
    ds.RescaleIntercept = str(scanner.intercept)
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"


def _write_slice(
    series: Dataset,
    path: Path,
    sop_uid: str,
    syntax: UID,
    number: int,
    scan: Scan,
    k: int,
    stored: npt.NDArray[np.int16] | npt.NDArray[np.uint16],
) -> None:
    ds = Dataset(series)  # a copy: the series' header stays free of the slice's attributes
    ds.InstanceNumber = str(number)
    position = scan.position_mm(k)
    ds.ImagePositionPatient = [_ds(v) for v in position]
    ds.SliceLocation = _ds(float(position[2]))
    ds.SliceThickness = _ds(float(scan.thickness_mm[k]))
    _save(ds, path, sop_uid, syntax, stored)


def _save(
    dataset: Dataset, path: Path, sop_uid: str, syntax: UID, stored: npt.NDArray[np.int16] | npt.NDArray[np.uint16]
) -> None:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax in COMPRESSED else syntax
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"HEMOFED_PHANTOM{GENERATOR_VERSION}"
    ds = FileDataset(str(path), dataset, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPInstanceUID = sop_uid
    ds.PixelData = stored.astype("<u2" if stored.dtype == np.uint16 else "<i2").tobytes()
    ds["PixelData"].VR = "OW"  # more than 8 bits allocated (PS3.5 section 8.1.2)
    if syntax in COMPRESSED:
        # The UID is ours, derived from the seed: a compressed copy must not get a random one.
        ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)


def _ds(value: float) -> str:
    """Formats a decimal string of at most 16 characters (PS3.5 section 6.2, VR DS)."""
    # + 0.0 turns -0.0 into 0.0.
    return f"{value + 0.0:.6f}".rstrip("0").rstrip(".")
