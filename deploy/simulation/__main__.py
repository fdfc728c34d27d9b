"""./deploy/simulate: federated training compared with one pool of all patients and with each site by itself."""

import platform
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import torch
from federation.errors import PlanRefused

from deploy.simulation.arms import Device, TaskContext
from deploy.simulation.patients import make_sites
from deploy.simulation.pools import RayMissing, start_pool
from deploy.simulation.privacy_reports import audit_report, heads_report
from deploy.simulation.report import SimulationOrigin, write_report
from deploy.simulation.seeds import SeedResult, result_of
from deploy.simulation.settings import SimulationSettings
from deploy.simulation.summary import summarize
from site_client.model.registry import ARCHITECTURES

DEFAULTS = SimulationSettings()
MIXES = click.Choice(["profile", "rsna", "natural", "balanced"])


@click.command(context_settings={"show_default": True})
@click.option(
    "--architecture", default=DEFAULTS.architecture, type=click.Choice(sorted(ARCHITECTURES)), help="Network."
)
@click.option(
    "--studies", default=DEFAULTS.studies, type=click.IntRange(4), help="Of a site, for training and validation."
)
@click.option(
    "--test-studies", default=DEFAULTS.test_studies, type=click.IntRange(4), help="Of a site, for the evaluation."
)
@click.option("--rounds", default=DEFAULTS.rounds, type=click.IntRange(1, 1000))
@click.option("--epochs", default=DEFAULTS.epochs, type=click.IntRange(1, 100), help="Local passes a round.")
@click.option("--seeds", default=3, type=click.IntRange(1, 100), help="Trainings, with seeds 1, 2, ...")
@click.option("--patients-seed", default=DEFAULTS.patients_seed, type=click.IntRange(0), help="Of the phantoms.")
@click.option("--image-size", "image_size_px", default=DEFAULTS.image_size_px, type=click.IntRange(64, 512))
@click.option("--slices-max", default=DEFAULTS.slices_max, type=click.IntRange(8, 400))
@click.option("--learning-rate", default=DEFAULTS.learning_rate, type=click.FloatRange(0, 1, min_open=True))
@click.option("--studies-per-step", default=DEFAULTS.studies_per_step, type=click.IntRange(1, 64))
@click.option("--slices-per-study", default=DEFAULTS.slices_per_study, type=click.IntRange(0, 400), help="0: all.")
@click.option("--prevalence", default=DEFAULTS.prevalence, type=MIXES, help="Mix of training patients.")
@click.option("--test-prevalence", default=DEFAULTS.test_prevalence, type=MIXES, help="Mix of test patients.")
@click.option("--difficulty", default=DEFAULTS.difficulty, type=click.FloatRange(0.2, 3.0), help="Below 1: easier.")
@click.option("--server", default=DEFAULTS.server, type=click.Choice(["fedavg", "fedavgm"]))
@click.option("--momentum", default=DEFAULTS.momentum, type=click.FloatRange(0, 1, max_open=True), help="Of fedavgm.")
@click.option("--bits", default=DEFAULTS.bits, type=int, help="Bits a parameter before masking: 4, 5, 6 or 8.")
@click.option("--clip-norm", default=DEFAULTS.clip_norm, type=click.FloatRange(0, 1000, min_open=True))
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--workers", default=1, type=click.IntRange(1), help="Processes; never the result.")
@click.option("--ray", is_flag=True, help="Run the tasks on Ray (RAY_ADDRESS: a cluster).")
@click.option(
    "--state",
    default=Path(".demo/simulation"),
    type=click.Path(path_type=Path),
    help="Prepared studies, finished seeds.",
)
@click.option("--audit", is_flag=True, help="Audit the noise of a private round instead; takes a minute.")
@click.option("--private-heads", is_flag=True, help="Train heads with and without noise on a frozen trunk instead.")
@click.option("--out", default=Path("simulation"), type=click.Path(path_type=Path), help="Folder for the report.")
def main(
    seeds: int,
    device: Device,
    workers: int,
    ray: bool,
    state: Path,
    audit: bool,
    private_heads: bool,
    out: Path,
    **options: object,
) -> None:
    """Train a network on pooled, local and federated synthetic patients of six sites.

    Writes simulation.md, simulation.json and simulation.svg to --out. After a stop the same command resumes with the
    unfinished seed.
    A result on these patients is never clinical evidence.
    """
    command = shlex.join(["./deploy/simulate", *sys.argv[1:]])
    if audit:
        click.echo(audit_report(out, command))
        return
    settings = SimulationSettings(**options)  # type: ignore[arg-type]  # click checked them against the fields
    try:
        settings.check()
    except PlanRefused as error:
        raise click.ClickException(str(error)) from None
    start = time.monotonic()
    context = TaskContext(settings, state / "cache", device)
    folder = state / settings.digest
    results: list[SeedResult] = []
    try:
        with start_pool(workers, ray) as pool:
            sites = make_sites(settings, context.cache, pool)
            click.echo(f"{time.monotonic() - start:7.0f} s  patients are prepared")
            if private_heads:
                click.echo(heads_report(out, context, sites, seeds, command))
                return
            # Seeds run in parallel when there are workers for them.
            with ThreadPoolExecutor(seeds if workers > 1 or ray else 1) as threads:
                run_seed = partial(result_of, context, sites=sites, pool=pool, folder=folder)
                for result in threads.map(run_seed, range(1, seeds + 1)):
                    results.append(result)
                    by_arm = summarize([result], draws=2).auc["sites"]
                    figures = ", ".join(f"{arm} {figure.value:.3f}" for arm, figure in by_arm.items())
                    click.echo(f"{time.monotonic() - start:7.0f} s  seed {result.seed}: {figures}")
    except RayMissing as error:
        raise click.ClickException(str(error)) from error
    summary = summarize(results)
    origin = SimulationOrigin(torch.__version__, context.compute().name, platform.machine(), workers, command)
    write_report(out, settings, results, summary, origin, sites)
    click.echo((out / "simulation.md").read_text())


if __name__ == "__main__":
    main()
