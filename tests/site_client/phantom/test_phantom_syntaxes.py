"""Compressed or not, a file holds the same pixels; and the same seed the same bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from site_client.phantom.dicom import COMPRESSED, StudyIdentity, store, write_series
from site_client.phantom.profiles import PROFILES
from site_client.phantom.streams import PhantomStreams
from site_client.phantom.study import Wishes, make_study


@pytest.mark.parametrize("profile", ["T", "S"])
def test_every_lossless_syntax_gives_the_stored_values_back(profile: str, tmp_path: Path) -> None:
    patients = PROFILES[profile].patients
    scanner = replace(PROFILES[profile].scanner, compressed=1.0)
    first = PhantomStreams.of(profile, 1, 0)
    study = make_study(first, first, patients, scanner, Wishes(size_px=64, thickness_mm=10.0))
    stored = store(scanner, study.scan, study.image)
    seen = set()
    for index in range(12):
        streams = PhantomStreams.of(profile, 1, index)
        identity = StudyIdentity(f"P{index}", 60.0, 0)
        series = write_series(streams, identity, scanner, study.scan, study.image, tmp_path / "one")
        again = write_series(streams, identity, scanner, study.scan, study.image, tmp_path / "two")
        assert series.sha256 == again.sha256
        files = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, series.files)}
        for values, uid in zip(stored, series.sop_uids, strict=True):
            assert np.array_equal(files[uid].pixel_array, values)
        seen.add(files[series.sop_uids[0]].file_meta.TransferSyntaxUID)
    assert seen == set(COMPRESSED)
