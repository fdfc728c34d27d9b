"""How soon training stands still when somebody else needs the machine: a real trainer, stress-ng as the radiologist.

    python tests/benchmarks/pause.py --json pause.json --svg docs/pause_latency.svg

The trainer is `hemofed-site trainer` with its own worker, threads, idle gate, sample interval and limits; only the
waits before and after a pause are short, or the trials would take days. In every trial stress-ng takes some cores,
as another user, at a random moment of the gate's interval. Two latencies:

from_start: from before stress-ng is executed to the last growth of the worker's CPU time (of all its threads, looked at
every few ms).
from_sample: from the gate's look that found the machine busy to the worker standing still, as the trainer logs it.

Needs stress-ng and a calm machine: what others run would hold the trainer, as it should.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.manifest import load_model
from federation.plan import (
    CohortBounds,
    Deadlines,
    Encoding,
    Inputs,
    LocalTraining,
    ServerKind,
    ServerOptimizer,
    TrainingPlan,
    sign_plan,
)
from federation.vocabulary import Metric

from site_client.benchmark.svg import COLORS, DASHES, as_svg, style
from site_client.model.initial_weights import write_fresh
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes
from site_client.spool import AgentSide, Job, RunId
from site_client.typed_json import Digest

LIMIT_S = 1.0  # docs/HOSPITAL.md promises it, from the first busy sample
LOOK_S = 0.004
STILL_S = 1.0  # without growth this long, it stands still
GIVE_UP_S = 60.0
CALM_S = 120.0  # to be found calm enough to train
SITE_TOML = """
name = "pause"
[folders]
state = "state"
spool = "spool"
cache = "cache"
export = "data/dicom"
labels = ["data"]
[policy]
studies_min = 4
[ingest]
settle_s = 0
slices_min = 8
[training]
device = "cpu"
[idle]
start_delay_s = 1
calm_s = 2
"""


@dataclass(frozen=True)
class Trial:
    """Seconds. `stress`: how many cores were wanted."""

    stress: int
    from_start_s: float
    from_sample_s: float


class Trainer:
    """The service, and the worker it has."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "site_client.cli", "trainer", "--config", str(folder / "site.toml")]
        self.service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.held_s: list[float] = []
        threading.Thread(target=self._listen, daemon=True).start()
        self._spool = AgentSide(folder / "spool")

    def _listen(self) -> None:
        # Popen was given a pipe for standard error.
        assert self.service.stderr is not None
        for line in self.service.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "worker suspended":
                self.held_s.append(event["after_ms"] / 1000)

    def training_worker(self) -> int:
        """Waits until it is in the middle of a round for a while, any part of the gate's interval more or less."""
        ends_at = time.monotonic() + CALM_S
        while time.monotonic() < ends_at:
            if self._trains():
                time.sleep(1.5 + random.random())
                if self._trains():
                    pid = self.service.pid
                    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
            time.sleep(0.1)
        raise TimeoutError(f"the trainer did not train within {CALM_S:.0f} s; does something else use this machine?")

    def _trains(self) -> bool:
        """By its status, at most a second old."""
        status = self._spool.status()
        return status is not None and status.state == "SITE_TRAINING" and bool(status.step)


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, which the kernel counts in nanoseconds (Documentation/scheduler)."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def trial(trainer: Trainer, cores: int) -> Trial:
    """One arrival of the radiologist, from calm to the next calm."""
    worker = trainer.training_worker()
    pauses = len(trainer.held_s)
    began = last = time.monotonic()
    with stress(cores) as radiologist:
        used_ns = cpu_ns(worker)
        while (now := time.monotonic()) - last < STILL_S or len(trainer.held_s) == pauses:
            if now - began > GIVE_UP_S or radiologist.poll() is not None:
                raise TimeoutError(f"training did not stop within {GIVE_UP_S:.0f} s, or stress-ng ended by itself")
            if (current_ns := cpu_ns(worker)) > used_ns:
                used_ns, last = current_ns, now
            time.sleep(LOOK_S)
    return Trial(cores, last - began, trainer.held_s[-1])


