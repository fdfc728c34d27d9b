"""Label files as hospitals and RSNA write them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from federation.labels import LABELS
from hypothesis import given
from hypothesis import strategies as st

from site_client.ingest.labels.files import label_files, label_sources
from site_client.ingest.labels.labels import Labels, read_labels
from site_client.ingest.labels.readings import CONFLICT, merge, settle
from site_client.ingest.labels.spelling import UNKNOWN
from site_client.ingest.pseudonym import SiteSecret

U = UNKNOWN
CELLS = st.lists(st.sampled_from([0, 1, CONFLICT, UNKNOWN]), min_size=6, max_size=6).map(bytes)
WIDE = "StudyInstanceUID,epidural,intraparenchymal,intraventricular,subarachnoid,subdural,any\n"


def long_rows(image: str, values: Sequence[int]) -> str:
    return "".join(f"{image}_{label},{value}\n" for label, value in zip(LABELS, values, strict=True))


def read(tmp_path: Path, secret: SiteSecret, text: str | bytes, name: str = "labels.csv") -> Labels:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(label_sources(tmp_path, [tmp_path / name]), secret)


def test_rsna_rows_become_one_record_an_image_under_the_id_that_its_file_carries(
    tmp_path: Path, secret: SiteSecret
) -> None:
    text = "ID,Label\n" + long_rows("ID_63eb1e259", (0, 1, 0, 0, 0, 1)) + long_rows("ID_1.2.840.7", (0,) * 6)
    labels = read(tmp_path, secret, text)
    assert labels.slices == {
        secret.slice("ID_63eb1e259"): bytes((0, 1, 0, 0, 0, 1)),
        secret.slice("1.2.840.7"): bytes(6),
    }
    assert (labels.rows, labels.duplicates, labels.unreadable) == (12, 0, 0)


def test_repeated_rows_are_dropped_and_contradicting_ones_are_a_conflict(tmp_path: Path, secret: SiteSecret) -> None:
    rows = long_rows("ID_a", (0, 0, 0, 0, 0, 0))
    labels = read(tmp_path, secret, "ID,Label\n" + rows + rows)
    assert (labels.duplicates, labels.slices[secret.slice("ID_a")]) == (6, bytes(6))
    labels = read(tmp_path, secret, "ID,Label\n" + rows + "ID_a_subdural,1\n")
    assert labels.slices[secret.slice("ID_a")][4] == CONFLICT


@pytest.mark.parametrize("beside", [True, False])
def test_a_map_tells_which_image_an_id_stands_for(tmp_path: Path, secret: SiteSecret, beside: bool) -> None:
    (tmp_path / "slice_map.csv").write_text("ID,SOPInstanceUID,PatientID\nID_abc,2.25.77,P\n")
    (tmp_path / "slices.csv").write_text("ID,Label\n" + long_rows("ID_abc", (0,) * 6))
    files = [tmp_path / "slices.csv"] + ([] if beside else [tmp_path / "slice_map.csv"])
    assert list(read_labels(label_sources(tmp_path, files), secret).slices) == [secret.slice("2.25.77")]


def test_a_blank_cell_is_unknown_and_not_negative(tmp_path: Path, secret: SiteSecret) -> None:
    labels = read(tmp_path, secret, WIDE + "1.2.3,,,,,,1\n1.2.4,,,1,,,\n")
    assert labels.studies[secret.study("1.2.3")] == bytes((U, U, U, U, U, 1))
    assert labels.studies[secret.study("1.2.4")] == bytes((U, U, 1, U, U, 1))


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfStudyInstanceUID;EDH;Any\r\n1.2.3;ja;JA\r\n",
        "Study Instance UID;Epidural;Größe;any\n 1.2.3 ;1;5,2;TRUE\n".encode("cp1252"),
        "study_instance_uid\tepidural\tany\n1.2.3\tyes\tY\n".encode("utf-16"),
        b"\n\nSTUDYINSTANCEUID,any,epidural\n\n1.2.3,1.0,+\n\n",
        b'"StudyInstanceUID","epidural","any"\n"1.2.3","1","1"\n',
    ],
)
def test_every_way_a_hospital_writes_a_table_reads_the_same(tmp_path: Path, secret: SiteSecret, data: bytes) -> None:
    labels = read(tmp_path, secret, data)
    assert labels.studies == {secret.study("1.2.3"): bytes((1, U, U, U, U, 1))}
    assert labels.unreadable == 0


def test_rows_of_several_readers_are_merged_and_their_disagreement_is_kept(tmp_path: Path, secret: SiteSecret) -> None:
    labels = read(tmp_path, secret, WIDE + "1.2.3,0,,,,,1\n1.2.3,,1,,,,1\n1.2.4,0,,,,,\n1.2.4,1,,,,,\n")
    assert labels.studies[secret.study("1.2.3")] == bytes((0, 1, U, U, U, 1))
    assert labels.studies[secret.study("1.2.4")][0] == CONFLICT


def test_a_uid_that_a_spreadsheet_made_a_number_refuses_the_file_without_quoting_it(
    tmp_path: Path, secret: SiteSecret
) -> None:
    labels = read(tmp_path, secret, WIDE + "1.2.3,0,0,0,0,0,0\n1.2E+30,1,0,0,0,0,1\n")
    assert labels.studies == {}
    (sentence,) = labels.refused
    assert sentence.startswith("label file 1, line 3: ")
    assert "E+30" not in sentence


def test_one_refused_file_does_not_keep_the_others_out(tmp_path: Path, secret: SiteSecret) -> None:
    (tmp_path / "a.csv").write_text("nothing\n")
    (tmp_path / "b.csv").write_text(WIDE + "1.2.3,0,0,0,0,0,0\n")
    (tmp_path / "c.csv").write_text("name,value\n1,2\n")
    files = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv", "gone.csv")]
    labels = read_labels(label_sources(tmp_path, files), secret)
    assert len(labels.studies) == 1
    assert [file.state.name for file in labels.files] == ["REFUSED", "READ", "REFUSED", "UNREADABLE"]
    assert [sentence[:12] for sentence in labels.refused] == ["label file 1", "label file 3", "label file 4"]


@pytest.mark.parametrize("cell", ["2", "9", "0.93", "0,5", "12", "-2", "50%"])
def test_a_table_of_codes_or_volumes_is_refused_because_its_one_means_no_yes(
    tmp_path: Path, secret: SiteSecret, cell: str
) -> None:
    wide = read(tmp_path, secret, WIDE + f'1.2.3,1,0,0,0,0,1\n1.2.4,"{cell}",0,0,0,0,1\n')
    assert wide.studies == {}
    assert [("line 3" in sentence, cell in sentence) for sentence in wide.refused] == [(True, False)]
    long = read(tmp_path, secret, f'ID,Label\nID_a_any,1\nID_b_any,"{cell}"\n')
    assert (long.slices, len(long.refused)) == ({}, 1)


def test_a_cell_nobody_can_understand_is_unknown_and_counted(tmp_path: Path, secret: SiteSecret) -> None:
    labels = read(tmp_path, secret, WIDE + "1.2.3,maybe,1/2,0,0,0,\nnot a uid,1,1,1,1,1,1\n")
    assert labels.studies == {secret.study("1.2.3"): bytes((U, U, 0, 0, 0, U))}
    assert labels.unreadable == 3


def test_a_row_cut_short_leaves_the_rest_unknown(tmp_path: Path, secret: SiteSecret) -> None:
    assert read(tmp_path, secret, WIDE + "1.2.3,0\n").studies[secret.study("1.2.3")] == bytes((0, U, U, U, U, U))


def test_the_keys_are_pseudonyms_and_nothing_else_is_kept(tmp_path: Path, secret: SiteSecret) -> None:
    text = WIDE.replace("any", "any,PatientName") + "1.2.3,0,0,0,0,0,0,CANARY^ANNA\n"
    labels = read(tmp_path, secret, text)
    assert "CANARY" not in repr(labels)
    assert "1.2.3" not in repr(labels)


def test_every_file_of_a_label_folder_is_listed_and_only_tables_of_the_export(tmp_path: Path) -> None:
    (tmp_path / "studies.csv").write_text(WIDE)
    (tmp_path / "prices.csv").write_text("item,price\n")
    (tmp_path / "slice_map.csv").write_text("ID,SOPInstanceUID\n")
    (tmp_path / "README.pdf").write_text("x")
    assert [path.name for path in label_files(tmp_path, [])] == ["prices.csv", "slice_map.csv", "studies.csv"]
    listed = [source.path.name for source in label_sources(tmp_path / "x", [tmp_path])]
    assert listed == ["README.pdf", "prices.csv", "slice_map.csv", "studies.csv"]
    assert label_files(tmp_path, [tmp_path / "prices.csv"])[0] == tmp_path / "prices.csv"


@given(CELLS, CELLS, CELLS)
def test_merging_does_not_depend_on_the_order_of_rows(a: bytes, b: bytes, c: bytes) -> None:
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a
    assert merge(a, bytes([UNKNOWN] * 6)) == a


@given(CELLS)
def test_only_what_follows_is_filled_in(cells: bytes) -> None:
    settled = settle(cells)
    for before, after in zip(cells, settled, strict=True):
        assert after == before or before == UNKNOWN or (after == CONFLICT and 1 in cells[:5] and cells[5] == 0)
    if 1 in settled[:5]:
        assert settled[5] in (1, CONFLICT)
    if settled[5] == 0:
        assert set(settled[:5]) <= {0, CONFLICT}
    assert settle(settled) == settled
