"""Each figure and each answer bears the name of the label in whose column it was computed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from federation.labels import ANY, LABELS
from federation.manifest import Model, load_model, save_model

from site_client.cli import main
from site_client.inference.evaluation import evaluate
from site_client.inference.patients import positives
from site_client.inference.scores import Scored
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.model.initial_weights import write_fresh
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes

COLUMN = {name: place for place, name in enumerate(LABELS)}
CHANCES = {
    "epidural": 0.1,
    "intraparenchymal": 0.2,
    "intraventricular": 0.3,
    "subarachnoid": 0.4,
    "subdural": 0.5,
    "any": 0.9,
}


def test_an_evaluation_counts_the_positives_of_each_label_under_its_name() -> None:
    counts = {name: 12 + 2 * place for name, place in COLUMN.items()}
    labels = np.zeros((60, 6), np.int8)
    for name, count in counts.items():
        labels[:count, COLUMN[name]] = 1
    scored = Scored(np.full((60, 6), 0.5), labels, np.arange(60))
    rows = evaluate(scored, scored, draws=20).slices.labels
    assert {name: row.positives for name, row in rows.items()} == counts


def test_positive_studies_are_counted_by_label() -> None:
    studies = []
    for name, place in COLUMN.items():
        for number in range(place + 1):
            cells = np.zeros(6, np.int8)
            cells[[COLUMN[name], ANY]] = 1
            series = SeriesRecord(SeriesKey("x"), "00" * 32, (Path("unread"),))
            studies.append(StudyRecord(StudyKey(f"{name}{number}"), PatientKey(name), series, cells[None], cells))
    assert positives(studies) == {**{name: place + 1 for name, place in COLUMN.items()}, "any": 21}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that answers each label with a chance of its own, whatever it sees."""
    path = tmp_path_factory.mktemp("model") / "constant.safetensors"
    write_fresh("lite", 1, path)
    fresh = load_model(path)
    tensors = {name: np.zeros_like(value) for name, value in fresh.named().items()}
    (bias,) = [name for name in tensors if name.endswith("slice_head.bias")]
    for name, chance in CHANCES.items():
        tensors[bias][COLUMN[name]] = np.log(chance / (1 - chance))
    save_model(path, Model(fresh.manifest, fresh.manifest.flatten(tensors), ()))
    return path


def test_a_prediction_names_the_chance_of_each_label_in_text_and_json(model: Path, tmp_path: Path) -> None:
    make_set(Order("C", 1, 5, Wishes(size_px=96, thickness_mm=7.0)), tmp_path / "patient")
    arguments = ["predict", str(tmp_path / "patient"), "--model", str(model), "--out", str(tmp_path / "answer.json")]
    arguments += ["--image-size", "64", "--slices-max", "12", "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("study 1")]
    spoken = {name: float(chance) for name, chance in re.findall(r"([a-z]+) (0\.\d+)", line.partition(";")[0])}
    assert spoken == pytest.approx(CHANCES, abs=0.001)
    (study,) = json.loads((tmp_path / "answer.json").read_text())["studies"]
    for answer in (study["study"], *study["slices"]):
        assert {name: answer[name] for name in COLUMN} == pytest.approx(CHANCES, abs=0.001)
