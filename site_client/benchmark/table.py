"""The benchmark's table: the paper's columns, and those without which they say little. Markdown and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from federation.labels import ANY, LABELS

from site_client.benchmark.arms import Bench, Done, Failed
from site_client.benchmark.figure import draw
from site_client.benchmark.settings import TWINS
from site_client.inference.metrics import (
    DRAWS,
    Difference,
    Estimate,
    Measure,
    accuracy,
    compare,
    compare_log_loss,
    draw_patients,
    measure,
    weighted_log_loss,
)
from site_client.inference.patients import positives

SYNTHETIC = "Synthetic patients: a result on them is never clinical evidence."
REAL = "For research. Not a statement about any patient, and not a validated device."
_DRAW_SEED = 20_240_229
_COLUMNS = [
    "model",
    "data set size",
    "batch",
    "train",
    "validation",
    "epochs",
    "train loss",
    "validation loss",
    "accuracy",
    "all negative",
    "AUC any",
    "AP any",
    "log loss",
    "parameters",
    "training slices/s",
    "inference ms/slice",
]


@dataclass(frozen=True)
class BenchmarkOrigin:
    """Where the figures come from."""

    command: str
    synthetic: bool
    validation_slices: int
    torch: str
    machine: str


@dataclass(frozen=True)
class Side:
    """Training or validation."""

    patients: int
    studies: int
    positive_studies: dict[str, int]


@dataclass(frozen=True)
class BenchmarkRow:
    """A finished arm's last model on the validation slices, with 95 % intervals over patients."""

    done: Done
    accuracy: Estimate
    all_negative: Estimate
    auc: Estimate
    ap: Estimate
    log_loss: Estimate


@dataclass(frozen=True)
class Pair:
    """Sequence arm minus its slice-wise twin, on the same draws of patients."""

    arm: str
    twin: str
    log_loss: Difference
    auc: Difference


def write_table(out: Path, bench: Bench, arms: Sequence[Done | Failed], origin: BenchmarkOrigin) -> str:
    """benchmark.md, benchmark.json and benchmark.svg in `out`; the Markdown."""
    done = [arm for arm in arms if isinstance(arm, Done)]
    draws = draw_patients(
        len({study.patient_key for study in bench.split.validation}), DRAWS, np.random.default_rng(_DRAW_SEED)
    )
    judged = [_judge(arm, draws) for arm in done]
    pairs = _pairs(done, draws)
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(_as_json(bench, arms, judged, pairs, origin), indent=1) + "\n")
    (out / "benchmark.svg").write_text(draw(done, judged[0].all_negative.value if judged else None))
    text = _markdown(bench, arms, judged, pairs, origin)
    (out / "benchmark.md").write_text(text)
    return text


