"""The gain of the caches and the fast paths of training, as JSON: ratios of one run.

python tests/benchmarks/training.py [--part loading loop precision stages] [--arm lite] [--size-px 256] [--studies 4]

loading: an epoch from the cache against one that decodes DICOM with pydicom, and against one that also prepares it.
loop: studies a second of the training loop over the cache against those of a bare loop over tensors in memory.
precision: channels_last, and with it bf16 where the processor has it, against a plain fp32 step of densenet121-gru.
stages: an epoch of the sequence head over cached embeddings against an epoch over pixels.

Processor time of one thread. The variants take turns, and the figures are the least times of the repeats.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pydicom
import torch
from federation.plan import LocalTraining

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.records import StudyRecord
from site_client.ingest.rules import Rules
from site_client.ingest.series.volume import read_volume
from site_client.model.inputs import prepare
from site_client.model.network import CHANNELS, GEOMETRY, Network, SequenceNet
from site_client.model.registry import build
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes
from site_client.training.array_cache import ArrayCache
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import Compute, choose
from site_client.training.data import Loader, Sample, Source
from site_client.training.embeddings import EmbeddingLoader
from site_client.training.loop import train
from site_client.training.loss import training_loss
from site_client.training.sampling import epoch_order
from site_client.training.streams import RandomStreams

PLAN = LocalTraining(
    epochs=1, learning_rate=1e-3, weight_decay=1e-4, proximal_mu=0.0, studies_per_step=1, studies_min=1
)
STREAMS = RandomStreams(bytes(16), 1, "benchmark")
SLICES_MAX = 64
STILL = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"loading": loading, "loop": loop, "precision": precision, "stages": stages}
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--arm", default="lite", help="of the parts loop and stages")
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--studies", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hemofed-benchmark-") as folder:
        print(json.dumps({name: parts[name](arguments, Path(folder)) for name in arguments.part}, indent=1))


# --- loading ------------------------------------------------------------------------------------------------------


def loading(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    studies = delivered(arguments, folder)
    cache = cache_of(arguments, folder)
    series = [study.series for study in studies]
    for record in series:
        cache.get(record)
    seconds = best_s(
        {
            "cache_s": lambda: [cache.get(record) for record in series],
            "pydicom_s": lambda: [pydicom.dcmread(file).pixel_array for record in series for file in record.files],
            "pipeline_s": lambda: [prepare(read_volume(record), arguments.size_px, SLICES_MAX) for record in series],
        },
        arguments.repeats,
    )
    return {
        "studies": len(studies),
        "files": sum(len(record.files) for record in series),
        **rounded(seconds),
        "cache_times_faster_than_pydicom": round(seconds["pydicom_s"] / seconds["cache_s"], 1),
        "cache_times_faster_than_pipeline": round(seconds["pipeline_s"] / seconds["cache_s"], 1),
    }


def delivered(arguments: argparse.Namespace, folder: Path) -> list[StudyRecord]:
    """Return phantom studies as a hospital exports them, uncompressed, read through the catalog."""
    out = folder / "set"
    if not out.exists():
        make_set(Order("C", arguments.studies, 7, Wishes(size_px=arguments.size_px, prevalence="balanced")), out)
    database = folder / "catalog.sqlite"
    with closing(Catalog.open(database, SiteSecret(bytes(range(32))), Rules(settle_s=0))) as catalog:
        catalog.scan(out / "dicom", [out / "labels_slices.csv", out / "labels_studies.csv"])
        return list(catalog.dataset().studies)


def cache_of(arguments: argparse.Namespace, folder: Path) -> StudyCache:
    return StudyCache(folder / f"cache-{arguments.size_px}", 1 << 34, arguments.size_px, SLICES_MAX, read_volume)


# --- the loop -----------------------------------------------------------------------------------------------------


def loop(arguments: argparse.Namespace, folder: Path) -> dict[str, float | str]:
    """Compare the loop with a bare one. Neither augments, so the cost of drawing noise does not count."""
    studies, compute = delivered(arguments, folder), choose("cpu", 1, arguments.size_px)
    loader = Loader(cache_of(arguments, folder), STILL, compute.device)
    with_cache, bare = build(arguments.arm, 0), build(arguments.arm, 0)
    order = epoch_order(studies, STREAMS.generator("order", 0))
    samples = [loader.sample(studies[index], None) for index in order]
    raw = Unaugmented(loader)
    seconds = best_s(
        {
            "loop_s": lambda: epoch_of(with_cache, studies, raw, compute),
            "bare_s": lambda: bare_epoch(bare, samples, compute),
        },
        arguments.repeats,
    )
    return {
        "arm": arguments.arm,
        "size_px": arguments.size_px,
        **rounded(seconds),
        "speed_of_the_bare_loop": round(seconds["bare_s"] / seconds["loop_s"], 3),
    }


class Unaugmented:
    """A source that reads from the cache and augments nothing."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        return self._source.sample(study, None)


