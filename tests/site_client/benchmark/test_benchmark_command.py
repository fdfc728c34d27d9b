"""The command reads phantom sets of npz as sites, and takes its options from a file."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from site_client.benchmark.command import benchmark
from site_client.cli import main
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes

CONFIG = """
arms = "lite-slices"
epochs = 3
image-size = 32
slices-max = 4
validation = 0.5
threads = 1
device = "cpu"
"""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sites")
    wishes = Wishes(size_px=64, thickness_mm=10.0, prevalence="balanced", difficulty=0.4)
    for profile in ("S", "C"):
        # So many that either half of the patients has some of both sites: which half is held out follows from the
        # files' bytes, and these from Python's release.
        make_set(Order(profile, 12, 4, wishes, format="npz"), folder / profile)
    return folder / "S", folder / "C"


def test_options_of_a_file_hold_unless_the_command_line_says_otherwise(
    sites: tuple[Path, Path], tmp_path: Path
) -> None:
    config, out = tmp_path / "benchmark.toml", tmp_path / "out"
    config.write_text(CONFIG)
    asked = ["benchmark", "--config", str(config), "--epochs", "1", "--seeds", "1,2", "--out", str(out)]
    result = CliRunner().invoke(main, [*asked, *(f"--data={site}" for site in sites)])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "benchmark.json").read_text())
    assert (report["settings"]["epochs"], report["settings"]["image_size_px"]) == (1, 32)
    assert [arm["arm"] for arm in report["arms"]] == ["position", "position + histogram", "lite-slices"]
    assert len(report["arms"][-1]["runs"]) == 2
    assert report["arms"][-1]["spread"] is not None
    assert set(report["sites"]["position"]) == {"S", "C"}
    assert report["training"]["studies"] + report["validation"]["studies"] == 24
    rows = [json.loads(line) for line in (out / "benchmark.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows if row["event"] == "trivial row fitted"] == ["position", "position + histogram"]
    log = [row for row in rows if row["event"] == "epoch ended"]
    assert [(line["arm"], line["seed"], line["number"]) for line in log] == [("lite-slices", s, 1) for s in (1, 2)]
    assert (out / "evaluations" / "position-and-histogram.html").exists()
    # The model file says its sizes and calibration; the set is evaluated without DICOM.
    trained, _ = (out / ".state").glob("*-cpu-fp32/lite-slices.safetensors")  # one a seed
    asked = ["evaluate", "--data", str(sites[0]), "--model", str(trained), "--out", str(tmp_path / "e")]
    evaluated = CliRunner().invoke(main, [*asked, "--threads", "1"])
    assert evaluated.exit_code == 0, evaluated.output
    about = json.loads((tmp_path / "e" / "evaluation.json").read_text())["model"]
    assert (about["image_size_px"], about["slices_max"], about["calibrated"]) == (32, 4, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "1,x"], "expected whole numbers separated by commas"),
        (["--folds", "1"], "one fold would leave no patient to train on"),
        (["--config", "CONFIG"], "expected options such as"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    config = tmp_path / "wrong.toml"
    config.write_text("epoch = 3\n")
    given = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    result = CliRunner().invoke(benchmark, ["--out", str(tmp_path / "out"), *given])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.replace("│", " ").split())