def _judge(done: Done, draws: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> BenchmarkRow:
    column = done.rows.column(ANY)
    return BenchmarkRow(
        done,
        *accuracy(done.rows),
        measure(column, Measure.AUC, draws),
        measure(column, Measure.AP, draws),
        weighted_log_loss(done.rows, draws),
    )


def _pairs(done: Sequence[Done], draws: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[Pair]:
    by_name = {arm.arm: arm.slices for arm in done}
    return [
        Pair(
            arm,
            twin,
            compare_log_loss(by_name[arm], by_name[twin], draws),
            compare(by_name[arm].column(ANY), by_name[twin].column(ANY), Measure.AUC, draws),
        )
        for arm, twin in TWINS.items()
        if arm in by_name and twin in by_name
    ]


# --- JSON ---------------------------------------------------------------------------------------------------------


def _as_json(
    bench: Bench,
    arms: Sequence[Done | Failed],
    judged: Sequence[BenchmarkRow],
    pairs: Sequence[Pair],
    origin: BenchmarkOrigin,
) -> dict[str, object]:
    return {
        "notice": SYNTHETIC if origin.synthetic else REAL,
        "origin": asdict(origin),
        "settings": asdict(bench.settings),
        "digest": bench.digest,
        "compute": bench.compute.name,
        "training": asdict(_side(bench, "training")),
        "validation": asdict(_side(bench, "validation")),
        "training_slices": bench.training_slices,
        "bootstrap_draws": DRAWS,
        "arms": [_arm(each) for each in judged],
        "failed": [asdict(arm) for arm in arms if isinstance(arm, Failed)],
        "pairs": [asdict(pair) for pair in pairs],
    }


def _side(bench: Bench, name: str) -> Side:
    studies = getattr(bench.split, name)
    return Side(len({study.patient_key for study in studies}), len(studies), positives(studies))


def _arm(each: BenchmarkRow) -> dict[str, object]:
    done = each.done
    known = {"arm": done.arm, "digest": done.digest, "parameters": done.parameters}
    speed = {
        "training_slices_per_s": round(done.training_slices_per_s, 2),
        "inference_ms_per_slice": round(done.inference_ms_per_slice, 3),
    }
    figures = {name: asdict(getattr(each, name)) for name in ("accuracy", "all_negative", "auc", "ap", "log_loss")}
    positive = {name: int((done.rows.labels[:, place] == 1).sum()) for place, name in enumerate(LABELS)}
    epochs = [asdict(epoch) for epoch in done.epochs]
    return {
        **known,
        **speed,
        **figures,
        "judged_by": "slices" if len(done.slices.patients) else "studies",
        "positive": positive,
        "by_epoch": epochs,
    }


# --- Markdown -----------------------------------------------------------------------------------------------------


def _markdown(
    bench: Bench,
    arms: Sequence[Done | Failed],
    judged: Sequence[BenchmarkRow],
    pairs: Sequence[Pair],
    origin: BenchmarkOrigin,
) -> str:
    found = {each.done.arm: each for each in judged}
    rows = [
        _row(bench, found[arm.arm], origin) if isinstance(arm, Done) else f"| `{arm.arm}` | failed: {arm.reason} |"
        for arm in arms
    ]
    parts = [
        "# Benchmark: the paper's table",
        f"{SYNTHETIC if origin.synthetic else REAL} Made by",
        f"    {origin.command}",
        _circumstances(bench, origin),
        "\n".join([f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}", *rows]),
        "![Accuracy and loss over epochs](benchmark.svg)",
        "## Sequence against slice-wise, the same patients",
        _pairs_text(pairs),
        "## How to read it",
        _NOTES,
    ]
    return "\n\n".join(parts) + "\n"


def _row(bench: Bench, each: BenchmarkRow, origin: BenchmarkOrigin) -> str:
    done, last = each.done, each.done.epochs[-1]
    cells = [
        f"`{done.arm}`" + ("" if len(done.slices.patients) else " (per study)"),
        f"{bench.training_slices + origin.validation_slices:,}",
        str(bench.settings.studies_per_step),
        f"{bench.training_slices:,}",
        f"{origin.validation_slices:,}",
        str(len(done.epochs)),
        f"{last.train_loss:.4f}",
        f"{last.validation_loss:.4f}",
        _text(each.accuracy),
        _text(each.all_negative),
        _text(each.auc),
        _text(each.ap),
        _text(each.log_loss),
        f"{done.parameters:,}",
        f"{done.training_slices_per_s:.1f}",
        f"{done.inference_ms_per_slice:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _circumstances(bench: Bench, origin: BenchmarkOrigin) -> str:
    sides = []
    for name in ("training", "validation"):
        side = _side(bench, name)
        counts = ", ".join(f"{label} {count}" for label, count in side.positive_studies.items())
        sides.append(f"{name}: {side.studies} studies of {side.patients} patients (positive: {counts})")
    settings = bench.settings
    return (
        f"{settings.image_size_px} px, at most {settings.slices_max} slices a study, seed {settings.seed}. "
        f"{'; '.join(sides)}. Split by patient, stratified by the rarest finding. Each model is the one after the last "
        f"epoch: nothing was chosen on the validation patients. torch {origin.torch}, {bench.compute.name}, "
        f"{origin.machine}."
    )


def _pairs_text(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "No sequence arm stands beside its slice-wise twin here."
    head = "| sequence arm | slice-wise twin | log loss | p | AUC any | p |\n|---|---|---|---|---|---|"
    lines = [
        f"| `{pair.arm}` | `{pair.twin}` | {_text(pair.log_loss, sign=True)} | {_chance(pair.log_loss)} | "
        f"{_text(pair.auc, sign=True)} | {_chance(pair.auc)} |"
        for pair in pairs
    ]
    return "\n".join([head, *lines]) + "\n\nBelow 0 in log loss, or above 0 in AUC: the sequence arm is better."


def _text(figure: Estimate | Difference, sign: bool = False) -> str:
    if figure.value is None:
        return f"none ({figure.reason})"
    form = "+.3f" if sign else ".3f"
    if figure.low is None or figure.high is None:
        return f"{figure.value:{form}}"
    return f"{figure.value:{form}} ({figure.low:{form}} to {figure.high:{form}})"


def _chance(difference: Difference) -> str:
    return "–" if difference.p is None else f"{difference.p:.3f}"


_NOTES = """\
- Data set size, train and validation count slices, as in the paper; the batch counts studies, each with all \
its slices or with as many as `--slices-per-study` says.
- The losses are the training loss (slices plus half of the study). The training loss is a mean over the last pass, \
augmented and with half of the studies positive; the validation loss is on the patients as they come.
- Accuracy is the share of slice labels that a threshold of .5 gets right. Beside it stands what answering "no \
hemorrhage" everywhere gets: an accuracy near that figure is no evidence of anything.
- AUC, AP and log loss (weighted as in RSNA 2019) are per slice, with 95 % intervals: 2000 bootstrap draws of \
validation patients, all slices of a patient together. They hold the chance of patients, not that of training. An arm \
marked "per study" answers for studies only and is judged by them.
- Chances are corrected for what training showed against what its patients have; no temperature was fitted.
- On a CPU, times are processor seconds per thread. On a GPU they are seconds of a clock, and say little of a card \
that others used at the same time: `tests/benchmarks/arms.py` measures each arm alone."""
