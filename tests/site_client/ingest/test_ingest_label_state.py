"""Labels in force: no known label goes because a file could not be read, and none without a person's word."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from federation.labels import LABELS
from sqlalchemy import text

from site_client.cli import main
from site_client.errors import LabelsRefused
from site_client.inference.patients import read_folder
from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from tests.site_client.ingest.conftest import Scanner

HEADER = "StudyInstanceUID," + ",".join(LABELS) + "\n"


def rows(*studies: str, positive: int = 0) -> str:
    return HEADER + "".join(f"{study},0,0,0,0,{positive},{positive}\n" for study in studies)


@pytest.fixture
def table(scanner: Scanner, tmp_path: Path) -> Path:
    """Three labelled studies, two of them with images, in a folder of its own."""
    scanner.series("1.2.3")
    scanner.series("1.2.4")
    (tmp_path / "labels").mkdir()
    path = tmp_path / "labels" / "CANARY-MEIER.csv"
    path.write_text(rows("1.2.3", "1.2.4", "1.2.5"))
    return path


def trained(catalog: Catalog) -> int:
    return len(catalog.dataset().studies)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_suffix(".bak")),
        lambda path: path.parent.rename(path.parent.with_name("unmounted")),
        lambda path: path.write_text(""),
        lambda path: path.write_text("item,price\n1,2\n"),
        lambda path: path.write_text(HEADER),
        lambda path: path.write_text(path.read_text().replace("any", "some").replace("subdural", "other")),
        lambda path: path.write_text(path.read_text() + '1.2.6,"0\n'),
        lambda path: path.write_text(rows("1.2.3", "1.2.4")),
        lambda path: path.write_text(rows("1.2.4", "1.2.5", "1.2.6")),
        lambda path: path.write_bytes(path.read_bytes()[:200] + bytes(100)),
        lambda path: path.write_bytes(b"PK\x03\x04" + path.read_bytes()),
    ],
    ids=[
        "gone", "renamed", "unmounted", "empty", "other table", "no rows", "columns", "quote", "fewer",
        "one for another", "zeros", "no workbook",
    ],
)  # fmt: skip
def test_known_labels_stay_in_force_whatever_happens_to_their_table(
    scanner: Scanner, catalog: Catalog, table: Path, damage: object
) -> None:
    catalog.scan(scanner.root, [table.parent])
    known = catalog.dataset().hash
    damage(table)  # type: ignore[operator]  # a lambda of the list above
    for _ in range(2):
        report = catalog.scan(scanner.root, [table.parent])
        assert report.labels.held is not None
        assert report.labels.held.in_force == 3
        assert catalog.dataset().hash == known
    assert "labels wait for a person" in report.as_text()


def test_a_table_that_is_mended_is_in_force_again_without_a_word(
    scanner: Scanner, catalog: Catalog, table: Path
) -> None:
    catalog.scan(scanner.root, [table.parent])
    whole = table.read_text()
    table.write_text(whole[:-10])
    assert catalog.scan(scanner.root, [table.parent]).labels.held is not None
    table.write_text(whole + "1.2.6,0,0,0,0,0,0\n")
    report = catalog.scan(scanner.root, [table.parent])
    assert (report.labels.held, report.labels.labels_without_images) == (None, 2)


def test_a_table_out_of_reach_is_tried_again(scanner: Scanner, catalog: Catalog, table: Path) -> None:
    # Root reads any file, so a link to nowhere stands in for the table that may not be read.
    whole = table.read_text()
    table.unlink()
    table.symlink_to(table.with_name("later.csv"))
    assert len(catalog.scan(scanner.root, [table.parent]).labels.refused_files) == 1
    table.unlink()
    table.write_text(whole)
    report = catalog.scan(scanner.root, [table.parent])
    assert (report.labels.refused_files, trained(catalog)) == ((), 2)


def test_changed_and_added_labels_need_no_word(scanner: Scanner, catalog: Catalog, table: Path) -> None:
    catalog.scan(scanner.root, [table.parent])
    first = catalog.dataset().hash
    table.write_text(rows("1.2.3", "1.2.4", "1.2.5", "1.2.6", positive=1))
    assert catalog.scan(scanner.root, [table.parent]).labels.held is None
    assert catalog.dataset().hash != first


def test_a_persons_word_lets_labels_go_and_no_stale_word_does(scanner: Scanner, catalog: Catalog, table: Path) -> None:
    catalog.scan(scanner.root, [table.parent])
    table.write_text(rows("1.2.3"))
    held = catalog.scan(scanner.root, [table.parent]).labels.held
    assert held is not None
    assert (held.in_force, held.offered, held.withdrawn) == (3, 1, 2)
    table.write_text(rows("1.2.4", "1.2.9"))
    with pytest.raises(LabelsRefused, match="changed meanwhile"):
        catalog.confirm_labels(scanner.root, [table.parent], held.stamp)
    assert trained(catalog) == 2
    held = catalog.scan(scanner.root, [table.parent]).labels.held
    assert held is not None
    catalog.confirm_labels(scanner.root, [table.parent], held.stamp)
    assert (catalog.last_report().labels.held, trained(catalog)) == (None, 1)


def test_no_word_drops_labels_of_a_table_that_cannot_be_read(scanner: Scanner, catalog: Catalog, table: Path) -> None:
    catalog.scan(scanner.root, [table.parent])
    table.write_text('"')
    held = catalog.scan(scanner.root, [table]).labels.held
    assert held is not None
    with pytest.raises(LabelsRefused, match="Correct or remove that file first"):
        catalog.confirm_labels(scanner.root, [table], held.stamp)
    assert trained(catalog) == 2


def test_the_names_of_label_files_are_sealed_in_the_catalog(
    scanner: Scanner, catalog: Catalog, table: Path, tmp_path: Path
) -> None:
    table.write_text(table.read_text() + "CANARY^ANNA,CANARYCELL,0,0,0,0,0\n")
    report = catalog.scan(scanner.root, [table.parent])
    assert [file.path for file in catalog.label_files()] == [str(table)]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    assert b"CANARY" not in stored
    assert "CANARY" not in repr(report) + report.as_text() + json.dumps(report.as_json())


def site(tmp_path: Path) -> Path:
    config = tmp_path / "site.toml"
    config.write_text(
        'name = "mercy"\n[folders]\nstate = "st"\nexport = "export"\nlabels = ["labels"]\n[ingest]\nsettle_s = 0\n'
    )
    return config


def invoke(*arguments: str, config: Path) -> Result:
    return CliRunner().invoke(main, ["catalog", *arguments, "--config", str(config)], input="y\n")


def test_the_commands_say_what_is_wrong_and_only_labels_names_a_file(table: Path, tmp_path: Path) -> None:
    config = site(tmp_path)
    assert invoke(config=config).exit_code == 0
    assert invoke("confirm", "labels", config=config).output == "no labels wait for your word\n"
    table.write_text(rows("1.2.3") + '1.2.4,0,"0\n')
    scanned = invoke(config=config)
    assert scanned.exit_code == 1
    assert "label file 1, line 3: a quote opens here" in scanned.output
    assert invoke("confirm", "labels", config=config).exit_code == 1
    table.write_text(rows("1.2.3"))
    scanned = invoke("--json", config=config)
    assert scanned.exit_code == 1
    assert '"withdrawn": 2' in scanned.output
    assert "CANARY" not in scanned.output
    assert str(table) in invoke("labels", config=config).output
    confirmed = invoke("confirm", "labels", config=config)
    assert (confirmed.exit_code, "confirmed" in confirmed.output) == (0, True)
    assert invoke(config=config).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_names_are_shown_to_root_and_the_trainers_user_only(table: Path, tmp_path: Path) -> None:
    config = site(tmp_path)
    invoke(config=config)
    os.seteuid(65534)
    try:
        refused = invoke("labels", config=config)
    finally:
        os.seteuid(0)
    assert refused.exit_code != 0
    assert "CANARY" not in refused.output


def test_labels_survive_a_catalog_of_another_version(
    scanner: Scanner, catalog: Catalog, table: Path, tmp_path: Path, secret: SiteSecret
) -> None:
    catalog.scan(scanner.root, [table.parent])
    with catalog._engine.begin() as connection:
        connection.execute(text("PRAGMA user_version=77"))
    catalog.close()
    table.write_text("")
    catalog = Catalog.open(tmp_path / "state" / "catalog.sqlite", secret)
    assert catalog.scan(scanner.root, [table.parent]).labels.held is not None
    catalog.close()


def test_a_folder_that_is_evaluated_again_has_the_labels_of_its_tables_now(scanner: Scanner, tmp_path: Path) -> None:
    for study in ("1.2.3", "1.2.4"):
        scanner.series(study)
    path = scanner.root / "labels.csv"
    path.write_text(rows("1.2.3", "1.2.4"))
    assert len(read_folder(scanner.root, tmp_path / "bench")) == 2
    path.write_text(rows("1.2.4"))
    assert len(read_folder(scanner.root, tmp_path / "bench")) == 1
    path.write_text(rows("1.2.4") + '1.2.3,"0')
    with pytest.raises(LabelsRefused, match="a quote opens here"):
        read_folder(scanner.root, tmp_path / "bench")
