"""What the phantom writes, the product's own reader takes in: every study, every label, no complaint."""

from pathlib import Path

import numpy as np
import pytest

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.profiles import PROFILES
from site_client.phantom.study import Wishes

SECRET = SiteSecret(b"phantom-test-secret-0123456789ab")


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_catalog_takes_every_clean_study_in_with_its_labels(profile: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_set(Order(profile, 2, 5, Wishes(size_px=128, prevalence="balanced", difficulty=0.4)), out)
    catalog = Catalog.open(tmp_path / "catalog.sqlite", SECRET, Rules(settle_s=0))
    report = catalog.scan(out / "dicom", [out / "labels_slices.csv", out / "labels_studies.csv"])
    dataset = catalog.dataset()
    catalog.close()
    assert (report.studies_ready, dict(report.series), dict(report.files)) == (2, {}, {}), report.as_text()
    assert report.labels.labels_without_images == report.labels.studies_in_conflict == 0, report.as_text()
    truth = []
    for path in (out / "hidden").glob("*.npz"):
        with np.load(path) as hidden:
            truth.append(tuple(hidden["slice_labels"].max(axis=0).tolist()))
    assert sorted(tuple(study.study_labels) for study in dataset.studies) == sorted(truth)
