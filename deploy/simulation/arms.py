"""The arms of the comparison: all patients in one place, every site alone, and the federation.

One training loop, the production one, serves all of them. The federated arm goes through everything production does to
an update but the masks, which cancel in the sum: clip, weigh, rotate, quantize, pack, add as uint64 words, open, and
`chain.next_model`. All start from the same weights and see every study equally often.
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
from site_client.training.loop import TrainingProgress, train
from site_client.training.score_histograms import auc_of_histogram, slice_histograms
from site_client.training.streams import RandomStreams

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ArmPosition:
    """Where a task finds its studies and does its arithmetic."""

    settings: SimulationSettings
    cache: Path
    device: Device

    def compute(self) -> Compute:
        return choose(self.device, 1, self.settings.image_size_px)

    def loader(self) -> Loader:
        cache = study_cache(self.settings, self.cache)
        return Loader(cache, Augmentation(), self.compute().device, self.settings.slices_per_study)


@dataclass(frozen=True, eq=False)
class Trained:
    """A last model, and the AUC of `any` on validation slices after 0, 1, ... passes. clipped: updates cut, a round."""

    model: Model
    curve: tuple[float, ...]
    clipped: tuple[int, ...] = ()


def federate(place: ArmPosition, seed: int, sites: list[SimulatedSite], pool: Executor) -> Trained:
    """Rounds of training, and one that judges the last model, as production ends a run."""
    settings = place.settings
    plan = plan_of(settings, seed, max(len(site.training) for site in sites))
    model = initial_model(settings, seed)
    curve, clipped = [], []
    for number in range(1, plan.evaluation_round + 1):
        opened = _round(place, plan, model, number, sites, pool)
        negative, positive = opened.header.histograms[ANY]
        curve.append(auc_of_histogram(negative, positive))
        clipped.append(opened.header.clipped)
        model = next_model(plan, model, opened)
    return Trained(model, tuple(curve), tuple(clipped[:-1]))


def _round(
    place: ArmPosition, plan: TrainingPlan, model: Model, number: int, sites: list[SimulatedSite], pool: Executor
) -> DecodedSum:
    """One round's sum, opened. Words are added modulo 2^64, as under masks."""
    layout = Layout.of_round(plan, number)
    uploads = [pool.submit(_upload, place, plan, layout, model, number, site) for site in sites]
    total = np.zeros(layout.words, np.uint64)
    for upload in uploads:
        total += upload.result()
    return decode_sum(layout, total, len(sites))


def _upload(
    place: ArmPosition, plan: TrainingPlan, layout: Layout, model: Model, number: int, site: SimulatedSite
) -> NDArray[np.uint64]:
    """What one site of the cohort sends, before masking."""
    net, loader, compute = network_of(place, model), place.loader(), place.compute()
    streams = RandomStreams(plan.run_id, number, site.name)
    histograms = _histograms(place, net, site.validation, loader)
    header = SiteHeader(len(site.training), 0.0, 0, False, histograms)
    rng = streams.generator("rounding")
    if layout.parameters == 0:
        return encode(layout, None, header, rng)
    with _no_checkpoints() as checkpoints:
        lessons = loader.for_training(net)
        end = train(net, plan.training, site.training, lessons, streams, compute, checkpoints, lambda _: None, _never)
    delta, clipped = clip(model.manifest.flatten(weights_of(net)) - model.weights, plan.encoding.clip_norm)
    header = replace(header, loss_sum=end.loss_sum, example_count=end.position, clipped=clipped)
    return encode(layout, delta, header, rng)


def alone(place: ArmPosition, seed: int, name: str, sites: list[SimulatedSite]) -> Trained:
    """One training on the studies of `sites` together: a single site, or all of them for the central arm."""
    training = [study for site in sites for study in site.training]
    validation = [study for site in sites for study in site.validation]
    model = initial_model(place.settings, seed)
    net, loader = network_of(place, model), place.loader()
    settings = place.settings
    plan = settings.training(settings.passes)
    steps_a_pass = math.ceil(len(training) / plan.studies_per_step)
    curve = [_auc(place, net, validation, loader)]

    def look(at: TrainingProgress) -> None:
        if at.step % steps_a_pass == 0:
            curve.append(_auc(place, net, validation, loader))
            net.train()

    streams = RandomStreams(plan_of(settings, seed, 1).run_id, 0, name)
    with _no_checkpoints() as checkpoints:
        train(net, plan, training, loader.for_training(net), streams, place.compute(), checkpoints, look, _never)
    return Trained(Model(model.manifest, model.manifest.flatten(weights_of(net)), ()), tuple(curve))


def network_of(place: ArmPosition, model: Model) -> Network:
    net = build(place.settings.architecture, seed=0)
    load_weights(net, model.manifest.unflatten(model.weights))
    return place.compute().place(net)


def _auc(place: ArmPosition, net: Network, validation: list[StudyRecord], loader: Loader) -> float:
    negative, positive = _histograms(place, net, validation, loader)[ANY]
    return auc_of_histogram(negative, positive)


def _histograms(
    place: ArmPosition, net: Network, validation: Sequence[StudyRecord], loader: Loader
) -> NDArray[np.int64]:
    with _no_checkpoints() as none:
        return slice_histograms(net, validation, loader, place.compute(), none, lambda done, of: None, _never)


@contextmanager
def _no_checkpoints() -> Iterator[Checkpoints]:
    """A simulation goes on seed by seed; inside a seed nothing is kept."""
    with tempfile.TemporaryDirectory(prefix="hemofed-simulation-") as folder:
        yield Checkpoints(Path(folder), CheckpointIdentity("", "", 0, "", "", ""), every_s=math.inf)


def _never() -> bool:
    return False
