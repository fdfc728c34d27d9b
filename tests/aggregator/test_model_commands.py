"""`model compare` and `model export`, and the forms in which listings are printed."""

import csv
import io
import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from federation.manifest import Manifest, Model, TensorSpec, load_model, save_model

from aggregator.config import load_settings
from aggregator.context import open_context
from aggregator.errors import WrongState
from aggregator.runs.comparison import compare
from aggregator.store import site_rows
from aggregator.store.tables import SiteReport
from tests.aggregator.conftest import Host
from tests.aggregator.test_cli_aggregator import Console, console, fresh, with_run

__all__ = ["console", "fresh", "with_run"]  # fixtures

MANIFEST = Manifest((TensorSpec("trunk", (2,)), TensorSpec("head", (2,)), TensorSpec("bias", (1,))))


def model(*weights: float) -> Model:
    return Model(MANIFEST, np.array(weights, np.float32))


def test_the_distance_is_that_of_the_numbers_and_tensors_come_most_moved_first() -> None:
    found = compare(model(3, 4, 1, 0, 0), model(3, 4, 1, 12, 5))
    assert found.lengths == pytest.approx((26**0.5, 195**0.5))
    assert found.distance == pytest.approx(13)
    assert found.cosine == pytest.approx(26 / (26 * 195) ** 0.5)
    assert found.moved == 2
    assert [(tensor.name, tensor.distance, tensor.relative) for tensor in found.tensors] == [
        ("head", 12, 12),
        ("bias", 5, None),
        ("trunk", 0, 0),
    ]


def test_models_of_zeros_have_no_angle() -> None:
    assert compare(model(0, 0, 0, 0, 0), model(0, 0, 0, 0, 1)).cosine is None


def test_models_of_other_tensors_are_not_compared() -> None:
    other = Manifest((TensorSpec("trunk", (2,)), TensorSpec("foot", (3,))))
    with pytest.raises(WrongState, match="got 2 that only the first has and 1 that only the second has"):
        compare(model(0, 0, 0, 0, 0), Model(other, np.zeros(5, np.float32)))
    shapes = Manifest(tuple(replace(tensor, shape=(1, *tensor.shape)) for tensor in MANIFEST.tensors))
    with pytest.raises(WrongState, match="the same names with other shapes"):
        compare(model(0, 0, 0, 0, 0), Model(shapes, np.zeros(5, np.float32)))


def test_a_model_of_a_round_is_compared_with_a_file(with_run: Console) -> None:
    initial = load_model(with_run.folder / "initial.safetensors")
    other = with_run.folder / "other.safetensors"
    save_model(other, Model(initial.manifest, initial.weights + np.array([0, 0, 0, 0, 3], np.float32)))
    text = with_run("model", "compare", "0", str(other)).stdout
    assert f"A         {initial.digest.hex()}" in text
    assert "distance  3, 54.77% of A" in text
    assert "moved     1 of 1 tensors" in text
    found = with_run.json("model", "compare", str(other), "0")
    assert (found["distance"], found["reports"]) == (3, [None, None])
    assert "made no model" in with_run.refused("model", "compare", "0", "7")
    assert "absent.safetensors" in with_run.refused("model", "compare", "0", "absent.safetensors")


def test_a_refused_comparison_names_the_file_and_what_was_expected(with_run: Console) -> None:
    text = with_run.folder / "plan.toml"
    text.write_text("rounds = 1")
    for wrong in (str(text), str(with_run.folder), "absent"):
        said = with_run.refused("model", "compare", "0", wrong)
        assert wrong in said
        assert "expected" in said


def test_an_export_replaces_no_file_unless_it_is_told_to(with_run: Console) -> None:
    out = with_run.folder / "out.safetensors"
    out.write_bytes(b"the model of last year")
    assert "got one; name another, or add --overwrite" in with_run.refused("model", "export", str(out))
    assert out.read_bytes() == b"the model of last year"
    assert with_run("model", "export", str(out), "--overwrite").exit_code == 0
    assert load_model(out).digest == load_model(with_run.folder / "initial.safetensors").digest
    [row] = with_run.json("audit", "--limit", "1")
    assert (row["after"], row["why"].partition(",")[0]) == ("model exported", "model of round 0")
    assert sorted(path.name for path in with_run.folder.glob("*out*")) == ["out.safetensors"]


LISTINGS = [
    ("admin", "list"),
    ("audit",),
    ("model", "list"),
    ("run", "list"),
    ("run", "queue"),
    ("run", "status"),
    ("site", "list"),
    ("roster", "show"),
    ("doctor",),
    ("config", "check"),
]


def test_every_listing_has_json_and_csv_that_agree(with_run: Console) -> None:
    with_run("admin", "add", "ada", "--password-stdin", stdin="correct horse battery\n")
    with_run("site", "invite", "st-mary")
    for listing in LISTINGS:
        printed = with_run(*listing, "--csv").stdout
        rows = list(csv.DictReader(io.StringIO(printed)))
        assert printed.splitlines()[0]
        content = json.loads(with_run(*listing, "--json").stdout)
        if listing == ("run", "status"):
            content = content["rounds"]
        elif listing == ("roster", "show"):
            content = list(content["sites"])
        assert len(rows) == len(content)
        if rows and listing not in (("run", "status"), ("doctor",)):  # doctor's figures change from look to look
            assert all(rows[0][key] == _text(value) for key, value in content[0].items())


def _text(value: object) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value)
    return "" if value is None else str(value)


def test_a_report_that_is_too_old_is_marked_in_the_list(with_run: Console) -> None:
    hosts = {"fresh": 5, "silent": 3600}
    for name in hosts:
        with_run.join(with_run.json("site", "invite", name, "--auto-approve")["token"], Host())
    app = open_context(load_settings(with_run.config))
    with app.store.write() as session:
        for name, age_s in hosts.items():
            seen_at = app.clock() - timedelta(seconds=age_s)
            said = {"state": "SITE_TRAINING", "reasons": "", "progress_percent": 40, "model_digest": b""}
            ledger = {"version": "0.2.0", "ledger_entries": 1, "ledger_head": b"h"}
            site_rows.put_report(session, SiteReport(site=name, seen_at=seen_at, roster_epoch=1, **said, **ledger))
    app.store.close()
    rows = {row["site"]: row for row in with_run.json("site", "list")}
    assert (rows["fresh"]["stale"], rows["silent"]["stale"]) == (False, True)
    assert "STALE, 1 h ago" in with_run("site", "list").stdout
