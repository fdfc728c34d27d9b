"""Training in stages: the backbone on slices, the sequence head on cached embeddings, then both for a short while.

The same loop runs three times. This is for a network that is trained in one place; a plan of a federation has no
stages.
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
from site_client.training.loop import TrainingProgress, train
from site_client.training.state import TrainingPosition
from site_client.training.streams import RandomStreams

END_TO_END_RATE: Final = 0.1  # of the learning rate: the last stage adjusts trained weights


@dataclass(frozen=True)
class Stages:
    """Epochs of each stage, 1 or more. They replace the plan's number of epochs."""

    backbone: int
    sequence_head: int
    end_to_end: int

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return self.backbone + self.sequence_head + self.end_to_end


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
    """Train `net` in place.

    Called again after a stop it does not repeat a finished stage: the stage's last checkpoint is its result.
    `plan.proximal_mu` pulls towards the start of each stage. For the arguments not listed see `loop.train`.

    Args:
        net: On the device of `compute`.
        plan: All but its epochs.
        stages: The epochs.
        studies: The training studies.
        loader: Of their pixels.
        embeddings: Cache of the second stage.
        streams: Each stage draws its own numbers from them.
        compute: See `loop.train`.
        checkpoints: Called with a stage's name ("backbone", "sequence-head", "end-to-end"), returns its checkpoints.
        report: Called after every step with the stage's name.
        stopping: See `loop.train`.

    Returns:
        The position at the end of the last stage.

    Raises:
        Stopped: See `loop.train`.
        TrainingFailed: See `loop.train`.
    """

    def stage(
        name: str, part: SequenceNet | SequenceHead, source: Source, epochs: int, rate: float = 1.0
    ) -> TrainingPosition:
        own_plan = replace(plan, epochs=epochs, learning_rate=plan.learning_rate * rate)
        own_streams = replace(streams, site=f"{streams.site}/{name}")
        return train(
            part,
            own_plan,
            studies,
            source,
            own_streams,
            compute,
            checkpoints(name),
            lambda at: report(name, at),
            stopping,
        )

    # The twin without a recurrence draws fresh weights. Torch's generator is as it was afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.seed("slicewise"))
        slicewise = net.slicewise()
    slabs = loader.for_training(net, studies)
    stage("backbone", slicewise.to(compute.device), slabs, stages.backbone)
    net.eval()  # before the features are computed: they must not depend on dropout
    stage("sequence-head", net.reader, EmbeddingLoader(net, loader, compute, embeddings), stages.sequence_head)
    return stage("end-to-end", net, slabs, stages.end_to_end, END_TO_END_RATE)
