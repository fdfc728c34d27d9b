"""A small CT scanner for these tests: heads of a few ellipses, written by pydicom, one attribute wrong at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules

SIZE, PIXEL_MM = 96, 2.4
Edit = Callable[[Dataset, int], None]


def as_it_is(dataset: Dataset, index: int) -> None:
    """Edits nothing."""


def head(slices: int, seed: int = 1) -> np.ndarray:
    """HU int16[T, 96, 96]: skin, skull, brain around 32 HU, air around -1000."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    radius = np.hypot(x / 75 * PIXEL_MM, y / 92 * PIXEL_MM)
    hu = np.select([radius < 0.82, radius < 0.93, radius < 1.0], [32.0, 1000.0, 40.0], -1000.0)
    return np.rint(hu + rng.normal(0, 4, (slices, SIZE, SIZE))).astype(np.int16)


@dataclass
class Scanner:
    """Writes series below `root`. Every file gets a name that means nothing and falls in no useful order."""

    root: Path
    count: int = 0

    def series(
        self,
        study: str = "1.2.3",
        number: int = 1,
        *,
        patient: str = "P1",
        hu: np.ndarray | None = None,
        slices: int = 24,
        step_mm: float = 5.0,
        positions: np.ndarray | None = None,
        tags: Mapping[str, object] = MappingProxyType({}),
        edit: Edit = as_it_is,
    ) -> list[Path]:
        """Paths caudal to cranial."""
        if hu is None and positions is None and not tags and edit is as_it_is:
            return [self._place(data) for data in _plain_series(study, number, patient, slices, step_mm)]
        volume = head(slices) if hu is None else hu
        z = np.arange(len(volume)) * step_mm if positions is None else positions
        paths = []
        for index, (image, position) in enumerate(zip(volume, z, strict=True)):
            dataset = _dataset(study, number, patient, index, float(position), image)
            for name, value in tags.items():
                setattr(dataset, name, value)
            edit(dataset, index)
            paths.append(self.write(dataset))
        return paths

    def write(self, dataset: Dataset, name: str | None = None) -> Path:
        """One file."""
        return self._place(_encoded(dataset), name)

    def _place(self, data: bytes, name: str | None = None) -> Path:
        self.count += 1
        path = self.root / f"D{self.count % 3}" / (name or f"I{(self.count * 7919) % 100003:06d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def _dataset(study: str, number: int, patient: str, index: int, z: float, image: np.ndarray) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f"{study}.{number}"
    ds.SOPInstanceUID = f"{study}.{number}.{index + 1}"
    ds.PatientID, ds.PatientName = patient, "CANARYNAME^ANNA"
    ds.ConvolutionKernel, ds.SliceThickness = "STANDARD", "5"
    ds.AcquisitionNumber, ds.InstanceNumber = "1", str(index + 1)
    ds.FrameOfReferenceUID = f"{study}.99"
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.ImagePositionPatient = ["-115.2", "-115.2", f"{z:.3f}"]
    ds.PixelSpacing = [str(PIXEL_MM), str(PIXEL_MM)]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = SIZE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
    ds.PixelData = (image.astype(np.int32) + 1024).astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _encoded(dataset: Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@lru_cache(maxsize=64)
def _plain_series(study: str, number: int, patient: str, slices: int, step_mm: float) -> tuple[bytes, ...]:
    """The files of a series without any fault. Many tests begin with the same one, and pydicom takes 2 ms a file."""
    return tuple(
        _encoded(_dataset(study, number, patient, index, index * step_mm, image))
        for index, image in enumerate(head(slices))
    )


@dataclass
class Clock:
    """Stands still until `advance`."""

    now: datetime = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def secret() -> SiteSecret:
    return SiteSecret(bytes(range(32)))


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    (tmp_path / "export").mkdir()
    return Scanner(tmp_path / "export")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(tmp_path: Path, secret: SiteSecret, clock: Clock) -> Iterator[Catalog]:
    opened = Catalog.open(tmp_path / "state" / "catalog.sqlite", secret, Rules(settle_s=0), clock)
    yield opened
    opened.close()


@pytest.fixture
def make_head() -> Callable[..., np.ndarray]:
    return head
