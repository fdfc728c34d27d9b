"""Identity: one series is of one study, one study of one patient; a doubt holds back everything that it touches."""

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from tests.site_client.ingest.conftest import Clock, Scanner
from tests.site_client.ingest.test_ingest_catalog import label


def one_series_uid(dataset: Dataset, index: int) -> None:
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "9.9.9", "9.9.8"


@pytest.mark.parametrize(("patient", "study"), [("P2", "1.2.4"), ("P1", "1.2.4"), ("P2", "1.2.3")])
def test_a_series_uid_that_two_patients_or_studies_share_makes_no_volume_of_both(
    scanner: Scanner, catalog: Catalog, patient: str, study: str
) -> None:
    scanner.series("1.2.3", edit=one_series_uid)
    others = scanner.series(study, 2, patient=patient, edit=one_series_uid)
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (0, {"Q_UID_CLASH": 2})
    for path in others:
        path.unlink()
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {})


def test_a_study_that_two_patients_claim_is_held_back_with_all_its_series(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series("1.2.3", 1)
    scanner.series("1.2.5", 1)
    label(scanner.root, "1.2.3", "1.2.5")
    assert catalog.scan(scanner.root).studies_ready == 2
    # It arrives later, in another series: what was ready is in doubt now.
    rival = scanner.series("1.2.3", 2, patient="P2")
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series) == (1, {"Q_UID_CLASH": 2})
    assert len(catalog.dataset().studies) == 1
    for path in rival:
        path.unlink()
    assert catalog.scan(scanner.root).studies_ready == 2


def test_a_series_without_a_patient_has_the_patient_of_its_study(
    scanner: Scanner, catalog: Catalog, secret: SiteSecret
) -> None:
    scanner.series("1.2.3", 1, patient="")
    scanner.series("1.2.3", 2, patient="P1", tags={"ConvolutionKernel": "BONE"})
    label(scanner.root, "1.2.3")
    assert catalog.scan(scanner.root).studies_ready == 1
    (study,) = catalog.dataset().studies
    assert study.patient_key == secret.patient("P1")


def test_a_patient_with_very_many_studies_is_noticed_and_one_with_few_is_not(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(settle_s=0, studies_of_a_patient_max=2), clock)
    for number in range(3):
        scanner.series(f"1.2.{number}", patient="ANONYMIZED")
    scanner.series("1.2.9", patient="P1")
    assert catalog.scan(scanner.root).warnings == {"W_MANY_STUDIES": 3}
    next(scanner.root.rglob("I*")).unlink()
    for path in list(scanner.root.rglob("I*")):
        if b"1.2.2\0" in path.read_bytes():
            path.unlink()
    assert catalog.scan(scanner.root).warnings.get("W_MANY_STUDIES", 0) == 0
    catalog.close()


def test_a_site_names_the_attribute_that_tells_its_patients_apart(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    for number in range(3):
        scanner.series(f"1.2.{number}", patient="ANONYMIZED", tags={"AccessionNumber": f"A{number // 2}"})
    label(scanner.root, "1.2.0", "1.2.1", "1.2.2")
    patients = []
    for tag in ("0010,0020", "0008,0050"):
        catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(settle_s=0, patient_tag=tag), clock)
        catalog.scan(scanner.root)
        patients.append([study.patient_key for study in catalog.dataset().studies])
        catalog.close()
    assert [len(set(keys)) for keys in patients] == [1, 2]
