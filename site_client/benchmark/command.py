"""The command `hemofed-site benchmark`: every arm on the same patients, in the paper's table."""

import hashlib
import json
import platform
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import click
import torch

from site_client.benchmark.arms import Bench, FailedArm, FinishedArm, run_arm
from site_client.benchmark.settings import BenchmarkSettings, phantom_folder
from site_client.benchmark.table import BenchmarkOrigin, write_table
from site_client.errors import SiteError, TrainingFailed, UnknownArchitecture
from site_client.inference.evaluation import evaluate
from site_client.inference.patients import at_most, by_content, is_synthetic, read_folder, split_stratified
from site_client.inference.report import Heading, page
from site_client.inference.scores import refuse_shared_patients
from site_client.ingest.records import StudyRecord
from site_client.ingest.series.volume import read_volume
from site_client.model.registry import ARCHITECTURES
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.compute import Compute, choose
from site_client.training.data import Loader, Split
from site_client.training.loop import Stopped
from site_client.training.prepare import prepare_all
from site_client.training.ranks import Ranks, of_torchrun
from site_client.training.stages import Stages

DEFAULTS = BenchmarkSettings()
_GIB = 1 << 30
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(context_settings={"show_default": True})
@click.option("--data", type=_FOLDER, help="DICOM with label tables at its top, RSNA's or ours. Without it: phantom.")
@click.option("--arms", "wanted", default="all", help="all, or names of the registry separated by commas.")
@click.option("--out", required=True, type=_FOLDER, help="The table goes here; work in progress to .state below it.")
@click.option("--epochs", default=DEFAULTS.epochs, type=click.IntRange(1, 1000))
@click.option(
    "--stages",
    callback=lambda _context, _option, text: _stages(text),
    help="A,B,C: epochs of the backbone, of the sequence head on cached embeddings, and of both; instead of --epochs, "
    "for arms with a recurrence.",
)
@click.option(
    "--batch", "studies_per_step", default=DEFAULTS.studies_per_step, type=click.IntRange(1, 64), help="Studies."
)
@click.option(
    "--slices-per-study", default=DEFAULTS.slices_per_study, type=click.IntRange(0, 400), help="In a step; 0: all."
)
@click.option(
    "--slices", default=DEFAULTS.slices, type=click.IntRange(0), help="Data set size, whole patients; 0: all."
)
@click.option("--image-size", "image_size_px", default=DEFAULTS.image_size_px, type=click.IntRange(32, 512))
@click.option(
    "--slices-max", default=DEFAULTS.slices_max, type=click.IntRange(4, 400), help="A study; more are averaged."
)
@click.option("--learning-rate", default=DEFAULTS.learning_rate, type=click.FloatRange(0, 1, min_open=True))
@click.option(
    "--validation", "validation_fraction", default=DEFAULTS.validation_fraction, type=click.FloatRange(0.05, 0.5)
)
@click.option("--seed", default=DEFAULTS.seed, type=click.IntRange(0), help="Of weights, split, order and phantom.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="auto", type=click.Choice(["auto", "fp32", "bf16"]), help="auto: the faster one.")
@click.option("--threads", default=0, type=click.IntRange(0), help="0: one a core.")
@click.option("--workers", default=1, type=click.IntRange(1), help="Processes that prepare studies; never the result.")
@click.option("--cache-gib", default=64.0, type=click.FloatRange(0.01), help="Bound of the cache of prepared studies.")
@click.option("--phantom-studies", default=60, type=click.IntRange(4), help="Without --data.")
@click.option(
    "--phantom-profile", default="C", type=click.Choice(["T", "S", "N", "C", "R", "U"]), help="Without --data."
)
@click.option("--phantom-difficulty", default=1.0, type=click.FloatRange(0.2, 3.0), help="Without --data.")
@click.pass_context
def benchmark(
    context: click.Context,
    /,
    data: Path | None,
    wanted: str,
    out: Path,
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "fp32", "bf16"],
    threads: int,
    workers: int,
    cache_gib: float,
    phantom_studies: int,
    phantom_profile: str,
    phantom_difficulty: float,
    **options: object,
) -> None:
    """Train every arm on the same patients, and write the paper's table with intervals and baselines.

    After a stop the same command resumes; finished arms are kept. A failed arm does not affect the others. Under
    torchrun the processes share each step.
    """
    settings = BenchmarkSettings(**options)  # type: ignore[arg-type]  # click checked them against the fields
    arms = _arms(wanted)
    state = out / ".state"
    with of_torchrun(device) as ranks:
        if data is None:
            phantom = phantom_studies, phantom_profile, phantom_difficulty, settings, workers
            _say_of(ranks)(f"phantom: {phantom_studies} studies of profile {phantom_profile}")
            data = ranks.first(lambda: phantom_folder(state, *phantom))
        compute = choose(device, threads, settings.image_size_px, ranks, precision)
        bench, validation_slices = _bench(settings, data, state, compute, workers, cache_gib)
        with _stop_signals() as stopping:
            results = _run_all(bench, arms, stopping)
    if not ranks.leads:
        return
    starter = ["torchrun", "--nproc-per-node", str(ranks.world), "--no-python"] if ranks.world > 1 else []
    command = shlex.join([*starter, "hemofed-site", "benchmark", *(context.obj or [])])
    origin = BenchmarkOrigin(command, is_synthetic(data), validation_slices, torch.__version__, platform.machine())
    click.echo(write_table(out, bench, results, origin))
    _write_pages(out / "evaluations", results, origin)
    if any(isinstance(arm, FailedArm) for arm in results):
        context.exit(1)


