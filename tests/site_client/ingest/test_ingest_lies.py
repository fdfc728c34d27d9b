"""Lies that an archive tells by accident: what its headers say is sound for each file and false for all of them."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.file_pass import FilePass
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from tests.site_client.ingest.conftest import Clock, Scanner, head
from tests.site_client.ingest.enhanced import enhanced, item
from tests.site_client.ingest.test_ingest_catalog import label


def numbered(dataset: Dataset, index: int) -> None:
    """An anonymizer that counts the images of every series from one."""
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"7.7.{index + 1}"


@pytest.mark.parametrize(("study", "patient"), [("1.2.4", "P2"), ("1.2.4", "P1"), ("1.2.3", "P1")])
def test_an_image_that_two_series_claim_gives_its_label_to_neither(
    scanner: Scanner, catalog: Catalog, study: str, patient: str
) -> None:
    scanner.series("1.2.3", 1, edit=numbered)
    scanner.series("1.2.9", 1)
    label(scanner.root, "1.2.3", "1.2.4", "1.2.9")
    assert catalog.scan(scanner.root).studies_ready == 2
    rival = scanner.series(study, 2, patient=patient, hu=head(24, 5), step_mm=5.2, edit=numbered)
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {"Q_UID_CLASH": 2})
    for path in rival:
        path.unlink()
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (2, {})


def test_a_study_that_was_sent_again_under_another_uid_is_not_trained_on_twice(
    scanner: Scanner, catalog: Catalog
) -> None:
    def moved(dataset: Dataset, _: int) -> None:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.77", "1.2.77.1"

    scanner.series("1.2.3")
    scanner.series("1.2.3", edit=moved)
    assert catalog.scan(scanner.root).series == {"Q_UID_CLASH": 2}


def test_a_series_and_its_conversion_hold_one_image_and_no_clash(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series("1.2.3")

    def another_series(dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = "1.2.3.2"

    enhanced(paths, scanner.root / "converted", sop_class="1.2.840.10008.5.1.4.1.1.2.2", edit=another_series)
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {"R_LOWER_SCORE": 1})


def test_a_second_image_of_a_uid_is_a_copy_only_if_it_has_the_same_hounsfield_units(
    scanner: Scanner, catalog: Catalog
) -> None:
    scanner.series("1.2.3", 1)
    scanner.series("1.2.3", 1, tags={"RescaleIntercept": "-1012"})
    scanner.series("1.2.4", 1)
    scanner.series("1.2.4", 1, edit=_stored_unsigned)
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {"Q_DUP_CONFLICT": 1})


def _stored_unsigned(dataset: Dataset, _: int) -> None:
    """Another gateway's copy: other stored values and another intercept, and the same image."""
    stored = np.frombuffer(dataset.PixelData, "<i2").astype(np.int32) + 500
    dataset.PixelData, dataset.RescaleIntercept = stored.astype("<i2").tobytes(), "-1524"


SCALES = (("1", "-964"), ("1", "-1064"), ("1.1", "-1024"), ("0.9", "-1024"), ("1", "-924"), ("2", "-1024"))


@pytest.mark.parametrize(("slope", "intercept"), SCALES)
@pytest.mark.parametrize("place", [0, 13, 23])
def test_one_slice_on_another_scale_is_noticed_wherever_it_lies(
    scanner: Scanner, catalog: Catalog, slope: str, intercept: str, place: int
) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        if index == place:
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept

    scanner.series("1.2.3", edit=edit)
    assert catalog.scan(scanner.root).series == {"Q_HU_RANGE": 1}


def test_one_frame_on_another_scale_is_noticed_too(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series("1.2.3")

    def edit(dataset: Dataset) -> None:
        for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            scale = item(RescaleSlope="1", RescaleIntercept="-940" if number == 12 else "-1024", RescaleType="HU")
            group.PixelValueTransformationSequence = Sequence([scale])

    enhanced(paths, scanner.root / "E", edit=edit)
    for path in paths:
        path.unlink()
    assert catalog.scan(scanner.root).series == {"Q_HU_RANGE": 1}


def test_slices_on_scales_of_their_own_that_agree_in_hounsfield_units_are_one_volume(
    scanner: Scanner, catalog: Catalog
) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        hu = np.frombuffer(dataset.PixelData, "<i2").astype(np.float64) - 1024
        slope, intercept = 0.5 + index / 50, -1024.0 - 10 * index
        dataset.PixelData = np.rint((hu - intercept) / slope).astype("<i2").tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.4f}", f"{intercept:.1f}"

    scanner.series("1.2.3", edit=edit)
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {})


