"""From a file, study or series to its verdict and back, and the page of the whole catalog, for this site only."""

import io
import os
import re
import stat
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner, Result
from federation.labels import LABELS
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from site_client.cli import main
from site_client.config import FoldersSettings, SiteSettings
from site_client.errors import IngestError
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.command import (
    explain_text,
    held_labels_text,
    labels_text,
    missing_opt_outs_text,
    write_page,
)
from site_client.ingest.catalog.remedies import remedy
from site_client.ingest.catalog.thumbnails import PICTURE_PX, png
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import Rules
from site_client.ingest.series.content import Content, assess
from site_client.ingest.series.filters import content_filters, geometry_filters, header_filters
from site_client.ingest.series.stacks import Image, split
from tests.site_client.ingest.conftest import Clock, Scanner
from tests.site_client.ingest.test_ingest_series import header

HEADER = "StudyInstanceUID," + ",".join(LABELS) + "\n"


@pytest.fixture
def scanned(scanner: Scanner, catalog: Catalog) -> list[Path]:
    """A study with a chosen series, one with contrast and a copy; a second study that waits for nothing."""
    paths = scanner.series("1.2.3", patient="ANNA", tags={"AccessionNumber": "0017"})
    scanner.series("1.2.3", 2, patient="ANNA", tags={"ContrastBolusAgent": "CANARYAGENT", "AccessionNumber": "17"})
    scanner.series("1.2.4", patient="BERTA", slices=8)
    (scanner.root / "copy").write_bytes(paths[4].read_bytes())
    (scanner.root / "letter.txt").write_text("CANARYLETTER " * 20)
    (scanner.root / "labels.csv").write_text(HEADER + "1.2.3,0,0,0,0,1,1\n")
    catalog.scan(scanner.root)
    return paths


def test_every_way_to_name_a_study_leads_to_the_same_verdicts(
    scanner: Scanner, catalog: Catalog, scanned: list[Path], secret: SiteSecret
) -> None:
    key = str(secret.study("1.2.3"))
    whole = catalog.explain("1.2.3")
    assert whole[0] == f"study {key}"
    for query in (key, "ANNA", "17", "0017", str(secret.patient("ANNA"))):
        assert catalog.explain(query) == whole
    text = "\n".join(whole)
    assert "verdict: READY, chosen and labelled: trained on" in text
    assert "  labels: epidural no, intraparenchymal no, " in text
    assert "subarachnoid no, subdural yes, any yes" in text
    assert "verdict: not selected" in text
    assert "R_CONTRAST: contrast agent declared" in text
    assert f"to make it READY: {remedy(Reason.R_CONTRAST)}" in text
    assert "FAIL R_CONTRAST       contrast agent declared: 24 of 24 images (limit: none)" in text
    assert "ok   R_EXTENT         extent: 115.0 mm (limit: 100 to 260 mm)" in text
    assert re.search(r"ok   Q_HU_RANGE +brain, HU: 3\d\.\d\d \(limit: 15 to 50\)", text)
    assert "kernel         soft: 4000" in text
    assert "contrast       declared: 0" in text
    assert "CANARY" not in text


