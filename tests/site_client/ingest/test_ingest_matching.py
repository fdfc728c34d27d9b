"""Labels against images before the first training: questions with figures. Patients who opted out are in no dataset."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from federation.labels import LABELS

from site_client.cli import main
from site_client.config import load
from site_client.errors import OptOutsUnreadable
from site_client.ingest.catalog.catalog import Catalog, open_catalog
from site_client.ingest.catalog.dataset import LabelledStack
from site_client.ingest.catalog.questions import MatchCounts, ask
from site_client.ingest.catalog.tables import StackRow
from site_client.ingest.labels.spelling import UNKNOWN
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import read_volume
from site_client.trainer.job import scan
from site_client.training.cache import StudyCache
from tests.site_client.ingest.conftest import Clock, Scanner

HEADER = "StudyInstanceUID,Reader," + ",".join(LABELS) + "\n"
SOUND = MatchCounts(100, 0, 0, 0, 0)


def stacks(count: int, **positive: int) -> list[LabelledStack]:
    """Studies of which the first `positive` ones have a label, and all others have not."""
    return [
        LabelledStack(
            StackRow(study_key=str(k)), (), bytes(int(k < positive.get(label, 0)) for label in LABELS), ()
        )
        for k in range(count)
    ]  # fmt: skip


PLAIN = {"epidural": 4, "intraparenchymal": 30, "intraventricular": 7, "subarachnoid": 12, "subdural": 15, "any": 40}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, ""),
        ({"epidural": 122, "any": 122}, "You say 61 % epidural (122 of 200 studies); published are 1.4 to 2.6 %"),
        ({"any": 200}, "You say 100 % any"),
        ({"intraparenchymal": 0}, "You say 0 % intraparenchymal"),
        ({"epidural": 0}, ""),
    ],
)
def test_a_share_far_from_the_published_ones_is_a_question(change: dict[str, int], sentence: str) -> None:
    questions = [question for question in ask(stacks(200, **(PLAIN | change)), SOUND) if question.code == "D_SHARE"]
    assert [question.text[: len(sentence)] for question in questions] == ([sentence] if sentence else [])


def test_few_studies_raise_no_question_about_shares() -> None:
    assert [question.code for question in ask(stacks(49, epidural=30, any=49), SOUND)] == ["D_ANY_ALONE"]


def test_labels_of_images_that_are_still_arriving_raise_no_question(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    scanner.series("1.1")
    (scanner.root / "labels.csv").write_text(HEADER + "1.1,A,0,0,0,0,0,0\n1.9,A,0,0,0,0,0,0\n")
    with closing(Catalog.open(tmp_path / "c.sqlite", secret, Rules(settle_s=60), clock)) as catalog:
        arriving = catalog.scan(scanner.root)
        clock.advance(61)
        settled = catalog.scan(scanner.root)
    assert (arriving.series_waiting, settled.series_ready) == (1, 1)
    asked = [[question.code for question in report.questions] for report in (arriving, settled)]
    assert asked == [[], ["D_LABELS_WITHOUT_IMAGES"]]


def test_every_doubt_about_labels_and_images_is_a_question(scanner: Scanner, catalog: Catalog) -> None:
    for study in ("1.1", "1.2", "1.3", "1.4"):
        scanner.series(study)
    rows = "1.1,A,0,0,0,0,0,0\n1.2,A,0,0,0,0,0,1\n1.2,B,0,0,0,0,0,0\n1.3,A,0,0,0,0,0,1\n1.9,A,0,0,0,zz,0,0\n"
    (scanner.root / "labels.csv").write_text(HEADER + rows)
    report = catalog.scan(scanner.root)
    assert {question.code: question.count for question in report.questions} == {
        "D_LABELS_WITHOUT_IMAGES": 1,
        "D_IMAGES_WITHOUT_LABELS": 1,
        "D_READERS_DIFFER": 1,
        "D_CONFLICT": 1,
        "D_NOT_UNDERSTOOD": 1,
        "D_ANY_ALONE": 1,
    }
    page = report.as_text()
    assert all(question.text in page for question in report.questions)
    assert "1 of 4 labels have no image in the export" in page
    assert json.loads(json.dumps(report.as_json()))["questions"][0]["code"] == "D_LABELS_WITHOUT_IMAGES"


@pytest.fixture
def three(scanner: Scanner) -> Path:
    """Three labelled studies of two patients; the path of the opt-out list."""
    scanner.series("1.1", patient="ANNA", tags={"AccessionNumber": "0017"})
    scanner.series("1.2", patient="ANNA")
    scanner.series("1.3", patient="BERTA")
    (scanner.root / "labels.csv").write_text("StudyInstanceUID,any\n1.1,0\n1.2,0\n1.3,0\n")
    return scanner.root.parent / "opt_outs.csv"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("ANNA\n", {"1.3"}),
        ("PatientID\n# asked on Monday\nANNA;by letter\n\n", {"1.3"}),
        ('"BERTA"\r\n', {"1.1", "1.2"}),
        ("17\n", {"1.2", "1.3"}),
        ("1.2\n", {"1.1", "1.3"}),
        ("ANNA\nBERTA\n", set()),
        ("ANNABERTA\n", {"1.1", "1.2", "1.3"}),
        ("", {"1.1", "1.2", "1.3"}),
    ],
)
def test_who_opted_out_is_in_no_dataset_and_counted(
    scanner: Scanner, catalog: Catalog, secret: SiteSecret, three: Path, text: str, left: set[str]
) -> None:
    three.write_text(text)
    report = catalog.scan(scanner.root, opted_out=[three])
    assert {study.study_key for study in catalog.dataset().studies} == {secret.study(uid) for uid in left}
    assert (report.opt_outs.studies, report.studies_ready) == (3 - len(left), len(left))
    assert len(catalog.chosen()) == len(left)
    assert all(name not in report.as_text() + json.dumps(report.as_json()) for name in ("ANNA", "BERTA"))


@pytest.mark.parametrize(
    "listed",
    [
        b"00123\n",
        b"\xef\xbb\xbf00123\n",
        "00123\n".encode("utf-16"),
        b"00123\rP9\r",
        b"123\n",
        b"123.0\n",
        b"0000123\n",
        b'"00123"\r\n',
        b'="00123"\n',
        b'"=""00123"""\n',
        b"'00123\n",
        "00123\u00a0\n\u200bP9".encode(),
        b"Opted out, 2026\nName;Patient ID;Date\nMeier;00123;1.2.2026\n",
        b"sep=;\nPatientID;x\n00123;y\n",
        b"Meier|00123\n",
        b"Meier\t123\n",
    ],
)
def test_a_list_that_a_spreadsheet_has_written_keeps_its_patients_out(
    scanner: Scanner, catalog: Catalog, listed: bytes
) -> None:
    scanner.series("1.1", patient="00123")
    scanner.series("1.2", patient="P2")
    (scanner.root / "labels.csv").write_text("StudyInstanceUID,any\n1.1,0\n1.2,0\n")
    opt_outs = scanner.root.parent / "opt_outs.csv"
    opt_outs.write_bytes(listed)
    assert catalog.scan(scanner.root, opted_out=[opt_outs]).opt_outs.studies == 1
    assert len(catalog.dataset().studies) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("1,23E+05\n"),
        lambda path: path.write_text("Meier;1.2E+30\n"),
        lambda path: path.write_bytes(b"ANNA\n" + bytes(600)),
        lambda path: path.write_bytes(b"PK\x03\x04"),
        lambda path: path.write_text("1.2E+30\n"),
    ],
)
def test_a_list_that_cannot_be_read_stops_the_scan(
    scanner: Scanner, catalog: Catalog, three: Path, damage: Callable[[Path], object]
) -> None:
    three.write_text("ANNA\n")
    catalog.scan(scanner.root, opted_out=[three])
    damage(three)
    with pytest.raises(OptOutsUnreadable, match="opt-out list 1") as refused:
        catalog.scan(scanner.root, opted_out=[three])
    assert "E+30" not in str(refused.value)
    assert len(catalog.dataset().studies) == 1


