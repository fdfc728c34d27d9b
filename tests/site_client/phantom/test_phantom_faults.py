"""Each injected fault on its own, and what the product's reader says to it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from site_client.errors import PhantomRefused
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.report import ScanReport
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import Volume, read_volume
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.faults import NO_FAULTS, Faults, Rates, draw_faults
from site_client.phantom.profiles import PROFILES
from site_client.phantom.streams import PhantomStreams
from site_client.phantom.study import Wishes

SECRET = SiteSecret(b"phantom-test-secret-0123456789ab")
WISHES = Wishes(size_px=128, thickness_mm=7.0, prevalence="balanced", difficulty=0.4)


def scanned(folder: Path, profile: str, **rates: float) -> tuple[ScanReport, list[Volume]]:
    """One study with the faults whose rate is 1, as the catalog takes in a complete export."""
    out = folder / "set"
    make_set(Order(profile, 1, 5, WISHES, faults=replace(NO_FAULTS, **rates)), out)
    catalog = Catalog.open(folder / "catalog.sqlite", SECRET, Rules(settle_s=0))
    report = catalog.scan(out / "dicom", [out / "labels_slices.csv", out / "labels_studies.csv"])
    volumes = [read_volume(study.series) for study in catalog.dataset().studies]
    catalog.close()
    return report, volumes


def test_a_lost_slice_puts_the_series_aside(tmp_path: Path) -> None:
    report, volumes = scanned(tmp_path, "S", missing=1.0)
    assert report.studies_ready == len(volumes) == 0
    assert report.series[Reason.Q_GAP.name] == 1
    labels = len((tmp_path / "set" / "labels_slices.csv").read_text().splitlines()) - 1
    assert labels == 6 * len(list((tmp_path / "set" / "dicom").rglob("*.dcm")))


def test_a_slice_sent_twice_is_used_once(tmp_path: Path) -> None:
    report, volumes = scanned(tmp_path, "S", duplicate=1.0)
    assert report.files == {Reason.S_DUPLICATE.name: 1}
    assert report.studies_ready == 1
    assert (np.diff(volumes[0].positions_mm) > 6).all()


@pytest.mark.parametrize("profile", ["T", "S"])
def test_a_localizer_beside_the_series_is_left_out(profile: str, tmp_path: Path) -> None:
    report, volumes = scanned(tmp_path, profile, localizer=1.0)
    assert report.studies_ready == len(volumes) == 1
    assert report.series[Reason.R_LOCALIZER.name] == 1
    assert (np.diff(volumes[0].positions_mm) > 6).all()


def test_of_two_reconstructions_the_soft_one_is_read(tmp_path: Path) -> None:
    report, volumes = scanned(tmp_path, "S", second_kernel=1.0)
    assert report.studies_ready == 1
    assert report.series == {Reason.R_LOWER_SCORE.name: 1}
    kernels = Counter(
        str(pydicom.dcmread(path).ConvolutionKernel) for path in (tmp_path / "set" / "dicom").rglob("*.dcm")
    )
    assert kernels == {"UB": len(volumes[0].hu), "BONE": len(volumes[0].hu)}
    _, clean = scanned(tmp_path / "clean", "S")
    np.testing.assert_array_equal(volumes[0].hu, clean[0].hu)


def test_a_file_cut_short_puts_the_series_aside(tmp_path: Path) -> None:
    report, volumes = scanned(tmp_path, "S", truncated=1.0)
    assert report.studies_ready == len(volumes) == 0
    assert report.series[Reason.Q_TRUNCATED.name] == 1


def test_wrapped_values_are_unwrapped_to_what_they_were(tmp_path: Path) -> None:
    report, volumes = scanned(tmp_path / "wrapped", "R", wrapped=1.0)
    _, clean = scanned(tmp_path / "clean", "R")
    assert report.warnings[Warn.W_WRAPPED.name] == 1
    # Nothing below air survives the wrap: that is where 12 bits end.
    np.testing.assert_array_equal(volumes[0].hu, np.maximum(clean[0].hu, -1000))


def drawn(rates: Rates, profile: str, count: int) -> list[Faults]:
    scanner = PROFILES[profile].scanner
    streams = (PhantomStreams.of(profile, 1, index) for index in range(count))
    return [draw_faults(study.generator("faults"), rates, scanner, 30) for study in streams]


def test_faults_come_at_their_rates_and_never_at_the_ends_of_a_series() -> None:
    studies = drawn(Rates(), "S", 4000)
    counts = Counter(name for faults in studies for name in faults.names)
    shares = {name: count / len(studies) for name, count in counts.items()}
    for name, rate in vars(Rates()).items():
        assert shares[name] == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / len(studies))), name
    places = [place for faults in studies for place in (faults.missing, faults.duplicate) if place is not None]
    assert all(3 <= place < 27 for place in places)


def test_the_mobile_scanner_wraps_more_often_and_signed_data_never_do() -> None:
    assert np.mean([faults.wrapped for faults in drawn(Rates(), "R", 2000)]) == pytest.approx(0.15, abs=0.03)
    assert not any(faults.wrapped for faults in drawn(Rates(wrapped=1.0), "T", 50))


def test_no_fault_comes_unasked_and_one_rate_moves_no_other_fault() -> None:
    assert {faults.names for faults in drawn(NO_FAULTS, "R", 200)} == {()}
    assert [faults.localizer for faults in drawn(Rates(), "S", 200)] == [
        faults.localizer for faults in drawn(Rates(missing=1.0, truncated=1.0), "S", 200)
    ]


def test_a_study_and_its_twin_have_the_same_faults(tmp_path: Path) -> None:
    rates = Rates(missing=1.0, localizer=1.0)
    order = Order("N", 2, 3, replace(WISHES, size_px=64, thickness_mm=10.0), twins=True, faults=rates)
    make_set(order, tmp_path / "set")
    studies = {}
    for path in (tmp_path / "set" / "hidden").glob("*.npz"):
        with np.load(path) as hidden:
            studies[path.stem] = (str(hidden["twin"]), str(hidden["faults"]), len(hidden["sop_uids"]))
    pairs = [(own, studies[own[0]]) for own in studies.values() if own[0]]
    assert pairs
    assert all(own[1:] == twin[1:] for own, twin in pairs)


def test_faults_of_files_are_refused_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(PhantomRefused, match="npz"):
        make_set(Order("S", 1, 1, WISHES, faults=Rates(), format="npz"), tmp_path / "set")
    with pytest.raises(PhantomRefused, match="rates"):
        make_set(Order("S", 1, 1, WISHES, faults=Rates(missing=2.0)), tmp_path / "set")
