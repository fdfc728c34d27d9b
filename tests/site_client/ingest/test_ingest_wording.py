"""Free texts of a header by closed lists of whole words, and the choice between series that are equally good."""

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.files.wording import accession_number, contrast_of, is_elsewhere, kernel_class
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules, SiteWords
from tests.site_client.ingest.conftest import Clock, Scanner

NONE = SiteWords()


@pytest.mark.parametrize(
    "agent",
    [
        "no contrast", "Kein KM", "kein Kontrastmittel", "n/a", "N.A.", "-", "--", "none", "NO", "W/O", "w/o contrast",
        "without i.v. contrast", "No I.V. contrast", "KM: nein", "0", "0 ml", "0.0", "ohne KM", "nativ", "NATIVE CT",
        "Sans produit de contraste", "not given", "Contrast not administered", "unenhanced", "KEINE KM-GABE",
    ],
)  # fmt: skip
def test_no_contrast_in_words_is_no_contrast(agent: str) -> None:
    assert contrast_of(agent, False, 0.0, NONE) == "stated as none"


@pytest.mark.parametrize(
    "agent",
    [
        "ISOVUE", "Ultravist 300", "CONTRAST", "KM", "IV", "100 ml", "no oral", "IV contrast, no oral", "native + KM",
        "native, then Isovue", "none, ISOVUE, none", "NO; ISOVUE", "NONIONIC", "unknown", "KM-frei", "NOVALGIN",
    ],
)  # fmt: skip
def test_any_other_text_is_contrast(agent: str) -> None:
    assert contrast_of(agent, False, 0.0, NONE) == "declared"


def test_a_volume_or_an_item_of_a_sequence_outweighs_the_words() -> None:
    assert contrast_of("", False, 0.0, NONE) == "not stated"
    assert contrast_of("none", False, 80.0, NONE) == "declared"
    assert contrast_of("none", True, 0.0, NONE) == "declared"


@pytest.mark.parametrize(
    ("body_part", "elsewhere"),
    [
        ("HIP", True), ("C-SPINE", True), ("CSPINE", True), ("Left Arm", True), ("CHEST^ABDOMEN", True),
        ("HÜFTE", True),
        ("HIPPOCAMPUS", False), ("CAMPUS", False), ("HEAD^NECK", False), ("HEADNECK", False), ("", False),
        ("ARMENIA", False), ("SCHIPHOL", False),
    ],
)  # fmt: skip
def test_body_parts_are_whole_words(body_part: str, elsewhere: bool) -> None:
    assert is_elsewhere(body_part, NONE) is elsewhere


@pytest.mark.parametrize(
    ("name", "kind"),
    [("HEAD BONE", "bone"), ("BRAIN SHARP", "bone"), ("HEAD", "soft"), ("HEAD STANDARD", "soft"), ("BONEPLUS", "bone")],
)
def test_bone_in_any_word_is_a_bone_kernel(name: str, kind: str) -> None:
    assert kernel_class((name,)) == kind


def test_a_site_adds_words_of_its_own() -> None:
    own = SiteWords(("KM-frei",), ("OBEN",), ("UNTEN",), ("Qx 3",), ("Head soft 9",))
    assert contrast_of("km frei", False, 0.0, own) == "stated as none"
    assert [is_elsewhere(part, own) for part in ("unten", "oben unten")] == [True, False]
    assert [kernel_class((name,), own) for name in ("QX3", "HEAD SOFT 9")] == ["soft", "bone"]


def test_an_accession_number_loses_blanks_and_leading_zeros_only() -> None:
    pairs = {"00123": "123", "123": "123", " a 7": "A7", "0A7": "0A7", "000": "0", "": ""}
    assert {text: accession_number(text) for text in pairs} == pairs


def declare(agent: str, every: int = 1, first: int = 0) -> object:
    def edit(dataset: Dataset, index: int) -> None:
        if index >= first and index % every == 0:
            dataset.ContrastBolusAgent = agent

    return edit


@pytest.mark.parametrize("edit", [declare("ISOVUE", every=2), declare("ISOVUE", first=23), declare("ISOVUE")])
def test_contrast_on_any_slice_refuses_every_stack_of_the_series(
    scanner: Scanner, catalog: Catalog, edit: object
) -> None:
    scanner.series(slices=40, step_mm=3.5, edit=edit)  # type: ignore[arg-type]  # an Edit
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series_ready, report.series_waiting) == (0, 0, 0)
    assert report.series.keys() == {"R_CONTRAST"}


