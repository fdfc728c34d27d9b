"""Every option of `hemofed-site phantom` does what its help says."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from federation.labels import LABELS

from site_client.errors import PhantomRefused
from site_client.ingest.series.content import assess, measure
from site_client.phantom.arrays import read_arrays
from site_client.phantom.command import phantom
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.faults import Rates
from site_client.phantom.lesions import STUDY_PERCENT
from site_client.phantom.profiles import PROFILES
from site_client.phantom.skew import skewed
from site_client.phantom.study import Wishes

RSNA = STUDY_PERCENT["rsna"]
TINY = ["--size-px", "64", "--thickness-mm", "10", "--seed", "1"]


def made(out: Path, *options: str, profile: str = "S", studies: int = 2) -> dict[str, bytes]:
    arguments = ["--profile", profile, "--studies", str(studies), "--out", str(out), *TINY, *options]
    result = CliRunner().invoke(phantom, arguments)
    assert result.exit_code == 0, result.output
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def millilitres(out: Path) -> float:
    total = 0.0
    for path in (out / "hidden").glob("*.npz"):
        with np.load(path) as hidden:
            total += float(hidden["ml"].sum())
    return total


def positives(out: Path) -> int:
    with (out / "labels_studies.csv").open() as lines:
        return sum(row["any"] == "1" for row in csv.DictReader(lines))


def test_prevalence_changes_who_comes(tmp_path: Path) -> None:
    made(tmp_path / "own", profile="C", studies=6)
    made(tmp_path / "balanced", "--prevalence", "balanced", profile="C", studies=6)
    assert positives(tmp_path / "own") < positives(tmp_path / "balanced")


def test_difficulty_shrinks_the_bleeds(tmp_path: Path) -> None:
    for difficulty in ("0.4", "2.5"):
        made(tmp_path / difficulty, "--difficulty", difficulty, "--prevalence", "balanced", studies=3)
    assert millilitres(tmp_path / "0.4") > 2 * millilitres(tmp_path / "2.5") > 0


def test_render_as_takes_the_header_family_of_the_other_scanner(tmp_path: Path) -> None:
    own, other = made(tmp_path / "own"), made(tmp_path / "other", "--render-as", "T")
    assert own["labels_studies.csv"].count(b"\n") == other["labels_studies.csv"].count(b"\n")
    makers = [b"Lumen Systems", b"Alpine Imaging"]
    for files, maker in zip((own, other), makers, strict=True):
        images = [content for name, content in files.items() if name.endswith(".dcm")]
        assert images
        assert all(maker in content for content in images)


def test_two_workers_change_no_byte(tmp_path: Path) -> None:
    options = ["--twins", "--faults", "--alpha", "0.5", "--prevalence", "balanced"]
    assert made(tmp_path / "one", *options) == made(tmp_path / "two", *options, "--workers", "2")


def test_the_manifest_holds_every_argument_and_the_rates_of_faults(tmp_path: Path) -> None:
    made(tmp_path / "set", "--faults", "--alpha", "0.5", "--twins", studies=1)
    arguments = json.loads((tmp_path / "set" / "manifest.json").read_text())["arguments"]
    assert arguments["faults"] == vars(Rates())
    assert (arguments["alpha"], arguments["twins"], arguments["wishes"]["size_px"]) == ("0.5", True, 64)


def test_npz_holds_the_same_head_and_the_same_labels_as_dicom(tmp_path: Path) -> None:
    dicom, arrays = made(tmp_path / "dicom"), made(tmp_path / "npz", "--format", "npz")
    for name in ("labels_slices.csv", "labels_studies.csv", "slice_map.csv"):
        assert dicom[name] == arrays[name]
    assert not any(name.endswith(".dcm") for name in arrays)
    paths = sorted((tmp_path / "npz" / "npz").rglob("*.npz"))
    assert len(paths) == 2
    for path in paths:
        volume = read_arrays(path)
        assert volume.hu.dtype == np.int16
        assert len(volume.hu) == len(volume.positions_mm) == len(list((tmp_path / "dicom").rglob(f"{path.stem}/*/*")))
        middle = volume.hu[len(volume.hu) // 3 : 2 * len(volume.hu) // 3]
        assert assess([measure(plane, volume.spacing_mm) for plane in middle]) == ()


def test_another_file_is_not_taken_for_a_study(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(PhantomRefused, match="expected a study"):
        read_arrays(tmp_path / "other.npz")


def test_a_site_without_skew_has_the_mix_that_was_asked_for() -> None:
    assert Order("N", 1, 1).patients == PROFILES["N"].patients
    assert Order("N", 1, 1, Wishes(prevalence="rsna")).patients.percent == RSNA
    assert skewed(np.random.default_rng(0), RSNA, math.inf) == RSNA


def test_a_small_alpha_takes_sites_further_from_the_mix_and_the_mean_stays() -> None:
    spread = []
    for alpha in (0.1, 0.5, 50.0):
        random = np.random.default_rng(3)
        mixes = [skewed(random, RSNA, alpha) for _ in range(600)]
        drawn = np.array([[mix[label] for label in LABELS] for mix in mixes])
        assert (drawn >= 0).all()
        assert (drawn[:, :-1] <= drawn[:, -1:] + 1e-9).all()
        spread.append(float(drawn[:, -1].std()))
        assert drawn[:, -1].mean() == pytest.approx(RSNA["any"], abs=5)
    assert spread[0] > spread[1] > spread[2]


def test_sites_of_another_seed_are_skewed_otherwise_and_the_same_site_alike() -> None:
    skew, again, other = (Order("T", 1, seed, alpha=0.5).patients.percent for seed in (1, 1, 2))
    assert skew == again != other
    assert Order("T", 1, 1).patients.percent == PROFILES["T"].patients.percent != skew


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_an_alpha_that_means_nothing_is_refused(alpha: float, tmp_path: Path) -> None:
    with pytest.raises(PhantomRefused, match="alpha"):
        make_set(Order("T", 1, 1, alpha=alpha), tmp_path / "set")