def _stages(text: str | None) -> Stages | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and 1 <= int(part) <= 1000 for part in parts):
        raise click.BadParameter(f"expected three numbers of epochs, 1 to 1000, as in 3,10,2, got {text!r}")
    return Stages(*(int(part) for part in parts))


def _arms(wanted: str) -> list[str]:
    names = list(ARCHITECTURES) if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown or not names:
        raise UnknownArchitecture(f"expected arms of {', '.join(ARCHITECTURES)}, got {', '.join(unknown) or 'none'}")
    return list(dict.fromkeys(names))


def _bench(
    settings: BenchmarkSettings,
    data: Path,
    state: Path,
    compute: Compute,
    workers: int,
    cache_gib: float,
) -> tuple[Bench, int]:
    """The bench, and the number of its validation slices."""
    size = (settings.image_size_px, settings.slices_max)
    cache = StudyCache(state / "cache", int(cache_gib * _GIB), *size, read_volume)
    loader = Loader(cache, Augmentation(), compute.device, settings.slices_per_study)

    def prepare() -> tuple[Split, int, int]:
        studies = by_content(read_folder(data, state))
        if settings.slices:
            studies = at_most(studies, settings.slices, settings.seed)
        split = split_stratified(studies, settings.validation_fraction, settings.seed)
        click.echo(f"preparing {len(studies)} studies")
        training, slices = prepare_all(split.training, loader, click.echo, workers)
        validation, validation_slices = prepare_all(split.validation, loader, click.echo, workers)
        return Split(training, validation), slices, validation_slices

    split, slices, validation_slices = compute.ranks.first(prepare)
    refuse_shared_patients(split.training, split.validation)
    digest = settings.digest(_data_hash(split))
    return Bench(settings, digest, split, loader, compute, state, slices), validation_slices


def _data_hash(split: Split) -> str:
    def rows(studies: Sequence[StudyRecord]) -> list[list[str]]:
        return [[s.study_key, s.slice_labels.tobytes().hex(), s.study_labels.tobytes().hex()] for s in studies]

    text = json.dumps([rows(split.training), rows(split.validation)])
    return hashlib.sha256(text.encode()).hexdigest()


def _run_all(bench: Bench, arms: Sequence[str], stopping: Callable[[], bool]) -> list[FinishedArm | FailedArm]:
    results: list[FinishedArm | FailedArm] = []
    ranks = bench.compute.ranks
    for arm in arms:
        try:
            results.append(run_arm(bench, arm, _say_of(ranks), stopping))
        except Stopped:
            if not ranks.leads:
                raise click.exceptions.Exit(1) from None
            raise click.ClickException("stopped; the same command goes on from here") from None
        except (SiteError, RuntimeError, MemoryError, ValueError) as error:
            if ranks.world > 1 and not isinstance(error, TrainingFailed):
                raise  # the other processes do not know of it, so all have to end
            # torch reports a lack of memory and an impossible shape as RuntimeError. The other arms go on.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _say_of(ranks, err=True)(f"{arm}: failed: {reason}")
            results.append(FailedArm(arm, reason))
    return results


def _say_of(ranks: Ranks, *, err: bool = False) -> Callable[[str], None]:
    """The output of the leading process; the others print nothing."""
    return partial(click.echo, err=err) if ranks.leads else lambda _: None


def _write_pages(out: Path, arms: Sequence[FinishedArm | FailedArm], origin: BenchmarkOrigin) -> None:
    """Write one evaluation page an arm, of the validation patients."""
    out.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        if isinstance(arm, FinishedArm):
            losses = [
                ("training", [(epoch.number, epoch.train_loss) for epoch in arm.epochs]),
                ("validation", [(epoch.number, epoch.validation_loss) for epoch in arm.epochs]),
            ]
            evaluation = evaluate(arm.slices, arm.studies)
            patients = f"{evaluation.studies.rows} validation studies of {evaluation.patients} patients."
            heading = Heading(arm.name, arm.digest, patients, origin.synthetic, losses)
            (out / f"{arm.name}.html").write_text(page(heading, evaluation))


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda signum, _: asked.append(signum))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