def test_words_for_none_leave_a_series_ready_and_its_score_sheet_says_so(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series(edit=declare("Kein KM", every=2))  # type: ignore[arg-type]  # an Edit
    assert catalog.scan(scanner.root).studies_ready == 1
    assert ("contrast", "not stated and stated as none", 0) in catalog.series()[0].sheet


@pytest.mark.skipif(not hasattr(Rules, "header_digest"), reason="headers are not read again when a rule changes")
def test_new_words_of_a_site_assess_the_export_again(
    scanner: Scanner, tmp_path: Path, secret: SiteSecret, clock: Clock
) -> None:
    scanner.series(edit=declare("KM-frei"))  # type: ignore[arg-type]  # an Edit
    for words, ready in (((), 0), (("KM-frei",), 1), ((), 0)):
        catalog = Catalog.open(tmp_path / "c.sqlite", secret, Rules(settle_s=0, no_contrast=words), clock)
        assert catalog.scan(scanner.root).studies_ready == ready
        catalog.close()


def at(time: str, number: int) -> dict[str, object]:
    date = "20240201" if time < "12" else "20240131"
    days = {"StudyDate": "20240131", "AcquisitionDate": date}
    return {**days, "StudyTime": "235000", "AcquisitionTime": time, "SeriesNumber": str(number)}


@pytest.mark.parametrize(
    ("native", "enhanced"),
    [
        (at("235500", 9), at("235900.5", 2)),
        (at("235500", 9), at("000400", 2)),
        ({"SeriesNumber": "2"}, {"SeriesNumber": "3"}),
        (at("235500", 2), {"SeriesNumber": "1"}),
        ({"SeriesNumber": "2"}, {}),
    ],
    ids=["by time", "over midnight", "by number", "a time before none", "a number before none"],
)
def test_of_two_equal_series_the_earlier_is_chosen_under_any_secret(
    scanner: Scanner, tmp_path: Path, native: dict[str, object], enhanced: dict[str, object]
) -> None:
    scanner.series(number=1, tags=enhanced)
    scanner.series(number=2, tags=native)
    (scanner.root / "labels.csv").write_text("StudyInstanceUID,any\n1.2.3,0\n")
    for key in range(4):
        catalog = Catalog.open(tmp_path / f"{key}.sqlite", SiteSecret(bytes([key] * 32)), Rules(settle_s=0))
        catalog.scan(scanner.root)
        (study,) = catalog.dataset().studies
        assert {str(dcmread(path).SeriesInstanceUID) for path in study.series.files} == {"1.2.3.2"}
        catalog.close()


def test_the_choice_between_equals_without_time_and_number_does_not_hang_on_the_secret(
    scanner: Scanner, tmp_path: Path
) -> None:
    scanner.series(number=1)
    scanner.series(number=2)
    (scanner.root / "labels.csv").write_text("StudyInstanceUID,any\n1.2.3,0\n")
    chosen = set()
    for key in range(6):
        catalog = Catalog.open(tmp_path / f"{key}.sqlite", SiteSecret(bytes([key] * 32)), Rules(settle_s=0))
        catalog.scan(scanner.root)
        chosen.add(catalog.dataset().studies[0].series.files)
        catalog.close()
    assert len(chosen) == 1


def test_labels_by_accession_number_find_their_study(scanner: Scanner, catalog: Catalog) -> None:
    for study, accession in (("1.1", "00017"), ("1.2", "A 7"), ("1.3", "99"), ("1.4", "99"), ("1.5", "")):
        scanner.series(study, tags={"AccessionNumber": accession})
    (scanner.root / "labels.csv").write_text("Accession,any,sdh\n17,1,1\nA7,0,\n99,1,1\n12345,0,0\n")
    report = catalog.scan(scanner.root)
    labels = [study.study_labels.tolist()[4:] for study in catalog.dataset().studies]
    assert sorted(labels) == [[0, 0], [1, 1]]
    assert (report.labels.labels_of_two_studies, report.labels.labels_without_images) == (1, 1)


def test_a_study_and_its_accession_number_must_agree(scanner: Scanner, catalog: Catalog) -> None:
    scanner.series("1.1", tags={"AccessionNumber": "17"})
    (scanner.root / "a.csv").write_text("Accession,any\n17,1\n")
    (scanner.root / "b.csv").write_text("StudyInstanceUID,any\n1.1,0\n")
    assert catalog.scan(scanner.root).labels.studies_in_conflict == 1
    assert catalog.dataset().studies == ()
