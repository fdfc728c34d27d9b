"""READY is a promise about every slice: all came, all can be decoded, all form one volume."""

import gc
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import RLELossless

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import read_volume
from tests.site_client.ingest.conftest import Clock, Scanner
from tests.site_client.ingest.test_ingest_catalog import label


def untold(dataset: Dataset, index: int) -> None:
    """Neither thickness nor number: as in RSNA's files."""
    del dataset.SliceThickness
    del dataset.InstanceNumber


@pytest.mark.parametrize(
    ("lost", "slices", "step_mm", "tags", "codes"),
    [
        ({12, 14}, 28, 5.0, {}, {"Q_GAP"}),  # in pairs around one that came
        ({6, 8, 10, 12, 14}, 28, 5.0, {}, {"Q_GAP"}),
        (set(range(1, 48, 2)), 48, 3.0, {"SliceThickness": "3"}, {"Q_GAP"}),  # every second one
        (set(range(1, 48, 2)), 48, 3.0, {"SliceThickness": None}, {"Q_GAP"}),
        ({26, 27}, 28, 5.0, {"NumberOfSeriesRelatedInstances": "28"}, {"Q_INCOMPLETE"}),
        ({0}, 28, 5.0, {"NumberOfSeriesRelatedInstances": "28"}, {"Q_INCOMPLETE"}),
        (set(range(1, 48, 2)), 48, 2.5, {"SliceThickness": "5"}, set()),  # slabs still touch: nothing was left out
        (set(), 28, 5.0, {"NumberOfSeriesRelatedInstances": "28"}, set()),
        (set(), 28, 5.0, {"SliceThickness": "1"}, set()),  # slices apart throughout: so it was taken
    ],
)
def test_slices_that_are_missing_hold_the_series_back_wherever_they_are(
    scanner: Scanner,
    catalog: Catalog,
    lost: set[int],
    slices: int,
    step_mm: float,
    tags: dict[str, object],
    codes: set[str],
) -> None:
    paths = scanner.series(slices=slices, step_mm=step_mm, tags=tags)
    for index in lost:
        paths[index].unlink()
    report = catalog.scan(scanner.root)
    assert (set(report.series), report.studies_ready) == (codes, not codes)


