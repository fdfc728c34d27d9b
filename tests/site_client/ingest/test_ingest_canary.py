"""No value of a patient and no name of a label file leaves the process: every output of the ingest is searched."""

import hashlib
import json
import logging
import zipfile
from base64 import b64encode
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from structlog.testing import capture_logs

from site_client.check_result import to_json_line
from site_client.cli import main
from site_client.config import load
from site_client.doctor.data.checks import check_labels
from site_client.errors import SiteError
from site_client.ingest.catalog.catalog import open_catalog
from site_client.ingest.catalog.command import refuse_failed_labels
from site_client.trainer.job import scan
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.enhanced import CONVERTED, enhanced, item

CANARIES = ("CANARY", "1.2.826.0.1.4711", "40017")
TEXTS = (
    "PatientName", "PatientID", "AccessionNumber", "InstitutionName", "StudyDescription", "SeriesDescription",
    "ReferringPhysicianName", "ContrastBolusAgent", "ConvolutionKernel", "BodyPartExamined", "StudyID",
)  # fmt: skip
LABEL_FILES = {
    "CANARY^MEIER good.csv": "StudyInstanceUID,any,CANARYCOLUMN\n1.2.826.0.1.4711.1,1,CANARYCELL\n",
    "CANARY unclosed.csv": 'AccessionNumber,any,note\n40017,1,"CANARYNOTE\n40018,0,x\n',
    "CANARY number.csv": "StudyInstanceUID,any\n4.0017E+30,1\n",
    "CANARY columns.CSV": "CANARYNAME,sdh\nCANARYPATIENT,1\n",
    "CANARY words.tsv": "StudyInstanceUID\tany\n1.2.826.0.1.4711.2\tCANARYWORD\n",
    "CANARY zero.csv": "StudyInstanceUID,any\nCANARY\0\0,1\n",
    "CANARY book.xlsx": "PK\x03\x04CANARY",
    "CANARY page.xls": "<table>CANARY",
    "CANARY letter.pdf": "CANARY",
    "CANARY list.csv": "CANARYA,CANARYB\n",
}


def canary(dataset: Dataset, index: int) -> None:
    # No scanner asks pydicom whether its dates are dates.
    with disable_value_validation():
        for place, name in enumerate(TEXTS):
            setattr(dataset, name, f"CANARY{place}" if name != "AccessionNumber" else "40017")
        dataset.StudyDate, dataset.StudyTime, dataset.AcquisitionTime = "20240017", "400170", "CANARYTIME"


