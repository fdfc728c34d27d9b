"""Early stop: training ends when the loss on tuning patients does not fall any more, with the best weights so far.

Tuning patients neither train a network nor evaluate it: a model that was chosen on its own test patients looks better
than it is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from federation.plan import LocalTraining

from site_client.ingest.records import PatientKey, StudyRecord
from site_client.model.network import Network
from site_client.training.compute import Compute
from site_client.training.data import Loader, Source
from site_client.training.loss import reported_loss

TUNING_FRACTION: Final = 0.15  # of the training patients


@dataclass(frozen=True)
class EarlyStop:
    """The rule of an early stop.

    Attributes:
        studies: Of tuning patients.
        source: Of their samples, which are not augmented.
        compute: Where the network is.
        patience: Epochs without a lower loss after which training ends.
    """

    studies: Sequence[StudyRecord]
    source: Source
    compute: Compute
    patience: int

    def loss(self, net: Network) -> float:
        """Return the mean reported loss of `net`, in nats, over the tuning studies; it is in eval mode afterwards."""
        net.eval()
        losses = []
        for study in self.studies:
            sample = self.source.sample(study, None)
            with self.compute.inference():
                losses.append(reported_loss(net(sample.x, sample.mask, sample.geometry), sample).item())
        return sum(losses) / len(losses)


def with_early_stop(
    plan: LocalTraining, studies: Sequence[StudyRecord], loader: Loader, compute: Compute
) -> tuple[list[StudyRecord], EarlyStop | None]:
    """Return the studies to train on, and the rule of the plan's early stop; None if it has none.

    Args:
        plan: Its patience decides.
        studies: All training studies of a site.
        loader: Of their pixels.
        compute: Where the network is.
    """
    if not plan.patience:
        return list(studies), None
    training, tuning = split_tuning(studies)
    return training, EarlyStop(tuning, loader, compute, plan.patience) if tuning else None


def split_tuning(studies: Sequence[StudyRecord]) -> tuple[list[StudyRecord], list[StudyRecord]]:
    """Split training studies into studies to train on and studies to tune on, by a hash of the patient's pseudonym.

    Without a patient for one of both, all studies are for training.
    """
    tuning = [study for study in studies if _fraction(study.patient_key) < TUNING_FRACTION]
    training = [study for study in studies if _fraction(study.patient_key) >= TUNING_FRACTION]
    # Without a tuning patient no epoch could be judged, and without a training patient none trained.
    return (training, tuning) if training and tuning else (list(studies), [])


def _fraction(patient: PatientKey) -> float:
    # Another domain than the hash of training and validation, so that the two splits are independent.
    digest = hashlib.sha256(b"hemofed tuning split v1\x00" + patient.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
