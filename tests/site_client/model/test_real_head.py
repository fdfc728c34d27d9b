"""The prediction path over a real head CT: 4 mm and 7 mm slices with an overlap of 1.08 mm between the two blocks."""

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from federation.labels import ANY

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import read_volume
from site_client.model.inputs import compose_channels, prepare
from site_client.model.network import clamp_any
from site_client.model.registry import build

pytestmark = pytest.mark.real_data


@pytest.fixture
def head() -> Path:
    root = os.environ.get("HEMOFED_REAL_DATA")
    if root is None:
        pytest.skip("HEMOFED_REAL_DATA names no folder of real DICOM")
    return Path(root) / "dcm_qa_ct" / "In" / "GE"


def test_a_real_head_passes_from_files_to_an_answer(head: Path, tmp_path: Path) -> None:
    with closing(Catalog.open(tmp_path / "catalog.sqlite", SiteSecret(bytes(range(32))), Rules(settle_s=0))) as catalog:
        catalog.scan(head, [_without_a_bleed(head, tmp_path / "labels.csv")])
        (study,) = catalog.dataset().studies
    volume = read_volume(study.series)
    assert np.diff(volume.positions_mm).min() == pytest.approx(1.08, abs=0.01)
    prepared = prepare(volume, 256, 64)
    assert prepared.slices == 28
    assert np.isfinite(prepared.geometry).all()
    brain = prepared.windows[14, 0, 96:160, 96:160]  # the middle of the head: 20 to 45 HU in a window of 0 to 80
    assert 20 < np.median(brain) * 80 / 255 < 45
    x = torch.from_numpy(compose_channels(prepared.windows)).float().unsqueeze(0) / 127.5 - 1
    mask, geometry = torch.ones(1, prepared.slices, dtype=torch.bool), torch.from_numpy(prepared.geometry).unsqueeze(0)
    with torch.inference_mode():
        output = build("lite", 1).eval()(x, mask, geometry)
    chances = clamp_any(output.slice_logits[0]).sigmoid()
    assert chances.shape == (28, 6)
    assert chances.isfinite().all()
    assert (chances[:, ANY:] >= chances[:, :ANY]).all()


def _without_a_bleed(head: Path, table: Path) -> Path:
    """A label table for the one study: a study without labels is in no dataset."""
    study = pydicom.dcmread(next(head.glob("*.dcm")), stop_before_pixels=True).StudyInstanceUID
    columns = "StudyInstanceUID,epidural,intraparenchymal,intraventricular,subarachnoid,subdural,any"
    table.write_text(f"{columns}\n{study},0,0,0,0,0,0\n")
    return table