def functional_canaries(dataset: Dataset) -> None:
    """Canaries in the sequences of an enhanced file, where a reader of frames looks."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    region = item(CodeValue="CANARY", CodingSchemeDesignator="99CANARY", CodeMeaning="CANARYREGION")
    shared.FrameAnatomySequence = [item(AnatomicRegionSequence=[region])]
    shared.CTReconstructionSequence[0].ConvolutionKernel = "CANARYKERNEL"
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.FrameContentSequence[0].FrameComments = "CANARYCOMMENT"
        group.FrameContentSequence[0].FrameLabel = "CANARYLABEL"
    with disable_value_validation():
        dataset.PerFrameFunctionalGroupsSequence[1].FrameContentSequence[0].FrameAcquisitionDateTime = "20240017CANARY"


@pytest.fixture
def config(scanner: Scanner, tmp_path: Path) -> Path:
    """A site whose every text is a canary. One series is usable, so that labels and choice are at work."""
    scanner.series("1.2.826.0.1.4711.1", tags={"PatientID": "CANARYID", "AccessionNumber": "40017"})
    scanner.series("1.2.826.0.1.4711.2", edit=canary)
    (scanner.root / "CANARY file").write_bytes(scanner.series("1.2.826.0.1.4711.3", slices=4)[1].read_bytes()[:3000])
    archived = scanner.series("1.2.826.0.1.4711.4", edit=canary, slices=12)
    frames = scanner.series("1.2.826.0.1.4711.5", edit=canary, slices=12)
    converted = scanner.series("1.2.826.0.1.4711.6", slices=24)
    enhanced(frames, scanner.root / "CANARY frames", edit=functional_canaries)
    enhanced(converted, scanner.root / "CANARY converted", sop_class=CONVERTED, edit=functional_canaries)
    with zipfile.ZipFile(scanner.root / "CANARY^MEIER.zip", "w") as archive:
        archive.comment = b"CANARYCOMMENT"
        for place, path in enumerate(archived):
            archive.write(path, f"CANARY^ANNA/{place}")
        archive.writestr("CANARY table.csv", "CANARYCOLUMN\n40017\n")
        archive.writestr("../CANARY outside", bytes(500))
        archive.writestr("CANARY inner.zip", b"PK\x03\x04CANARY" + bytes(200))
        archive.write(scanner.root / "CANARY frames", "CANARY frames")
    for path in (*archived, *frames, *converted):
        path.unlink()
    broken = (scanner.root / "CANARY^MEIER.zip").read_bytes()
    (scanner.root / "CANARY broken.zip").write_bytes(broken[:-30].replace(b"CANARY^ANNA/3", b"CANARY^ANNA/9"))
    (tmp_path / "CANARY labels").mkdir()
    for name, text in LABEL_FILES.items():
        (tmp_path / "CANARY labels" / name).write_text(text)
    (tmp_path / "CANARY out.txt").write_text("CANARYOUT\n1.2.826.0.1.4711.9\n")
    path = tmp_path / "site.toml"
    path.write_text(
        'name = "mercy"\n[folders]\nstate = "st"\nspool = "spool"\ncache = "cache"\nexport = "export"\n'
        'labels = ["CANARY labels"]\nopt_outs = ["CANARY out.txt"]\n[ingest]\nsettle_s = 0\n'
    )
    return path


def spellings() -> list[bytes]:
    found = []
    for word in CANARIES:
        plain = word.encode()
        found += [plain, word.encode("utf-16-le"), plain.hex().encode(), b64encode(plain).rstrip(b"=")]
    whole = ("CANARYID", "40017", "1.2.826.0.1.4711.1", "CANARYOUT", "CANARY^MEIER good.csv")
    return found + [
        hashlib.new(kind, text.encode()).hexdigest().encode() for kind in ("md5", "sha256") for text in whole
    ]


def search(output: bytes | str) -> list[bytes]:
    data = output.encode() if isinstance(output, str) else output
    return [spelling for spelling in spellings() if spelling in data]


def test_no_output_but_the_local_ones_holds_a_canary(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = load(config)
    for arguments in ([], ["--series"], ["--json", "--series"]):
        result = CliRunner().invoke(main, ["catalog", *arguments, "--config", str(config)])
        assert result.exit_code == 1  # some label files were refused
        assert search(result.output) == []
        assert str(tmp_path) not in result.output
    with capture_logs() as logs:
        assert scan(settings, lambda: False) == 1
    assert search(json.dumps(logs)) == []
    assert search(caplog.text) == []
    assert search("\n".join(to_json_line(line) for line in check_labels(settings))) == []
    with closing(open_catalog(settings)) as catalog:
        report = catalog.last_report()
    assert len(report.labels.refused_files) == 7
    # Archives and frames were at work, and their faults were met.
    assert {"S_ARCHIVE", "S_TABLE", "S_OUTSIDE_ROOT", "Q_ARCHIVE_DAMAGED"} <= set(report.files)
    assert report.studies_ready == 2
    assert search(repr(report) + json.dumps(report.as_json()) + report.as_text()) == []
    with pytest.raises(SiteError) as refused:
        refuse_failed_labels(report)
    assert search(str(refused.value)) == []
    for folder in ("st", "cache", "spool"):
        for path in (tmp_path / folder).rglob("*"):
            assert search(path.name) == []
            assert not path.is_file() or search(path.read_bytes()) == [], path.name


def without_folders(text: str) -> str:
    """Removes the folders of the archive, which the local outputs are meant to name."""
    return text.replace("CANARY^MEIER.zip", "").replace("CANARY^ANNA", "")


def test_the_local_outputs_name_paths_and_no_value_of_a_header(config: Path, tmp_path: Path) -> None:
    CliRunner().invoke(main, ["catalog", "--config", str(config)])
    page = tmp_path / "page.html"
    for arguments in (["explain", "CANARYID"], ["explain", "1.2.826.0.1.4711.2"], ["page", str(page)]):
        result = CliRunner().invoke(main, ["catalog", *arguments, "--config", str(config)])
        assert result.exit_code == 0, result.output
        assert search(without_folders(result.output.replace(str(page), ""))) == []
    assert search(without_folders(page.read_text())) == []
    listed = CliRunner().invoke(main, ["catalog", "labels", "--config", str(config)]).output
    assert all(name in listed for name in LABEL_FILES)
    assert not any(word in listed for word in ("CANARYNOTE", "CANARYCELL", "CANARYCOLUMN", "40017", "CANARYWORD"))


def test_the_search_would_find_one() -> None:
    assert search("x CANARY x") == [b"CANARY"]
    assert search(b64encode(b"CANARY")) != []