def test_a_series_or_an_image_is_found_by_uid_pseudonym_and_path(
    scanner: Scanner, catalog: Catalog, scanned: list[Path], secret: SiteSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = catalog.explain("1.2.3.1")
    assert sum(line.startswith("  series ") for line in whole) == 1
    stack = re.search(r"series (\w+) of study", "\n".join(whole))
    assert stack is not None
    for query in (str(secret.series("1.2.3.1")), stack[1], "1.2.3.1.5"):
        assert catalog.explain(query) == whole
    inside = str(scanned[7].relative_to(scanner.root))
    for query in (str(scanned[7]), inside):
        lines = catalog.explain(query)
        assert lines[0] == f"file {inside}: {scanned[7].stat().st_size} bytes"
        assert lines[-len(whole) :] == whole
    monkeypatch.chdir(scanned[7].parent)
    assert catalog.explain(scanned[7].name)[0].startswith(f"file {inside}")


def test_a_file_that_is_not_used_is_explained_by_its_own_code(
    scanner: Scanner, catalog: Catalog, scanned: list[Path]
) -> None:
    assert catalog.explain(str(scanner.root / "letter.txt"))[1].startswith("  S_JUNK: not an image")
    lines = catalog.explain("copy")
    assert lines[1] == f"  S_DUPLICATE: {Reason.S_DUPLICATE.value}"
    assert any("trained on" in line for line in lines)
    table = catalog.explain(str(scanner.root / "labels.csv"))
    assert table[0] == "label file 1: labels were read, 1 rows"
    assert table[2].startswith("  S_JUNK")
    folder = catalog.explain(str(scanner.root))
    assert folder[0] == f"{24 * 2 + 8 + 3} files, 3 of them not used"
    assert sum("  series " in line for line in folder) == 3


def test_a_short_series_is_told_what_it_lacks(catalog: Catalog, scanned: list[Path]) -> None:
    text = "\n".join(catalog.explain("1.2.4"))
    assert "FAIL R_TOO_FEW        slices: 8 (limit: at least 12)" in text
    assert "FAIL R_EXTENT         extent: 35.0 mm (limit: 100 to 260 mm)" in text


def test_an_unknown_name_is_said_to_be_unknown(catalog: Catalog, scanned: list[Path]) -> None:
    for query in ("1.2.3.4.5", "%", "_" * 26, "nothing.dcm"):
        assert catalog.explain(query)[0].startswith("the last scan met nothing by that name")


def test_a_waiting_series_says_until_when(scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock) -> None:
    clock.now = clock.now.replace(year=2020)
    catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(), clock)
    paths = scanner.series()
    paths[9].unlink()
    catalog.scan(scanner.root)
    end = clock.now.timestamp() + Rules().incomplete_after_s
    text = "\n".join(catalog.explain("1.2.3"))
    assert "verdict: still arriving" in text
    found = re.search(r"waits for the rest of its images, until a scan after (\S+ \S+)", text)
    assert found is not None
    local = str(np.datetime64(int(end), "s")).replace("T", " ")
    assert found[1] == local or os.environ.get("TZ")
    catalog.close()


def test_opted_out_and_unlabelled_studies_say_so(
    scanner: Scanner, catalog: Catalog, scanned: list[Path], tmp_path: Path
) -> None:
    scanner.series("1.2.5", patient="CARLA")
    (tmp_path / "out.txt").write_text("ANNA\n")
    catalog.scan(scanner.root, opted_out=[tmp_path / "out.txt"])
    assert "READY and chosen, but left out: the patient opted out" in "\n".join(catalog.explain("1.2.3"))
    assert "READY and chosen, but without a label: not trained on" in "\n".join(catalog.explain("1.2.5"))


