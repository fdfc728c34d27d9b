"""The settings that decide a benchmark's figures, and its phantom patients when it is given no data."""

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

# A sequence arm -> the same backbone without a recurrence.
TWINS: Final = MappingProxyType(
    {
        "lite": "lite-slices",
        "densenet121-gru": "densenet121",
        "densenet121-lstm": "densenet121",
        "densenet121-mingru": "densenet121",
        "densenet121-gru-sep": "densenet121",
        "densenet121-affine-gru": "densenet121-affine",
        "efficientnet-lite0-affine-gru": "efficientnet-lite0-affine",
    }
)


@dataclass(frozen=True)
class BenchmarkSettings:
    """Equal settings on equal patients give equal figures (on one kind of machine, with one version of torch).

    Attributes:
        epochs: Passes over the training studies.
        evaluate_every: Epochs between two evaluations; the last epoch is always evaluated.
        seed: Of weights, order and augmentation.
        split_seed: Of the split of patients, and of the phantom.
        image_size_px: Side of a slice.
        slices_max: Most slices of a study.
        slices: Of the data set, training and validation together; 0 takes all.
        patients: That train; 0 takes all of the training side.
        learning_rate: Of AdamW.
        trunk_rate: Factor on it for the backbone.
        studies_per_step: The batch.
        slices_per_study: Of each study in a step; 0 takes all.
        warm_up_steps: Over which the learning rate rises.
        ema_decay: Of the moving average of the weights; 0 takes the last weights.
        patience: Epochs without a better loss on tuning patients that end a training; 0 never does.
        validation_fraction: Share of patients; without folds.
        folds: Number of folds; 0 for one split by `validation_fraction`.
        fold: The fold that is validation, from 0.
        stages: Of arms with a recurrence, instead of `epochs`.
    """

    epochs: int = 5
    evaluate_every: int = 1
    seed: int = 1
    split_seed: int = 1
    image_size_px: int = 256
    slices_max: int = 64
    slices: int = 0
    patients: int = 0
    learning_rate: float = 0.001
    trunk_rate: float = 1.0
    studies_per_step: int = 8
    slices_per_study: int = 4
    warm_up_steps: int = 20
    ema_decay: float = 0.0
    patience: int = 0
    validation_fraction: float = 0.2
    folds: int = 0
    fold: int = 0
    stages: Stages | None = None

    def digest(self, data_hash: str) -> str:
        """Return the name of the results of these settings on these patients: 16 hex digits."""
        content = {**asdict(self), "data": data_hash, "pipeline": PIPELINE_VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def stages_of(self, net: Network) -> Stages | None:
        """Return the stages in which this network is trained; None if it is trained in one go."""
        has_recurrence = isinstance(net, SequenceNet) and net.reader.sequence is not None
        return self.stages if has_recurrence else None

    def training(self) -> LocalTraining:
        """Return the training section of a plan."""
        return LocalTraining(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=1e-4,
            proximal_mu=0.0,
            studies_per_step=self.studies_per_step,
            studies_min=1,
            slices_per_study=self.slices_per_study,
            warm_up_steps=self.warm_up_steps,
            trunk_rate=self.trunk_rate,
            ema_decay=self.ema_decay,
            patience=self.patience,
        )


def phantom_folder(
    state: Path, studies: int, profiles: str, difficulty: float, settings: BenchmarkSettings, workers: int = 1
) -> Path:
    """Return the folder of a phantom set in `state`. It is made if it is not there; an unfinished one is made again.

    Args:
        state: For folders of all sets.
        studies: Of each profile.
        profiles: Letters of the site profiles.
        difficulty: Of the bleeds.
        settings: Image size and the split's seed.
        workers: Processes; they never change the result.
    """
    size_px = 128 if settings.image_size_px <= 128 else 256
    wishes = Wishes(size_px, prevalence="balanced", difficulty=difficulty)
    orders = [Order(profile, studies, settings.split_seed, wishes, format="npz") for profile in dict.fromkeys(profiles)]
    for order in orders:
        order.check()
    content = json.dumps([GENERATOR_VERSION, *map(asdict, orders)], sort_keys=True)
    folder = state / f"phantom-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    for order in orders:
        own = folder / order.profile
        if not own.exists():
            draft = own.with_suffix(".unfinished")
            if draft.exists():
                shutil.rmtree(draft)
            draft.parent.mkdir(parents=True, exist_ok=True)
            make_set(order, draft, workers)
            draft.rename(own)
    return folder