@contextmanager
def stress(cores: int) -> Iterator["subprocess.Popen[bytes]"]:
    """So many busy loops of another user, if root asks; ends them."""
    user = "nobody" if os.geteuid() == 0 else None
    command = ["stress-ng", "--cpu", str(cores), "--quiet", "--temp-path", tempfile.gettempdir()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/", user=user) as process:
        try:
            yield process
        finally:
            process.terminate()


def prepare(folder: Path, size_px: int) -> None:
    """A hospital with a job that lasts longer than all trials."""
    make_set(Order("C", 8, 5, Wishes(size_px, 5.0, "balanced"), None, False), folder / "data")
    (folder / "site.toml").write_text(SITE_TOML)
    model = folder / "initial.safetensors"
    write_fresh("lite", 1, model)
    initial = load_model(model)
    plan = TrainingPlan(
        run_id=bytes(16),
        name="pause",
        purpose="",
        architecture="lite",
        manifest=initial.manifest,
        initial_model_digest=initial.digest,
        rounds=1,
        inputs=Inputs(size_px, 40),
        training=LocalTraining(100, 0.001, 0.0, 0.0, 1, 2),
        server=ServerOptimizer(ServerKind.FEDAVG, 1.0, 0.0, 0.0, 0.0),
        cohort=CohortBounds(3, 3, 64),
        deadlines=Deadlines(36_000, 60),
        encoding=Encoding(10.0, 6, 100, bytes(32)),
        metrics=(Metric.LOSS, Metric.HISTOGRAMS),
    )
    signed = sign_plan(plan, Ed25519PrivateKey.generate()).SerializeToString()
    AgentSide(folder / "spool").offer_job(
        Job(RunId(bytes(16)), 1, False, Digest(initial.digest), Digest(plan.digest)), signed, model
    )


# --- figures ------------------------------------------------------------------------------------------------------

LATENCIES = (("from_start_s", "from the start of stress-ng"), ("from_sample_s", "from the first busy sample"))


def summary(trials: list[Trial]) -> dict[str, dict[str, dict[str, float]]]:
    """By cores wanted and latency: the distribution, and the slowest as a share of the limit."""
    return {
        str(cores): {
            name: distribution([getattr(one, name) for one in trials if one.stress == cores]) for name, _ in LATENCIES
        }
        for cores in sorted({one.stress for one in trials})
    }


def distribution(values: list[float]) -> dict[str, float]:
    """Of at least two values; p90 and p95 are interpolated between order statistics."""
    parts = statistics.quantiles(values, n=100, method="inclusive")
    found = {"min": min(values), "median": parts[49], "p90": parts[89], "p95": parts[94], "max": max(values)}
    return {
        "trials": len(values),
        **{name: round(value, 3) for name, value in found.items()},
        "max_to_limit": round(max(values) / LIMIT_S, 3),
        "within_limit": round(sum(value <= LIMIT_S for value in values) / len(values), 3),
    }


def draw(trials: list[Trial]) -> str:
    """Draw the share of trials in which training stood still in time: a panel a latency, a line a number of cores."""
    amounts = sorted({trial.stress for trial in trials})
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.8, 3.4))
        panels = figure.subplots(1, len(LATENCIES), sharey=True)
        for axes, (name, title) in zip(panels, LATENCIES, strict=True):
            for index, cores in enumerate(amounts):
                axes.ecdf(
                    [getattr(trial, name) for trial in trials if trial.stress == cores],
                    label=f"{cores} of {os.cpu_count()} cores wanted",
                    color=COLORS[index % len(COLORS)],
                    linestyle=DASHES[index % len(DASHES)],
                )
            axes.axvline(LIMIT_S, color="#555555", linestyle=(0, (1, 1)), label=f"limit, {LIMIT_S:g} s")
            axes.set_xlim(left=0)
            axes.set_xlabel(f"seconds {title}")
        panels[0].set_ylabel("share of trials")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(amounts) + 1)
        figure.suptitle("Training stands still")
        description = "Cumulative distribution of the seconds until training stands still; figures in docs/HOSPITAL.md"
        return as_svg(figure, description)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = os.cpu_count() or 1
    parser.add_argument("--trials", type=int, default=50, help="for each number of cores, at least 2")
    parser.add_argument("--stress", type=int, nargs="+", default=sorted({1, cores}), help="cores that are wanted")
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--svg", type=Path, help="draw them here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hemofed-benchmark-") as name:
        prepare(Path(name), options.size_px)
        trials = measure(Trainer(Path(name)), options.trials, options.stress)
    figures = {
        "cores": cores,
        "kernel": platform.release(),
        "size_px": options.size_px,
        "limit_s": LIMIT_S,
        "latency_s": summary(trials),
        "trials": [asdict(one) for one in trials],
    }
    print(json.dumps(figures["latency_s"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(draw(trials))


def measure(trainer: Trainer, trials: int, amounts: list[int]) -> list[Trial]:
    """Every amount in turn, so that all meet the same weather; the trainer is ended afterwards."""
    try:
        return [trial(trainer, cores) for _ in range(trials) for cores in amounts]
    finally:
        trainer.service.terminate()
        trainer.service.wait()


if __name__ == "__main__":
    main()