@pytest.mark.parametrize(
    "change",
    [
        {}, {"orientation": (1.0, 0, 0, 0, 0.8, -0.6)}, {"spacing_mm": (0.3, 0.3)}, {"thickness_mm": 12.0},
        {"reasons": (Reason.R_CONTRAST,)}, {"reasons": (Reason.R_LOSSY, Reason.R_NOT_HEAD)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("heights", [range(0, 150, 5), range(0, 50, 5), [*range(0, 80, 5), *range(90, 150, 5)]])
def test_the_shown_filters_and_the_verdict_agree(change: dict[str, object], heights: list[int]) -> None:
    images = [Image(index, header(index, float(z), **change)) for index, z in enumerate(heights)]
    for stack in split(images, Rules()):
        filters = [*header_filters(stack.images), *geometry_filters(stack, Rules())]
        assert {line.reason for line in filters if not line.passed} == set(stack.reasons)


CONTENT = st.builds(
    Content,
    ring=st.sampled_from([0.5, 0.7, 0.9]),
    brain=st.sampled_from([0.1, 0.3, 0.6]),
    width_mm=st.sampled_from([60.0, 90.0, 150.0, 300.0]),
    brain_mode_hu=st.sampled_from([5.0, 15.0, 33.0, 60.0]),
    air_hu=st.sampled_from([-1000.0, -700.0, float("nan")]),
    border_air=st.sampled_from([0.1, 0.3, 0.9]),
)


@given(st.lists(CONTENT, min_size=1, max_size=5))
def test_the_shown_measures_of_the_content_and_the_verdict_agree(slices: list[Content]) -> None:
    failed = {line.reason for line in content_filters(slices) if not line.passed}
    assert failed == set(assess(slices))


def test_every_code_has_a_way_to_ready() -> None:
    assert all(remedy(reason) for reason in Reason)
    assert all(not remedy(reason).startswith("nothing: this is not") for reason in Reason if reason.name[0] == "Q")


def test_a_picture_is_the_slice_in_the_brain_window() -> None:
    gray = np.arange(PICTURE_PX * 6, dtype=np.uint8).reshape(6, PICTURE_PX)
    decoded = matplotlib.image.imread(io.BytesIO(png(gray)), format="png")
    assert np.array_equal(np.rint(decoded * 255).astype(np.uint8), gray)


def burn(dataset: Dataset, index: int) -> None:
    dataset.BurnedInAnnotation = "YES"


def test_the_page_shows_counts_questions_and_a_slice_of_each_series(
    scanner: Scanner, catalog: Catalog, scanned: list[Path], tmp_path: Path
) -> None:
    scanner.series("1.2.6", edit=burn)
    catalog.scan(scanner.root)
    path = tmp_path / "page.html"
    os.umask(0o000)
    try:
        catalog.write_page(path, with_pictures=True)
    finally:
        os.umask(0o022)
    page = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3  # text that is burned in is copied nowhere
    gray = np.rint(matplotlib.image.imread(io.BytesIO(b64decode(pictures[0])), format="png") * 255)
    assert gray.shape == (96, 96)
    assert gray[0, 0] == 0  # air
    assert 90 < np.median(gray[40:56, 40:56]) < 115  # brain of 32 HU in a window from 0 to 80
    for text in ("R_CONTRAST", "R_BURNED_IN", "1.4 to 2.6 %", "chosen and labelled", "points"):
        assert text in page
    for canary in ("CANARY", "ANNA", "1.2.3.1", "http:", "https:", "<script"):
        assert canary not in page
    catalog.write_page(path, with_pictures=False)
    assert "data:image" not in path.read_text()


def invoke(tmp_path: Path, *arguments: str) -> Result:
    config = tmp_path / "site.toml"
    if not config.exists():
        config.write_text('name = "mercy"\n[folders]\nstate = "st"\nspool = "spool"\nexport = "export"\n')
    return CliRunner().invoke(main, ["catalog", *arguments, "--config", str(config)])


def test_an_option_before_the_command_is_refused_and_not_ignored(tmp_path: Path) -> None:
    for option in (["--config", str(tmp_path / "site.toml")], ["--json"]):
        refused = CliRunner().invoke(main, ["catalog", *option, "explain", "1.2.3"])
        assert refused.exit_code == 2
        assert "options come after the command" in refused.output


def test_the_commands_explain_and_write_where_no_service_reads(scanner: Scanner, tmp_path: Path) -> None:
    scanner.series()
    for command in ("explain", "page"):
        refused = invoke(tmp_path, command, "page.html")
        assert refused.exit_code == 1
        assert "run hemofed-site catalog first" in refused.output
    invoke(tmp_path)
    assert "study " in invoke(tmp_path, "explain", "1.2.3").output
    for folder in ("export", "spool", "st/agent"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        refused = invoke(tmp_path, "page", str(tmp_path / folder / "page.html"))
        assert "outside of export, spool and agent folder" in refused.output
        assert list((tmp_path / folder).rglob("*.html")) == []
    assert "cannot be written there" in invoke(tmp_path, "page", str(tmp_path / "gone" / "page.html")).output
    assert invoke(tmp_path, "page", "--no-pictures", str(tmp_path / "page.html")).exit_code == 0
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_learns_nothing_even_where_the_folders_are_open() -> None:
    with TemporaryDirectory() as folder:
        for path in (Path(folder), Path(folder) / "state", Path(folder) / "state" / "trainer"):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        settings = SiteSettings("mercy", folders=FoldersSettings(state=Path(folder) / "state"))
        page = Path(folder) / "state" / "page.html"
        os.seteuid(65534)
        try:
            for ask in (
                lambda: explain_text(settings, "1.2.3"),
                lambda: labels_text(settings),
                lambda: write_page(settings, page, with_pictures=False),
                lambda: held_labels_text(settings),
                lambda: missing_opt_outs_text(settings),
            ):
                with pytest.raises(IngestError, match="run it as root or as the trainer's user"):
                    ask()
        finally:
            os.seteuid(0)
        assert not page.exists()


def test_explaining_changes_neither_export_nor_catalog(scanner: Scanner, catalog: Catalog, scanned: list[Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in scanner.root.rglob("*")}
    report = replace(catalog.last_report(), seconds=0.0)
    catalog.explain("1.2.3")
    assert {path: path.stat().st_mtime_ns for path in scanner.root.rglob("*")} == before
    assert catalog.last_report() == report
