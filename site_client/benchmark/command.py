"""The command `hemofed-site benchmark`: every arm on the same patients, in the paper's table."""

import platform
import shlex
import signal
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click
import torch

from site_client.benchmark.document import BenchmarkOrigin
from site_client.benchmark.grid import Grid, read_data, say_of
from site_client.benchmark.results import Results
from site_client.benchmark.settings import BenchmarkSettings, phantom_folder
from site_client.benchmark.table import write_table
from site_client.errors import UnknownArchitecture
from site_client.inference.evaluation import evaluate
from site_client.inference.model_file import load_initial
from site_client.inference.patients import is_synthetic
from site_client.inference.report import Heading, page
from site_client.model.registry import ARCHITECTURES
from site_client.training.compute import choose
from site_client.training.ranks import of_torchrun
from site_client.training.stages import Stages

DEFAULTS = BenchmarkSettings()
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


def _numbers(_context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in str(text).split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"expected whole numbers separated by commas, as in 1,2,3, got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _stages(_context: click.Context, _option: click.Parameter, text: str | None) -> Stages | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and 1 <= int(part) <= 1000 for part in parts):
        raise click.BadParameter(f"expected three numbers of epochs, 1 to 1000, as in 3,10,2, got {text!r}")
    return Stages(*(int(part) for part in parts))


def _config(context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Take the options of a TOML file as defaults: an option on the command line prevails."""
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"expected a TOML file of options, got {path.name!r}, which is none") from error
    names = {
        option.removeprefix("--"): parameter.name
        for parameter in context.command.params
        for option in parameter.opts
        if parameter.name not in (None, "config")
    }
    unknown = table.keys() - names.keys()
    if unknown:
        raise click.BadParameter(f"expected options such as {', '.join(sorted(names)[:4])}, got {sorted(unknown)[0]!r}")
    context.default_map = {names[key]: value for key, value in table.items()}
    return path


@click.command(context_settings={"show_default": True})
@click.option("--config", type=_FILE, is_eager=True, callback=_config, help="A TOML file with options by long name.")
@click.option(
    "--data",
    "folders",
    type=_FOLDER,
    multiple=True,
    help="DICOM with label tables at its top, RSNA's or ours, or a phantom set of npz. Several are sites, which get "
    "rows of their own. Without it: phantom.",
)
@click.option("--arms", "wanted", default="all", help="all, or names of the registry separated by commas.")
@click.option("--out", required=True, type=_FOLDER, help="The table goes here; work in progress to .state below it.")
@click.option("--seeds", default="1", callback=_numbers, help="Of weights, order and augmentation: 1,2,3.")
@click.option("--split-seed", default=DEFAULTS.split_seed, type=click.IntRange(0), help="Of split and phantom.")
@click.option("--folds", default=0, type=click.IntRange(0, 20), help="By patient; 0: one split by --validation.")
@click.option(
    "--patients", "sizes", default="0", callback=_numbers, help="That train; several give a learning curve. 0: all."
)
@click.option("--epochs", default=DEFAULTS.epochs, type=click.IntRange(1, 1000))
@click.option(
    "--evaluate-every", default=DEFAULTS.evaluate_every, type=click.IntRange(1, 1000), help="Epochs; and the last one."
)
@click.option(
    "--stages",
    callback=_stages,
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
    "--trunk-rate",
    default=DEFAULTS.trunk_rate,
    type=click.FloatRange(0, 100, min_open=True),
    help="Factor on it for the backbone.",
)
@click.option("--warm-up", "warm_up_steps", default=DEFAULTS.warm_up_steps, type=click.IntRange(0, 10_000))
@click.option(
    "--ema", "ema_decay", default=DEFAULTS.ema_decay, type=click.FloatRange(0, 1, max_open=True), help="Of weights."
)
@click.option(
    "--patience", default=DEFAULTS.patience, type=click.IntRange(0, 100), help="Of the early stop; 0: no early stop."
)
@click.option(
    "--initial", "initial_files", type=_FILE, multiple=True, help="Of `init-weights`, for the arm of its architecture."
)
@click.option(
    "--validation", "validation_fraction", default=DEFAULTS.validation_fraction, type=click.FloatRange(0.05, 0.5)
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="auto", type=click.Choice(["auto", "fp32", "bf16"]), help="auto: the faster one.")
@click.option("--threads", default=0, type=click.IntRange(0), help="0: one a core.")
@click.option("--workers", default=1, type=click.IntRange(1), help="Processes that prepare studies; never the result.")
@click.option("--cache-gib", default=64.0, type=click.FloatRange(0.01), help="Bound of the cache of prepared studies.")
@click.option("--phantom-studies", default=60, type=click.IntRange(4), help="Of each profile, without --data.")
@click.option("--phantom-profiles", default="C", help="Letters of the site profiles, as in TSNCR; without --data.")
@click.option("--phantom-difficulty", default=1.0, type=click.FloatRange(0.2, 3.0), help="Without --data.")
@click.pass_context
def benchmark(
    context: click.Context,
    /,
    config: Path | None,
    folders: Sequence[Path],
    wanted: str,
    out: Path,
    seeds: Sequence[int],
    folds: int,
    sizes: Sequence[int],
    initial_files: Sequence[Path],
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "fp32", "bf16"],
    threads: int,
    workers: int,
    cache_gib: float,
    phantom_studies: int,
    phantom_profiles: str,
    phantom_difficulty: float,
    **options: object,
) -> None:
    """Train every arm on the same patients, and write the paper's table with intervals and trivial rows.

    After a stop the table shows what there is, and the same command resumes; finished arms are kept. A failed arm does
    not affect the others. Under torchrun the processes share each step. OUT/benchmark.jsonl gets a line an evaluation.
    """
    settings = BenchmarkSettings(folds=_checked_folds(folds), **options)  # type: ignore[arg-type]  # click checked them
    arms = _arms(wanted)
    state = out / ".state"
    with of_torchrun(device) as ranks:
        say = say_of(ranks)
        if not folders:
            phantom = phantom_studies, phantom_profiles, phantom_difficulty, settings, workers
            say(f"phantom: {phantom_studies} studies of each profile of {phantom_profiles}")
            made = ranks.first(lambda: phantom_folder(state, *phantom))
            folders = [made / profile for profile in dict.fromkeys(phantom_profiles)]
        compute = choose(device, threads, settings.image_size_px, ranks, precision)
        data = read_data(settings, folders, state, compute, workers, cache_gib)
        initial = tuple(load_initial(path) for path in initial_files)
        grid = Grid(settings, seeds, sizes, data, compute, state, out / "benchmark.jsonl", initial)
        with _stop_signals() as stopping:
            results = grid.run(arms, stopping)
    if not ranks.leads:
        return
    starter = ["torchrun", "--nproc-per-node", str(ranks.world), "--no-python"] if ranks.world > 1 else []
    command = shlex.join([*starter, "hemofed-site", "benchmark", *(context.obj or [])])
    origin = BenchmarkOrigin(command, all(map(is_synthetic, folders)), torch.__version__, platform.machine())
    click.echo(write_table(out, grid.benches, results, origin))
    _write_pages(out / "evaluations", results, origin)
    if results.stopped:
        raise click.ClickException("stopped; the table shows what there is, and the same command goes on from here")
    if results.failed:
        context.exit(1)


def _checked_folds(folds: int) -> int:
    if folds == 1:
        raise click.UsageError("expected --folds 0 or from 2 on, got 1; one fold would leave no patient to train on")
    return folds


def _arms(wanted: str) -> list[str]:
    names = list(ARCHITECTURES) if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown or not names:
        raise UnknownArchitecture(f"expected arms of {', '.join(ARCHITECTURES)}, got {', '.join(unknown) or 'none'}")
    return list(dict.fromkeys(names))


def _write_pages(out: Path, results: Results, origin: BenchmarkOrigin) -> None:
    """Write one evaluation page an arm, of the held-out patients and the first seed."""
    out.mkdir(parents=True, exist_ok=True)
    for arm in results.arms:
        (run, *_) = arm.runs
        losses = [
            ("training", [(epoch.number, epoch.train_loss) for epoch in run.epochs]),
            ("validation", [(epoch.number, epoch.validation_loss) for epoch in run.epochs]),
        ]
        evaluation = evaluate(run.slices, run.studies)
        patients = f"{evaluation.studies.rows} validation studies of {evaluation.patients} patients."
        heading = Heading(arm.name, run.digest, patients, origin.synthetic, losses if run.epochs else ())
        name = arm.name.replace(" + ", "-and-").replace(",", "").replace(" ", "-")
        (out / f"{name}.html").write_text(page(heading, evaluation))


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
