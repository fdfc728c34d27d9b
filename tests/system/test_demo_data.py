"""The demo's `--data`: a messy export is dealt to the hospitals, no patient to two of them."""

import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from deploy.demonstration.export_folder import deal_export
from deploy.demonstration.hospitals import LABELS_FOLDER, BadDataFolder, Hospital, hospitals, is_rsna_layout
from site_client.ingest.catalog.catalog import Catalog, StudyRecord
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.enhanced import CONVERTED, enhanced

PATIENTS = 9


def pack(archive: Path, paths: Sequence[Path]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            file.write(path, f"DICOM/{path.name}")
            path.unlink()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Nine patients: four as files, two in one archive, one in another, two as files of many frames; and junk.

    Of the files, those of two patients are compressed; a DICOMDIR lists all four.
    """
    root = tmp_path / "messy"
    scanner = Scanner(root)
    series = [scanner.series(f"1.2.{number}", patient=f"P{number}") for number in range(PATIENTS)]
    for paths, syntax in zip(series, (JPEGLSLossless, JPEG2000Lossless), strict=False):
        for path in paths:
            dataset = dcmread(path)
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path)
    if shutil.which("dcmmkdir"):
        listed = [str(path.relative_to(root)) for paths in series[:4] for path in paths]
        subprocess.run(["dcmmkdir", "+I", "-Pgp", "+D", "DICOMDIR", *listed], cwd=root, check=True, capture_output=True)
    pack(root / "two.zip", [*series[4], *series[5]])
    pack(root / "one.zip", series[6])
    for number, sop_class in ((7, CONVERTED), (8, "1.2.840.10008.5.1.4.1.1.2.1")):
        enhanced(series[number], root / f"E{number}", sop_class=sop_class)
        for path in series[number]:
            path.unlink()
    scanner.series("1.2.4", 2, patient="P4", slices=3)  # of a patient in the archive
    (root / "Thumbs.db").write_bytes(bytes(500))
    (root / "VIEWER").write_bytes(bytes(5000))
    (root / "locked.zip").write_bytes(b"PK\x03\x04" + bytes(300))
    rows = "".join(f"1.2.{number},{number % 2}\n" for number in range(PATIENTS))
    (root / "labels.csv").write_text("StudyInstanceUID;any\n".replace(";", ",") + rows)
    return root


def studies_of(site: Hospital, folder: Path) -> tuple[StudyRecord, ...]:
    secret = SiteSecret(bytes(range(32)))
    with closing(Catalog.open(folder / f"{site.name}.sqlite", secret, Rules(settle_s=0))) as catalog:
        catalog.scan(site.data / "dicom", [site.data / LABELS_FOLDER])
        return catalog.dataset().studies


def test_a_messy_export_is_dealt_to_the_hospitals_by_patient(export: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in export.rglob("*")}
    sites = hospitals(tmp_path / "demo", 3)
    assert not is_rsna_layout(export)
    deal_export(export, sites, studies_max=32)
    dealt = [studies_of(site, tmp_path) for site in sites]
    assert sum(map(len, dealt)) == PATIENTS
    assert all(2 <= len(studies) <= 4 for studies in dealt)
    patients = [{study.patient_key for study in studies} for studies in dealt]
    assert sum(map(len, patients)) == len(set.union(*patients)) == PATIENTS
    assert all((site.data / "dicom" / "VIEWER").exists() for site in sites)
    assert sum((site.data / "dicom" / "two.zip").exists() for site in sites) == 1
    assert {path: path.stat().st_mtime_ns for path in export.rglob("*")} == before


def test_a_hospital_gets_no_further_patient_once_it_has_enough(export: Path, tmp_path: Path) -> None:
    sites = hospitals(tmp_path / "demo", 3)
    deal_export(export, sites, studies_max=1)
    assert all(1 <= len(studies_of(site, tmp_path)) <= 2 for site in sites)


@pytest.mark.parametrize("lacking", ["labels.csv", "patients"])
def test_a_folder_that_is_not_enough_for_the_hospitals_is_refused_with_what_was_found(
    export: Path, tmp_path: Path, lacking: str
) -> None:
    if lacking == "patients":
        for folder in export.glob("D?"):
            shutil.rmtree(folder)
    else:
        (export / lacking).unlink()
    with pytest.raises(BadDataFolder, match=r"expected label tables(.|\n)*series ready to train on"):
        deal_export(export, hospitals(tmp_path / "demo", 6), studies_max=32)
    assert not (tmp_path / "demo").exists()
