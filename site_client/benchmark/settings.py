"""What decides a benchmark's figures, and the patients it makes when it is given none."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from federation.plan import LocalTraining

from site_client.model.inputs import PIPELINE_VERSION
from site_client.model.network import Network, SequenceNet
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.streams import GENERATOR_VERSION
from site_client.phantom.study import Wishes
from site_client.training.stages import Stages

# A sequence arm and the same backbone without its recurrence.
TWINS: Final = MappingProxyType(
    {
        "lite": "lite-slices",
        "densenet121-gru": "densenet121",
        "densenet121-lstm": "densenet121",
        "densenet121-mingru": "densenet121",
        "densenet121-gru-sep": "densenet121",
    }
)


@dataclass(frozen=True)
class BenchmarkSettings:
    """Equal settings on equal patients give equal figures (one kind of machine, one version of torch).

    slices: of the data set, training and validation together; 0 takes all. studies_per_step: the batch.
    slices_per_study: of each study in a step; 0 takes all. stages: of arms with a recurrence, instead of `epochs`.
    """

    epochs: int = 5
    seed: int = 1
    image_size_px: int = 256
    slices_max: int = 64
    slices: int = 0
    learning_rate: float = 0.001
    studies_per_step: int = 2
    slices_per_study: int = 0
    validation_fraction: float = 0.2
    stages: Stages | None = None

    def digest(self, data_hash: str) -> str:
        """Names the results of these settings on these patients: 16 hex digits."""
        parts = {**asdict(self), "data": data_hash, "pipeline": PIPELINE_VERSION}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def stages_of(self, net: Network) -> Stages | None:
        """In which stages this network is trained; None in one."""
        has_recurrence = isinstance(net, SequenceNet) and net.reader.sequence is not None
        return self.stages if has_recurrence else None

    def training(self) -> LocalTraining:
        return LocalTraining(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=1e-4,
            proximal_mu=0.0,
            studies_per_step=self.studies_per_step,
            studies_min=1,
            slices_per_study=self.slices_per_study,
        )


def phantom_folder(
    state: Path, studies: int, profile: str, difficulty: float, settings: BenchmarkSettings, workers: int = 1
) -> Path:
    """A phantom set in `state`, made when it is not there. One that a stop cut short is made again."""
    size_px = 128 if settings.image_size_px <= 128 else 256
    order = Order(profile, studies, settings.seed, Wishes(size_px, prevalence="balanced", difficulty=difficulty))
    order.check()
    what = json.dumps([GENERATOR_VERSION, asdict(order)], sort_keys=True)
    folder = state / f"phantom-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    if not folder.exists():
        draft = folder.with_suffix(".unfinished")
        if draft.exists():
            shutil.rmtree(draft)
        make_set(order, draft, workers)
        draft.rename(folder)
    return folder