def test_an_entry_that_disappears_stays_in_force_until_a_person_says_so(
    scanner: Scanner, catalog: Catalog, three: Path
) -> None:
    three.write_text("ANNA\nBERTA\n")
    catalog.scan(scanner.root, opted_out=[three])
    three.write_text("ANNA\n")
    for _ in range(2):
        report = catalog.scan(scanner.root, opted_out=[three])
        assert (report.opt_outs.entries, report.opt_outs.missing, report.opt_outs.studies) == (2, 1, 3)
    catalog.scan(scanner.root)  # the setting itself is gone
    assert catalog.dataset().studies == ()
    catalog.confirm_opt_outs([three])
    report = catalog.scan(scanner.root, opted_out=[three])
    assert (report.opt_outs.entries, report.opt_outs.missing, report.studies_ready) == (1, 0, 1)


def invoke(tmp_path: Path, *arguments: str) -> Result:
    config = tmp_path / "site.toml"
    config.write_text(
        'name = "mercy"\n[folders]\nstate = "st"\nexport = "export"\nopt_outs = ["opt_outs.csv"]\n'
        "[ingest]\nsettle_s = 0\n"
    )
    return CliRunner().invoke(main, ["catalog", *arguments, "--config", str(config)], input="y\n")


def test_the_commands_count_who_opted_out_and_name_none(three: Path, tmp_path: Path) -> None:
    three.write_text("ANNA\n")
    scanned = invoke(tmp_path)
    assert "opted out: 1 entries, which keep 2 usable studies out of training" in scanned.output
    three.write_text("")
    assert "1 of them are no longer in the lists" in invoke(tmp_path).output
    assert "confirmed" in invoke(tmp_path, "confirm", "opt-outs").output
    assert "opted out" not in invoke(tmp_path).output
    assert "ANNA" not in scanned.output


