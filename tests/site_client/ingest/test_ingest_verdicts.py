"""A verdict lives as long as what it was based on. A fault of our own disk is blamed on no file of the export."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from site_client.errors import IngestError, SeriesUnreadable
from site_client.ingest.catalog import scan as scan_module
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.scan import ExportScan
from site_client.ingest.files.readers import Readers
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.records import SeriesKey, SeriesRecord
from site_client.ingest.rules import Rules
from site_client.ingest.series import assess
from site_client.ingest.series.stacks import Stack
from site_client.ingest.series.volume import Volume
from site_client.training.cache import StudyCache
from tests.site_client.ingest.conftest import Clock, Scanner
from tests.site_client.ingest.full_disk import full_disk
from tests.site_client.ingest.test_ingest_catalog import label


def test_a_rule_that_is_switched_on_and_off_counts_each_time(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    scanner.series(tags={"LossyImageCompression": "01"})
    ready = []
    for lossy in (False, True, False):
        catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(settle_s=0, lossy=lossy), clock)
        report = catalog.scan(scanner.root)
        ready.append((report.studies_ready, report.series))
        catalog.close()
    assert ready == [(0, {"R_LOSSY": 1}), (1, {}), (0, {"R_LOSSY": 1})]


class ReadersBeforeInstallation(Readers):
    """The readers of a machine on which one decoder is not installed yet."""

    def decoders(self) -> tuple[str, ...]:
        return super().decoders()[1:]


def test_a_decoder_that_is_installed_is_noticed(
    scanner: Scanner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanner.series()
    before = ReadersBeforeInstallation(1)
    with monkeypatch.context() as patched:
        patched.setattr(scan_module, "shared_readers", lambda: before)
        assert catalog.scan(scanner.root).files_read == 24
    before.close()
    assert [catalog.scan(scanner.root).files_read for _ in range(2)] == [24, 0]


def test_a_file_that_could_not_be_read_is_tried_again_at_every_scan(scanner: Scanner, catalog: Catalog) -> None:
    path = scanner.series()[0]
    (scanner.root / "broken").write_bytes(path.read_bytes()[:140] + b"\xff" * 400)
    reports = [catalog.scan(scanner.root) for _ in range(2)]
    assert [(report.files_read, report.files) for report in reports] == [(25, {"Q_READ": 1}), (1, {"Q_READ": 1})]


def test_a_ready_series_that_could_not_be_read_is_read_again_by_the_next_scan(
    scanner: Scanner, catalog: Catalog
) -> None:
    scanner.series("1.2.3")
    scanner.series("1.2.4")
    label(scanner.root, "1.2.3", "1.2.4")
    catalog.scan(scanner.root)
    catalog.doubt(catalog.dataset().studies[0].series.series_key)
    assert [catalog.scan(scanner.root).files_read for _ in range(2)] == [24, 0]


def test_a_changed_mode_counts_as_a_change(scanner: Scanner, catalog: Catalog) -> None:
    path = scanner.series()[0]
    catalog.scan(scanner.root)
    path.chmod(0o600)
    assert catalog.scan(scanner.root).files_read == 1


def test_a_full_disk_of_ours_is_said_in_a_sentence_and_the_next_scan_goes_on(
    scanner: Scanner, catalog: Catalog, tmp_path: Path
) -> None:
    scanner.series()
    label(scanner.root, "1.2.3")
    with full_disk(60_000), pytest.raises(IngestError, match="Q_STORAGE") as refused:
        catalog.scan(scanner.root)
    assert str(tmp_path) not in str(refused.value)
    assert catalog.scan(scanner.root).studies_ready == 1


def test_a_study_for_which_the_cache_has_no_room_on_disk_is_left_out_by_its_code(tmp_path: Path) -> None:
    def read(series: SeriesRecord) -> Volume:
        hu = np.full((20, 64, 64), 30, np.int16)
        return Volume(hu, (3.0, 3.0), np.arange(20, dtype=np.float64) * 5.0, np.full(20, 5.0, np.float64))

    cache = StudyCache(tmp_path / "cache", 1 << 30, 64, 40, read)
    series = SeriesRecord(SeriesKey("S"), "0" * 64, ())
    with full_disk(10_000), pytest.raises(SeriesUnreadable) as refused:
        cache.get(series)
    assert refused.value.code == "Q_STORAGE"
    assert list((tmp_path / "cache").iterdir()) == []
    assert cache.get(series).slices == 20


def test_a_scan_that_is_interrupted_between_files_and_series_loses_no_change(
    scanner: Scanner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = scanner.series(slices=25)
    last = paths[-1].read_bytes()
    paths[-1].unlink()
    label(scanner.root, "1.2.3")
    catalog.scan(scanner.root)
    paths[-1].write_bytes(last)

    def interrupt(scan: ExportScan) -> set[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ExportScan, "_unsettled_series", interrupt)
        with pytest.raises(KeyboardInterrupt):
            catalog.scan(scanner.root)
    assert catalog.scan(scanner.root).files_read == 0
    assert len(catalog.dataset().studies[0].series.files) == 25


@pytest.mark.parametrize(("place", "code"), [("split", "Q_GEOMETRY"), ("_assess_content", "Q_DECODE")])
def test_an_error_that_no_rule_foresees_is_a_code_of_its_series_alone(
    scanner: Scanner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, place: str, code: str
) -> None:
    sound = getattr(assess, place)

    def faulty(of: Sequence[object] | Stack, *rest: object) -> object:
        if len(of.images if isinstance(of, Stack) else of) == 30:
            raise ZeroDivisionError("CANARYNAME")
        return sound(of, *rest)

    scanner.series("1.2.3")
    scanner.series("1.2.4", patient="P2", slices=30)
    monkeypatch.setattr(assess, place, faulty)
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {code: 1})
