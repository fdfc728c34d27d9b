"""Training in stages: the backbone on slices, the reader on kept embeddings, then all of it for a short while.

The same loop three times. For a network that is trained in one place; in a federation a round is one stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from federation.plan import LocalTraining

from site_client.ingest.records import StudyRecord
from site_client.model.network import SequenceHead, SequenceNet
from site_client.training.array_cache import ArrayCache
from site_client.training.checkpoint import Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Loader, Source
from site_client.training.embeddings import EmbeddingLoader
from site_client.training.loop import TrainingPosition, TrainingProgress, train
from site_client.training.streams import RandomStreams

END_TO_END_RATE: Final = 0.1  # of the learning rate: the last stage mends, it does not start over


@dataclass(frozen=True)
class Stages:
    """Epochs of each, 1 or more. The plan's own number of epochs is not looked at."""

    backbone: int
    reader: int
    end_to_end: int

    @property
    def epochs(self) -> int:
        return self.backbone + self.reader + self.end_to_end


def train_in_stages(
    net: SequenceNet,
    plan: LocalTraining,
    stages: Stages,
    studies: Sequence[StudyRecord],
    loader: Loader,
    embeddings: ArrayCache,
    streams: RandomStreams,
    compute: Compute,
    checkpoints: Callable[[str], Checkpoints],
    report: Callable[[str, TrainingProgress], None],
    stopping: Callable[[], bool],
) -> TrainingPosition:
    """Trains `net` in place; gives the last stage's end. `checkpoints` gives each stage its own, by its name.

    Stopped and TrainingFailed come from the loop. A stage that has ended is not trained again when this is called after
    a stop: its last checkpoint is its end. `plan.proximal_mu` pulls towards the start of each stage.
    """

    def stage(
        name: str, part: SequenceNet | SequenceHead, source: Source, epochs: int, rate: float = 1.0
    ) -> TrainingPosition:
        own = replace(plan, epochs=epochs, learning_rate=plan.learning_rate * rate)
        drawn = replace(streams, site=f"{streams.site}/{name}")
        return train(
            part, own, studies, source, drawn, compute, checkpoints(name), lambda at: report(name, at), stopping
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.seed("slicewise"))
        slicewise = net.slicewise()
    stage("backbone", slicewise.to(compute.device), loader, stages.backbone)
    net.eval()
    stage("reader", net.reader, EmbeddingLoader(net, loader, compute, embeddings), stages.reader)
    return stage("end-to-end", net, loader, stages.end_to_end, END_TO_END_RATE)