def test_prepared_images_leave_with_the_study_and_with_the_patient(scanner: Scanner, tmp_path: Path) -> None:
    paths = {study: scanner.series(study, patient=study) for study in ("1.1", "1.2", "1.3")}
    (scanner.root / "labels.csv").write_text("StudyInstanceUID,any\n1.1,0\n1.2,0\n1.3,0\n")
    config = tmp_path / "site.toml"
    config.write_text(
        'name = "mercy"\n[folders]\nstate = "st"\ncache = "cache"\nexport = "export"\nopt_outs = ["out.txt"]\n'
        "[ingest]\nsettle_s = 0\n"
    )
    settings = load(config)
    (tmp_path / "out.txt").write_text("")
    assert scan(settings, lambda: False) == 3
    with closing(open_catalog(settings)) as catalog:
        for study in catalog.dataset().studies:
            StudyCache(tmp_path / "cache", 1 << 30, 32, 16, read_volume).get(study.series)
    prepared = set((tmp_path / "cache").iterdir())
    assert (len(prepared), scan(settings, lambda: False), set((tmp_path / "cache").iterdir())) == (3, 3, prepared)
    for path in paths["1.1"]:
        path.unlink()
    (tmp_path / "out.txt").write_text("1.2\n")
    assert scan(settings, lambda: False) == 1
    left = set((tmp_path / "cache").iterdir())
    assert len(left) == 1
    assert left < prepared


def test_unknown_is_no_share() -> None:
    unknown = [LabelledStack(StackRow(study_key="1"), (), bytes([UNKNOWN] * 6), ()) for _ in range(100)]
    assert [question.code for question in ask(unknown, SOUND)] == ["D_IMAGES_WITHOUT_LABELS"]
