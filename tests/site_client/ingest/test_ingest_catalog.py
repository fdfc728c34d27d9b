"""The catalog over real files: what is ready, what is not and why, what a second scan costs, what a dataset is."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from federation.labels import LABELS
from pydicom import dcmread
from pydicom.dataset import Dataset

from site_client.cli import main
from site_client.errors import DatasetGone, IngestError, SeriesUnreadable
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import read_volume
from tests.site_client.ingest.conftest import Clock, Scanner

HEADER = "StudyInstanceUID," + ",".join(LABELS) + "\n"


def label(root: Path, *studies: str, any_: int = 0) -> Path:
    path = root / "labels.csv"
    path.write_text(HEADER + "".join(f"{study},0,{any_},0,0,0,{any_}\n" for study in studies))
    return path


def test_a_labelled_head_becomes_a_study_to_train_on(scanner: Scanner, catalog: Catalog, secret: SiteSecret) -> None:
    paths = scanner.series()
    label(scanner.root, "1.2.3", any_=1)
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series, report.files) == (1, {}, {"S_JUNK": 1})
    (study,) = catalog.dataset().studies
    assert (study.study_key, study.patient_key) == (secret.study("1.2.3"), secret.patient("P1"))
    assert list(study.series.files) == paths
    assert study.study_labels.tolist() == [0, 1, 0, 0, 0, 1]
    assert study.slice_labels.shape == (24, 6)
    assert (study.slice_labels == -1).all()


def test_the_volume_is_what_the_scanner_saw(
    scanner: Scanner, catalog: Catalog, make_head: Callable[..., np.ndarray]
) -> None:
    scanner.series(tags={"PixelPaddingValue": -2000})
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    volume = read_volume(catalog.dataset().studies[0].series)
    assert np.array_equal(volume.hu, np.maximum(make_head(24), -1024))
    assert volume.hu.dtype == np.int16
    assert volume.spacing_mm == (2.4, 2.4)
    assert volume.positions_mm.tolist() == [5.0 * place for place in range(24)]
    assert volume.thickness_mm.tolist() == [5.0] * 24


def test_slice_labels_follow_their_image_into_its_place(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series()
    rows = [
        f"ID_1.2.3.1.{k + 1}_{name},{int(k == 20 and name in ('subdural', 'any'))}"
        for k in range(24)
        for name in LABELS
    ]
    (scanner.root / "slices.csv").write_text("ID,Label\n" + "\n".join(reversed(rows)))
    report = catalog.scan(scanner.root)
    (study,) = catalog.dataset().studies
    assert study.slice_labels[20].tolist() == [0, 0, 0, 0, 1, 1]
    assert study.slice_labels.sum() == 2
    assert study.study_labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert (report.labels.slices_labelled, report.labels.labels_without_images) == (24, 0)


def test_a_study_without_labels_or_with_contradicting_ones_is_counted_and_left_out(
    scanner: Scanner, catalog: Catalog
) -> None:
    scanner.series("1.2.3")
    scanner.series("1.2.4")
    scanner.series("1.2.5")
    label(scanner.root, "1.2.4", "1.2.5", "1.2.6")
    (scanner.root / "slices.csv").write_text("ID,Label\nID_1.2.5.1.4_any,1\n")
    report = catalog.scan(scanner.root)
    counts = report.labels
    assert (counts.studies_labelled, counts.studies_unlabelled, counts.studies_in_conflict) == (1, 1, 1)
    assert counts.labels_without_images == 1
    assert len(catalog.dataset().studies) == 1


def test_a_scan_of_an_unchanged_export_reads_nothing_and_changes_nothing(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series()
    label(scanner.root, "1.2.3")
    first = catalog.scan(scanner.root)
    before = catalog.dataset()
    second = catalog.scan(scanner.root)
    assert (first.files_read, second.files_read) == (24, 0)
    assert replace(second, files_read=24, seconds=first.seconds) == first
    assert catalog.dataset().hash == before.hash


def test_the_export_is_left_exactly_as_it_was(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series()
    label(scanner.root, "1.2.3")
    state = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in scanner.root.rglob("*")}
    catalog.scan(scanner.root)
    read_volume(catalog.dataset().studies[0].series)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in scanner.root.rglob("*")} == state


def test_a_later_slice_reopens_the_series_and_a_round_keeps_what_it_was_pinned_to(
    scanner: Scanner, catalog: Catalog
) -> None:
    paths = scanner.series(slices=25)
    last = paths[-1].read_bytes()
    paths[-1].unlink()
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    pinned = catalog.dataset()
    paths[-1].write_bytes(last)
    assert catalog.scan(scanner.root).files_read == 1
    grown = catalog.dataset()
    assert (len(pinned.studies[0].series.files), len(grown.studies[0].series.files)) == (24, 25)
    assert pinned.hash != grown.hash
    again = catalog.dataset(pinned.hash)
    assert again.studies[0].series == pinned.studies[0].series
    assert np.array_equal(again.studies[0].slice_labels, pinned.studies[0].slice_labels)
    assert read_volume(again.studies[0].series).hu.shape == (24, 96, 96)


def test_a_dataset_that_is_no_longer_kept_is_an_error(scanner: Scanner, catalog: Catalog, clock: Clock) -> None:
    scanner.series()
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    first = catalog.dataset().hash
    for k in range(8):
        clock.advance(1)
        rows = "".join(f"ID_1.2.3.1.{place + 1}_any,0\n" for place in range(k + 1))
        (scanner.root / "slices.csv").write_text("ID,Label\n" + rows)
        catalog.scan(scanner.root)
        assert catalog.dataset(catalog.dataset().hash).hash != first
    with pytest.raises(DatasetGone):
        catalog.dataset(first)


def test_a_series_whose_bytes_changed_after_the_scan_is_refused(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series()
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    series = catalog.dataset().studies[0].series
    data = bytearray(paths[3].read_bytes())
    data[-2] ^= 1
    paths[3].write_bytes(bytes(data))
    with pytest.raises(SeriesUnreadable) as refused:
        read_volume(series)
    assert str(scanner.root) not in str(refused.value)
    paths[3].unlink()
    with pytest.raises(SeriesUnreadable):
        read_volume(series)


def test_a_removed_series_leaves_the_dataset(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series()
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    for path in paths:
        path.unlink()
    assert catalog.scan(scanner.root).studies_ready == 0
    assert catalog.dataset().studies == ()


def test_an_export_that_is_not_mounted_empties_nothing(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series()
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    away = scanner.root.rename(scanner.root.with_name("unmounted"))
    with pytest.raises(IngestError):
        catalog.scan(scanner.root)
    away.rename(scanner.root)
    assert len(catalog.dataset().studies) == 1


def test_a_series_still_arriving_waits_until_its_files_are_quiet(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    clock.now = clock.now.replace(year=2020)  # before the files' own times: only two looks can tell
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(), clock)
    scanner.series()
    assert (catalog.scan(scanner.root).series_waiting, catalog.scan(scanner.root).studies_ready) == (1, 0)
    clock.advance(61)
    report = catalog.scan(scanner.root)
    assert (report.series_waiting, report.studies_ready, report.files_read) == (0, 1, 0)
    catalog.close()


def test_a_hole_is_waited_for_and_then_put_aside(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    clock.now = clock.now.replace(year=2020)
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(), clock)
    paths = scanner.series()
    missing = paths[9].read_bytes()
    paths[9].unlink()
    catalog.scan(scanner.root)
    clock.advance(3600)
    assert catalog.scan(scanner.root).series_waiting == 1
    clock.advance(3700)
    assert catalog.scan(scanner.root).series == {"Q_GAP": 1}
    paths[9].write_bytes(missing)
    catalog.scan(scanner.root)
    clock.advance(61)
    assert catalog.scan(scanner.root).studies_ready == 1
    catalog.close()


def test_one_series_of_a_study_is_chosen_by_its_score(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series(number=1, tags={"ConvolutionKernel": "BONE"})
    scanner.series(number=2, tags={"ConvolutionKernel": "STANDARD"})
    scanner.series(number=3, slices=90, step_mm=1.25, tags={"SliceThickness": "1.25"})
    scanner.series(number=4, slices=2, tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    label(scanner.root, "1.2.3")
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series_ready) == (1, 3)
    assert report.series["R_LOWER_SCORE"] == 2
    assert report.series["R_LOCALIZER"] == 1
    (study,) = catalog.dataset().studies
    assert {dcmread(path).SeriesInstanceUID for path in study.series.files} == {"1.2.3.2"}
    best = next(summary for summary in catalog.series() if summary.chosen)
    assert best.sheet[:2] == (("kernel", "soft", 4000), ("thickness_mm", "5.00", 1000))
    assert best.score == sum(points for _, _, points in best.sheet)


def test_copies_are_dropped_and_two_images_under_one_uid_condemn_the_series(scanner: Scanner, catalog: Catalog) -> None:
    paths = scanner.series("1.2.3")
    (scanner.root / "copy").write_bytes(paths[4].read_bytes())
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.files) == (1, {"S_DUPLICATE": 1})
    other = dcmread(paths[5])
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(scanner.root / "conflict")
    assert catalog.scan(scanner.root).series == {"Q_DUP_CONFLICT": 1}


def _truncate(paths: list[Path]) -> None:
    paths[12].write_bytes(paths[12].read_bytes()[:-1])


def _spoil_first(paths: list[Path]) -> None:
    dataset = dcmread(paths[0])
    dataset.compress("1.2.840.10008.1.2.4.90", generate_instance_uid=False)
    data = bytearray(dataset.PixelData)
    data[40:400] = bytes(360)
    dataset.PixelData = bytes(data)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(paths[0])


@pytest.mark.parametrize(("spoil", "code"), [(_truncate, "Q_TRUNCATED"), (_spoil_first, "Q_DECODE")])
def test_one_broken_slice_puts_its_series_aside(
    scanner: Scanner, catalog: Catalog, spoil: Callable[..., object], code: str
) -> None:
    spoil(scanner.series("1.2.3"))
    scanner.series("1.2.4")
    report = catalog.scan(scanner.root)
    assert (report.series, report.studies_ready) == ({code: 1}, 1)


def wrap(dataset: Dataset, index: int) -> None:
    hu = np.frombuffer(dataset.PixelData, "<i2").astype(np.int32) - 1024
    dataset.PixelData = (np.maximum(hu, -1000) % 4096).astype("<u2").tobytes()
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation, dataset.RescaleIntercept = 12, 11, 0, "0"


def test_wrapped_twelve_bit_values_are_unwrapped_and_said_so(
    scanner: Scanner, catalog: Catalog, make_head: Callable[..., np.ndarray]
) -> None:
    scanner.series(edit=wrap)
    label(scanner.root, "1.2.3")
    assert catalog.scan(scanner.root).warnings == {"W_WRAPPED": 1}
    volume = read_volume(catalog.dataset().studies[0].series)
    assert np.array_equal(volume.hu, np.maximum(make_head(24), -1000))


def test_signed_values_with_intercept_zero_are_left_alone(
    scanner: Scanner, catalog: Catalog, make_head: Callable[..., np.ndarray]
) -> None:
    def signed(dataset: Dataset, index: int) -> None:
        hu = np.frombuffer(dataset.PixelData, "<i2").astype(np.int32) - 1024
        hu[:96] = -1500
        dataset.PixelData = hu.astype("<i2").tobytes()
        dataset.RescaleIntercept = "0"
        dataset.PixelPaddingValue = -1500

    scanner.series(edit=signed)
    label(scanner.root, "1.2.3")
    assert catalog.scan(scanner.root).warnings == {}
    hu = read_volume(catalog.dataset().studies[0].series).hu
    assert (hu[:, 0] == -1024).all()
    assert np.array_equal(hu[:, 1:], np.maximum(make_head(24), -1024)[:, 1:])


def test_slices_without_a_stated_thickness_take_it_from_their_distances(scanner: Scanner, catalog: Catalog) -> None:
    def nameless(dataset: Dataset, index: int) -> None:
        del dataset.SliceThickness

    scanner.series(edit=nameless)
    label(scanner.root, "1.2.3")
    assert catalog.scan(scanner.root).warnings == {"W_NO_THICKNESS": 1}
    assert read_volume(catalog.dataset().studies[0].series).thickness_mm.tolist() == [5.0] * 24


def test_studies_of_one_patient_share_a_key_and_nameless_ones_share_none(scanner: Scanner, catalog: Catalog) -> None:
    for study, patient in (("1.1", "P1"), ("1.2", "P1"), ("1.3", ""), ("1.4", "")):
        scanner.series(study, patient=patient)
    label(scanner.root, "1.1", "1.2", "1.3", "1.4")
    catalog.scan(scanner.root)
    keys = [study.patient_key for study in catalog.dataset().studies]
    assert (len(keys), len(set(keys))) == (4, 3)


def test_the_catalog_holds_no_name_uid_or_path_and_is_the_owners_alone(
    scanner: Scanner, catalog: Catalog, tmp_path: Path
) -> None:
    scanner.series("1.2.826.0.1.4711", patient="CANARYPATIENT", tags={"ConvolutionKernel": "CANARYKERNEL"})
    (scanner.root / "CANARYFOLDER").mkdir()
    scanner.write(dcmread(next(scanner.root.rglob("I*"))), name="CANARYFILE")
    label(scanner.root, "1.2.826.0.1.4711")
    report = catalog.scan(scanner.root)
    assert catalog.dataset().studies
    catalog.close()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    for canary in ("CANARY", "1.2.826.0.1.4711", str(tmp_path), "I007919"):
        for form in (canary.encode(), canary.encode("utf-16-le"), canary.encode().hex().encode()):
            assert form not in stored
        assert canary not in repr(report) + report.as_text()
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_secret_or_other_rules_never_reuse_what_was_found(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    scanner.series()
    label(scanner.root, "1.2.3")
    results = {}
    for name, key, rules in (
        ("first", secret, Rules(settle_s=0)),
        ("strict", secret, Rules(settle_s=0, slices_min=30)),
        ("rotated", SiteSecret(bytes(32)), Rules(settle_s=0)),
    ):
        catalog = Catalog.open(tmp_path / "c.sqlite", key, rules, clock)
        report = catalog.scan(scanner.root)
        results[name] = (report.files_read, report.series, {s.study_key for s in catalog.dataset().studies})
        catalog.close()
    assert results["first"][:2] == (24, {})
    assert results["strict"] == (0, {"R_TOO_FEW": 1}, set())
    assert results["rotated"][0] == 24
    assert results["rotated"][2].isdisjoint(results["first"][2])
    assert len(results["rotated"][2]) == 1


def test_a_file_that_is_no_catalog_is_an_error_with_a_way_out(tmp_path: Path, secret: SiteSecret) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(IngestError, match="remove it"):
        Catalog.open(tmp_path / "c.sqlite", secret)


def test_the_command_counts_and_lists_without_a_name(scanner: Scanner, tmp_path: Path) -> None:
    scanner.series()
    scanner.series(number=2, tags={"ContrastBolusAgent": "CANARYAGENT"})
    label(scanner.root, "1.2.3")
    config = tmp_path / "site.toml"
    config.write_text('name = "mercy"\n[folders]\nstate = "st"\nexport = "export"\n[ingest]\nsettle_s = 0\n')
    result = CliRunner().invoke(main, ["catalog", "--json", "--series", "--config", str(config)])
    assert result.exit_code == 0, result.output
    table = json.loads(result.output)
    assert (table["studies_ready"], table["series"]) == (1, {"R_CONTRAST": 1})
    assert [line["state"] for line in table["listed"]].count("READY") == 1
    page = CliRunner().invoke(main, ["catalog", "--series", "--config", str(config)]).output
    assert "contrast agent declared" in page
    for canary in ("CANARY", "1.2.3", str(scanner.root)):
        assert canary not in page + result.output
