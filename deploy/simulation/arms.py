"""The arms of the comparison: all patients pooled (central), every site by itself (local), and the federation.

All arms use the production training loop, start from the same weights and see every study equally often. The federated
arm does all that production does to an update except the masks, which cancel in the sum: clip, weight, rotate,
quantize, pack, add as uint64 words, decode, and `chain.next_model`.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from federation.chain import next_model
from federation.encoding import DecodedSum, Layout, SiteHeader, clip, decode_sum, encode
from federation.labels import ANY
from federation.manifest import Model
from federation.plan import TrainingPlan
from numpy.typing import NDArray

from deploy.simulation.patients import SimulatedSite, study_cache
from deploy.simulation.settings import SimulationSettings, initial_model, plan_of
from site_client.ingest.records import StudyRecord
from site_client.model.network import Network
from site_client.model.registry import build, load_weights, weights_of
from site_client.training.augment import Augmentation
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import Compute, choose
from site_client.training.data import Loader
from site_client.training.histogram_auc import auc_of_histogram
from site_client.training.loop import TrainingProgress, train
from site_client.training.score_histograms import slice_histograms
from site_client.training.streams import RandomStreams

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class TaskContext:
    """All that a task needs beside its model and studies; it can be pickled."""

    settings: SimulationSettings
    cache: Path
    device: Device

    def compute(self) -> Compute:
        """Choose device and precision in this process, with one thread."""
        return choose(self.device, 1, self.settings.image_size_px)

    def loader(self) -> Loader:
        """Return a loader over the prepared studies."""
        cache = study_cache(self.settings, self.cache)
        return Loader(cache, Augmentation(), self.compute().device, self.settings.slices_per_study)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained arm.

    Attributes:
        model: The last one.
        curve: AUC of `any` on validation slices after 0, 1, ... passes; for the federation after 0, 1, ... rounds.
        clipped: Updates that were clipped, by round.
    """

    model: Model
    curve: tuple[float, ...]
    clipped: tuple[int, ...] = ()


def federate(context: TaskContext, seed: int, sites: list[SimulatedSite], pool: Executor) -> Trained:
    """Run all rounds of training, and an evaluation-only round at the end as in production.

    Args:
        context: See `TaskContext`.
        seed: Of weights, order, augmentation and rounding.
        sites: The federated ones.
        pool: Where the sites' tasks run.
    """
    settings = context.settings
    # A cap that cuts no site's weight, so that each weighs as many studies as it has, as in the pooled arm.
    plan = plan_of(settings, seed, max(len(site.training) for site in sites))
    model = initial_model(settings, seed)
    curve, clipped = [], []
    for number in range(1, plan.evaluation_round + 1):
        decoded = _round(context, plan, model, number, sites, pool)
        negative, positive = decoded.header.histograms[ANY]
        curve.append(auc_of_histogram(negative, positive))
        clipped.append(decoded.header.clipped)
        model = next_model(plan, model, decoded)
    return Trained(model, tuple(curve), tuple(clipped[:-1]))  # the last round evaluates and clips nothing


def _round(
    context: TaskContext, plan: TrainingPlan, model: Model, number: int, sites: list[SimulatedSite], pool: Executor
) -> DecodedSum:
    """The decoded sum of one round. Words are added modulo 2^64, as under masks."""
    layout = Layout.of_round(plan, number)
    uploads = [pool.submit(_upload, context, plan, layout, model, number, site) for site in sites]
    total = np.zeros(layout.words, np.uint64)
    for upload in uploads:
        total += upload.result()
    return decode_sum(layout, total, len(sites))


def _upload(
    context: TaskContext, plan: TrainingPlan, layout: Layout, model: Model, number: int, site: SimulatedSite
) -> NDArray[np.uint64]:
    """The encoded update of one site, before masking."""
    net, loader, compute = network_of(context, model), context.loader(), context.compute()
    streams = RandomStreams(plan.run_id, number, site.name)
    histograms = _histograms(context, net, site.validation, loader)
    header = SiteHeader(len(site.training), 0.0, 0, False, histograms)
    rng = streams.generator("rounding")
    if layout.parameters == 0:
        return encode(layout, None, header, rng)
    with _no_checkpoints() as checkpoints:
        source = loader.for_training(net, site.training)
        end = train(net, plan.training, site.training, source, streams, compute, checkpoints, lambda _: None, _never)
    delta, clipped = clip(model.manifest.flatten(weights_of(net)) - model.weights, plan.encoding.clip_norm)
    header = replace(header, loss_sum=end.loss_sum, example_count=end.position, clipped=clipped)
    return encode(layout, delta, header, rng)


def train_pooled(context: TaskContext, seed: int, name: str, sites: list[SimulatedSite]) -> Trained:
    """Train on the pooled studies of some sites: of one for a local arm, of all for the central arm.

    Args:
        context: See `TaskContext`.
        seed: Of weights, order and augmentation.
        name: Of the arm.
        sites: Whose studies are pooled.
    """
    training = [study for site in sites for study in site.training]
    validation = [study for site in sites for study in site.validation]
    settings = context.settings
    model = initial_model(settings, seed)
    net, loader = network_of(context, model), context.loader()
    plan = settings.training(settings.passes)
    steps_per_pass = math.ceil(len(training) / plan.studies_per_step)
    curve = [_auc(context, net, validation, loader)]

    def after_step(at: TrainingProgress) -> None:
        if at.step % steps_per_pass == 0:
            curve.append(_auc(context, net, validation, loader))
            net.train()  # the evaluation has left it in eval mode

    streams = RandomStreams(plan_of(settings, seed, 1).run_id, 0, name)
    with _no_checkpoints() as checkpoints:
        source = loader.for_training(net, training)
        train(net, plan, training, source, streams, context.compute(), checkpoints, after_step, _never)
    return Trained(Model(model.manifest, model.manifest.flatten(weights_of(net)), ()), tuple(curve))


def network_of(context: TaskContext, model: Model) -> Network:
    """Build the network of a model, on the task's device."""
    net = build(context.settings.architecture, seed=0)  # any seed: the model replaces all weights
    load_weights(net, model.manifest.unflatten(model.weights))
    return context.compute().place(net)


def _auc(context: TaskContext, net: Network, validation: list[StudyRecord], loader: Loader) -> float:
    negative, positive = _histograms(context, net, validation, loader)[ANY]
    return auc_of_histogram(negative, positive)


def _histograms(
    context: TaskContext, net: Network, validation: Sequence[StudyRecord], loader: Loader
) -> NDArray[np.int64]:
    with _no_checkpoints() as checkpoints:
        evaluation = slice_histograms(
            net, validation, loader, context.compute(), checkpoints, lambda done, of: None, _never
        )
        return evaluation.histograms


@contextmanager
def _no_checkpoints() -> Iterator[Checkpoints]:
    """Checkpoints that are never due: a simulation resumes seed by seed."""
    with tempfile.TemporaryDirectory(prefix="hemofed-simulation-") as folder:
        yield Checkpoints(Path(folder), CheckpointIdentity("", "", 0, "", "", ""), every_s=math.inf)


def _never() -> bool:
    return False