def _other_frame(dataset: Dataset, is_other: bool) -> None:
    dataset.FrameOfReferenceUID = "5.5.1" if is_other else "5.5.2"


def _other_kernel(dataset: Dataset, is_other: bool) -> None:
    dataset.ConvolutionKernel = "H31s" if is_other else "H30s"


def _other_tilt(dataset: Dataset, is_other: bool) -> None:
    if is_other:
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "0.9998", "0.02"]


def _other_spacing(dataset: Dataset, is_other: bool) -> None:
    if is_other:
        dataset.PixelSpacing = ["2.41", "2.41"]


@pytest.mark.parametrize("edit", [_other_frame, _other_kernel, _other_tilt, _other_spacing])
@pytest.mark.parametrize("is_other", [lambda index: index >= 21, lambda index: index % 2 == 1])
def test_a_stack_that_another_one_goes_on_from_is_a_part_of_a_head_and_held_back(
    scanner: Scanner, catalog: Catalog, edit: Callable[[Dataset, bool], None], is_other: Callable[[int], bool]
) -> None:
    scanner.series("1.2.3", slices=42, step_mm=5.0, edit=lambda dataset, index: edit(dataset, is_other(index)))
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series.get("Q_SPLIT")) == (0, 2)
    assert "FAIL Q_SPLIT" in "\n".join(catalog.explain("1.2.3"))


def test_two_reconstructions_in_one_series_lack_nothing_of_each_other(scanner: Scanner, catalog: Catalog) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = (
            "9.9",
            f"9.9.{dataset.ConvolutionKernel == 'BONE':d}.{index}",
        )
        dataset.FrameOfReferenceUID = "9.8"

    scanner.series("1.2.3", 1, edit=edit)
    # Another kernel, thinner, and far beyond the head.
    thin = {"ConvolutionKernel": "BONE", "SliceThickness": "2"}
    scanner.series("1.2.3", 2, slices=90, step_mm=2.0, tags=thin, edit=edit)
    report = catalog.scan(scanner.root)
    assert report.studies_ready == 1
    assert "Q_SPLIT" not in report.series


def test_different_images_of_one_position_are_no_copies_of_each_other(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series("1.2.3", positions=np.repeat(np.arange(12) * 10.0, 2))
    scanner.series("1.2.4")
    same = scanner.series("1.2.5")
    for number, path in enumerate(same):
        again = Scanner(scanner.root / "again")
        dataset = dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"6.6.{number}"
        again.write(dataset, f"A{number}")
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (2, {"Q_SAME_POSITION": 1})


@pytest.mark.parametrize("set_back_s", [86_400.0, 366 * 86_400.0])
def test_a_clock_that_is_set_back_keeps_no_series_waiting(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock, set_back_s: float
) -> None:
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(), clock)
    scanner.series("1.2.3")
    catalog.scan(scanner.root)
    clock.advance(-set_back_s)
    assert catalog.scan(scanner.root).studies_ready == 0
    clock.advance(61)
    assert catalog.scan(scanner.root).studies_ready == 1
    catalog.close()