def with_directory(scanner: Scanner, folder: Path) -> Path:
    """The scanner's images as a medium with a DICOMDIR that lists them; the paths of its images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom about elements that it makes up, and its own folder that it forgets
        files = FileSet()
        for path in scanner.root.rglob("I*"):
            files.add(path)
        files.write(folder)
        del files
        gc.collect()
    return folder


def test_a_dicomdir_says_which_images_should_have_come_and_is_believed_as_long_as_it_is_there(
    scanner: Scanner, catalog: Catalog, tmp_path: Path
) -> None:
    scanner.series(slices=30, edit=of_a_medium)
    folder = with_directory(scanner, tmp_path / "medium")
    report = catalog.scan(folder)
    assert (report.studies_ready, report.files) == (1, {"S_DIRECTORY": 1})
    images = [path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR"]
    top = max(images, key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    data = top.read_bytes()
    top.unlink()
    assert catalog.scan(folder).series == {"Q_INCOMPLETE": 1}
    top.write_bytes(data)
    assert catalog.scan(folder).studies_ready == 1
    top.unlink()
    (folder / "DICOMDIR").unlink()
    assert catalog.scan(folder).studies_ready == 1


def of_a_medium(dataset: Dataset, index: int) -> None:
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20300101", "120000", "1", "A1"
    dataset.SeriesNumber = "1"


def test_a_damaged_dicomdir_lists_nothing_and_refuses_nothing(
    scanner: Scanner, catalog: Catalog, tmp_path: Path
) -> None:
    scanner.series(slices=30, edit=of_a_medium)
    folder = with_directory(scanner, tmp_path / "medium")
    sound = (folder / "DICOMDIR").read_bytes()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        data = bytearray(sound)
        for place in rng.integers(400, len(data), 30):
            data[place] = int(rng.integers(256))
        (folder / "DICOMDIR").write_bytes(bytes(data[: rng.integers(400, len(data))]))
        assert catalog.scan(folder).series.keys() <= {"Q_INCOMPLETE"}


def test_lost_pairs_are_seen_without_thickness_and_numbers(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series(slices=28, edit=untold)
    for index in (12, 14):
        paths[index].unlink()
    assert catalog.scan(scanner.root).series == {"Q_GAP": 1}


def test_numbers_that_another_stack_of_the_series_has_are_not_missing(scanner: Scanner, catalog: Catalog) -> None:
    def two_kernels(dataset: Dataset, index: int) -> None:
        dataset.SliceThickness = "3"
        dataset.ConvolutionKernel = "BONE" if index % 2 else "STANDARD"

    scanner.series(slices=60, positions=np.repeat(np.arange(30) * 4.5, 2), edit=two_kernels)
    assert catalog.scan(scanner.root).studies_ready == 1


def test_files_with_old_times_wait_for_a_second_scan_as_all_do(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(), clock)
    paths = scanner.series(slices=28)
    rest = {path: path.read_bytes() for path in paths[22:]}
    for path in rest:
        path.unlink()

    def age() -> None:
        for path in scanner.root.rglob("I*"):
            os.utime(path, (1_577_836_800, 1_577_836_800))

    age()
    assert catalog.scan(scanner.root).series_waiting == 1
    clock.advance(59)
    for path, data in rest.items():
        path.write_bytes(data)
    age()
    assert catalog.scan(scanner.root).series_waiting == 1
    clock.advance(61)
    report = catalog.scan(scanner.root)
    assert (report.series_waiting, report.studies_ready) == (0, 1)
    assert next(summary.slices for summary in catalog.series()) == 28
    catalog.close()


def rewritten(path: Path, change: Callable[[bytearray], object]) -> None:
    """Other bytes behind the same size and time: what a copying program does that was told to keep times."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_other_bytes_behind_the_same_size_and_time_are_another_series(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series()
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    before = catalog.dataset()
    rewritten(paths[3], lambda data: data.__setitem__(-2, data[-2] ^ 1))
    assert catalog.scan(scanner.root).files_read == 1
    after = catalog.dataset()
    assert before.hash != after.hash
    read_volume(after.studies[0].series)


def spoil_stream(path: Path) -> None:
    dataset = dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"\xe0\x7f\x10\x00OB") + 92
    data[start:-8] = b"\xff" * (len(data) - 8 - start)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("index", range(0, 24, 3))
def test_a_slice_that_cannot_be_decoded_condemns_its_series_wherever_it_is(
    scanner: Scanner, catalog: Catalog, index: int
) -> None:
    spoil_stream(scanner.series()[index])
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (0, {"Q_DECODE": 1})


def test_the_second_best_series_takes_the_place_of_one_that_cannot_be_decoded(
    scanner: Scanner, catalog: Catalog
) -> None:
    best = scanner.series(number=1)
    scanner.series(number=2, tags={"ConvolutionKernel": "BONE"})
    spoil_stream(best[3])
    label(scanner.root, "1.2.3")
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {"Q_DECODE": 1})
    (study,) = catalog.dataset().studies
    assert read_volume(study.series).hu.shape == (24, 96, 96)


def test_a_slice_with_another_intercept_is_sound_only_if_the_tissue_goes_on_through_it(
    scanner: Scanner, catalog: Catalog, make_head: Callable[..., np.ndarray]
) -> None:
    def stored_otherwise(dataset: Dataset, index: int) -> None:
        if index == 3:  # both the values and the intercept
            values = np.frombuffer(dataset.PixelData, "<i2") - 1024
            dataset.PixelData, dataset.RescaleIntercept = values.astype("<i2").tobytes(), "0"

    def intercept_lost(dataset: Dataset, index: int) -> None:
        if index == 3:
            dataset.RescaleIntercept = "0"

    scanner.series("1.2.3", edit=stored_otherwise)
    scanner.series("1.2.4", edit=intercept_lost)
    label(scanner.root, "1.2.3", "1.2.4")
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {"Q_HU_RANGE": 1})
    (study,) = catalog.dataset().studies
    assert np.array_equal(read_volume(study.series).hu, np.maximum(make_head(24), -1024))