def epoch_of(net: Network, studies: list[StudyRecord], source: Source, compute: Compute) -> None:
    with tempfile.TemporaryDirectory() as nowhere:
        none = Checkpoints(Path(nowhere), CheckpointIdentity("train", "", 0, "", "", ""), every_s=math.inf)
        train(net, PLAN, studies, source, STREAMS, compute, none, lambda at: None, lambda: False)


def bare_epoch(net: torch.nn.Module, samples: list[Sample], compute: Compute) -> None:
    """Run an epoch of this network, loss and optimizer, and nothing else."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=PLAN.learning_rate, weight_decay=PLAN.weight_decay)
    net.train()
    for sample in samples:
        optimizer.zero_grad()
        with compute.autocast():
            output = net(sample.x, sample.mask, sample.geometry)
        torch.autograd.backward(training_loss(output, sample).sum())
        torch.nn.utils.clip_grad_norm_(net.parameters(), PLAN.gradient_norm_max)
        optimizer.step()


def stages(arguments: argparse.Namespace, folder: Path) -> dict[str, float | str]:
    studies, compute = delivered(arguments, folder), choose("cpu", 1, arguments.size_px)
    loader = Loader(cache_of(arguments, folder), STILL, compute.device)
    net = build(arguments.arm, 0)
    # only a SequenceNet has this stage
    assert isinstance(net, SequenceNet)
    cached = EmbeddingLoader(net.eval(), loader, compute, ArrayCache(folder / "embeddings", 1 << 34))
    for study in studies:
        cached.sample(study, None)
    seconds = best_s(
        {
            "pixels_s": lambda: epoch_of(net, studies, Unaugmented(loader), compute),
            "embeddings_s": lambda: epoch_of(net.reader, studies, cached, compute),
        },
        arguments.repeats,
    )
    faster = seconds["pixels_s"] / seconds["embeddings_s"]
    return {"arm": arguments.arm, **rounded(seconds), "sequence_head_epoch_times_faster": round(faster, 1)}


# --- precision ----------------------------------------------------------------------------------------------------


def precision(arguments: argparse.Namespace, folder: Path) -> dict[str, float | str | None]:
    """Time forward and backward of four slices without recomputation, so that only layout and precision differ."""
    has_bf16 = choose("cpu", 1, 256).bf16
    ways = {"plain_s": step(fast=False, bf16=False), "channels_last_s": step(fast=True, bf16=False)}
    if has_bf16:
        ways["bf16_s"] = step(fast=True, bf16=True)
    seconds = best_s(ways, arguments.repeats)
    return {
        "processor": str(torch.cpu.get_capabilities().get("cpu_name")),
        **rounded(seconds),
        "channels_last_times_faster": round(seconds["plain_s"] / seconds["channels_last_s"], 2),
        "bf16_times_faster": round(seconds["plain_s"] / seconds["bf16_s"], 2) if has_bf16 else None,
    }


def step(*, fast: bool, bf16: bool) -> Callable[[], object]:
    net = build("densenet121-gru", 0)
    # the registry has a SequenceNet under this name
    assert isinstance(net, SequenceNet)
    x, mask, geometry = torch.randn(1, 4, CHANNELS, 256, 256), torch.ones(1, 4).bool(), torch.zeros(1, 4, GEOMETRY)
    compute = Compute(torch.device("cpu"), bf16)
    if not fast:
        for parameter in net.parameters():
            parameter.data = parameter.data.contiguous()

    def plain() -> None:
        output = net.reader(net.backbone(x[0]).unsqueeze(0), mask, geometry)
        output.slice_logits.square().mean().backward()

    def production() -> None:
        with compute.autocast():
            output = net(x, mask, geometry)
        output.slice_logits.square().mean().backward()

    return production if fast else plain


def best_s(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            start = processor_s()
            work()
            seconds[name].append(processor_s() - start)
    return {name: min(times) for name, times in seconds.items()}


def processor_s() -> float:
    """Processor time of this process and of those that read files for it."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(spent.user + spent.system for spent in times)


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in seconds.items()}


if __name__ == "__main__":
    main()