def test_files_that_are_replaced_between_their_headers_and_their_pixels_are_not_ready(
    scanner: Scanner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = scanner.series("1.2.3")
    others = Scanner(scanner.root.parent / "others")
    others.root.mkdir()
    replacements = others.series("1.2.3", patient="P2", hu=head(24, 9))
    headers_read = FilePass.run

    def then_replaced(self: FilePass) -> None:
        headers_read(self)
        for path, replacement in zip(paths, replacements, strict=True):
            path.write_bytes(replacement.read_bytes())

    monkeypatch.setattr(FilePass, "run", then_replaced)
    assert catalog.scan(scanner.root).studies_ready == 0
    monkeypatch.undo()
    assert catalog.scan(scanner.root).studies_ready == 1
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    assert catalog.dataset().studies[0].patient_key == SiteSecret(bytes(range(32))).patient("P2")


def test_pixels_of_more_frames_than_the_header_says_are_called_that(scanner: Scanner, catalog: Catalog) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        dataset.PixelData = dataset.PixelData * 2

    scanner.series("1.2.3", edit=edit)
    assert catalog.scan(scanner.root).series == {"Q_DECODE": 1}


def test_a_dicomdir_that_lists_other_images_of_a_series_holds_it_back(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series("1.2.3")
    media = scanner.root.parent / "media"
    media.mkdir()
    for number, path in enumerate(paths):
        (media / f"I{number:05d}").write_bytes(path.read_bytes())
        path.unlink()
    make = ["dcmmkdir", "--general-purpose", "+r", "+id", str(media), "+D", str(media / "DICOMDIR"), "-Nxc", "+I"]
    subprocess.run(make, check=True, capture_output=True)
    (scanner.root / "DICOMDIR").write_bytes((media / "DICOMDIR").read_bytes())

    def others(dataset: Dataset, index: int) -> None:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"6.6.{index + 1}"

    wrong = scanner.series("1.2.3", edit=others)
    assert catalog.scan(scanner.root).series == {"Q_INCOMPLETE": 1}
    assert "FAIL Q_INCOMPLETE     images: 24 (limit: 48 by" in "\n".join(catalog.explain("1.2.3"))
    for number, path in enumerate(wrong):
        path.write_bytes((media / f"I{number:05d}").read_bytes())
    assert catalog.scan(scanner.root).studies_ready == 1


def test_each_code_of_a_series_fails_a_filter_of_its_explanation(
    scanner: Scanner, catalog: Catalog, secret: SiteSecret
) -> None:
    def one_off(dataset: Dataset, index: int) -> None:
        if index == 13:
            dataset.RescaleIntercept = "-924"

    scanner.series("1.2.1", edit=one_off)
    scanner.series("1.2.2", 1, edit=numbered)
    scanner.series("1.2.3", 1, edit=numbered)
    scanner.series("1.2.4", positions=np.repeat(np.arange(12) * 10.0, 2))
    scanner.series("1.2.5", slices=42, edit=lambda dataset, index: _other_frame(dataset, index > 20))
    scanner.series("1.2.6", 1)
    scanner.series("1.2.6", 1, hu=head(24, 5))
    catalog.scan(scanner.root)
    for study in ("1.2.1", "1.2.2", "1.2.3", "1.2.4", "1.2.5", "1.2.6"):
        lines = catalog.explain(study)
        failed = {line.split()[1] for line in lines if line.split()[:1] == ["FAIL"]}
        codes = {
            reason
            for summary in catalog.series()
            if summary.study_key == secret.study(study)
            for reason in summary.reasons
        }
        assert failed == codes != set()


@pytest.mark.parametrize(
    "tool", [["dcmcjpeg"], ["gdcmconv", "--jpeg"], ["dcmcjpls"], ["gdcmconv", "--j2k"], ["dcmcrle"]], ids=" ".join
)
def test_a_compressed_image_whose_rest_is_zeros_is_not_ready(
    scanner: Scanner, catalog: Catalog, tmp_path: Path, tool: list[str]
) -> None:
    """A program that copies reserves the file first; the copy that breaks off has the length and the times."""
    paths = scanner.series("1.2.3", slices=12, step_mm=10.0, tags={"SliceThickness": "10"})
    for path in paths:
        subprocess.run([*tool, str(path), str(tmp_path / "packed")], check=True, capture_output=True)
        shutil.move(tmp_path / "packed", path)
    assert catalog.scan(scanner.root).studies_ready == 1
    dataset = dcmread(paths[6])
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    for whole in (0.95, 0.5):
        kept = stream[: int(len(stream) * whole)]
        dataset.PixelData = encapsulate([kept.ljust(len(stream), b"\0")])
        dataset.save_as(paths[6], enforce_file_format=True)
        report = catalog.scan(scanner.root)
        assert (report.files_read, report.studies_ready, report.series) == (1, 0, {"Q_DECODE": 1})


@pytest.mark.parametrize("word", ["original", "soft", "1.2.3.1", "study_key", ""])
def test_a_word_of_a_header_names_no_series(scanner: Scanner, catalog: Catalog, word: str) -> None:
    scanner.series("1.2.9")
    catalog.scan(scanner.root)
    named = [line for line in catalog.explain(word) if line.startswith("study ")]
    assert len(named) == (word == "")  # an empty word is the export itself
