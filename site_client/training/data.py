"""From the catalog's studies to what one step of training or judging reads.

Patients are split, not studies: a patient is in training or in validation, in every round, whatever else arrives.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from federation.labels import ANY, LABELS, MISSING
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from site_client.ingest.records import PatientKey, StudyRecord
from site_client.model.inputs import WHOLE, PreparedStudy, compose_channels, merge_labels
from site_client.model.network import Network
from site_client.training.augment import Augmentation, augment
from site_client.training.cache import StudyCache

_EPIDURAL = LABELS.index("epidural")


@dataclass(frozen=True)
class Sample:
    """B studies, one where nothing else is said, padded to the longest: x f32[B,T,5,H,W] in [-1,1] or embeddings
    f32[B,T,F], mask bool[B,T], geometry f32[B,T,4], slice_labels f32[B,T,6] and study_labels f32[B,6] with 0, 1 or -1
    for missing.
    """

    x: Tensor
    mask: Tensor
    geometry: Tensor
    slice_labels: Tensor
    study_labels: Tensor


@dataclass(frozen=True)
class Split:
    """`training` and `validation` share no patient. Studies without any label are in neither."""

    training: tuple[StudyRecord, ...]
    validation: tuple[StudyRecord, ...]


def split_patients(studies: Sequence[StudyRecord], validation_fraction: float) -> Split:
    """Each patient falls by the hash of the pseudonym alone, hence the same way whatever other patients there are."""
    labelled = [study for study in studies if has_labels(study)]
    judged = [_fraction(study.patient_key) < validation_fraction for study in labelled]
    return Split(
        training=tuple(study for study, held_out in zip(labelled, judged, strict=True) if not held_out),
        validation=tuple(study for study, held_out in zip(labelled, judged, strict=True) if held_out),
    )


def has_labels(study: StudyRecord) -> bool:
    return bool((study.slice_labels != MISSING).any() or (study.study_labels != MISSING).any())


def study_labels(study: StudyRecord) -> NDArray[np.int8]:
    """int8[6]. What the study's own label leaves open, its slices fill: 1 if any is 1, 0 if all are 0."""
    own, slices = complete(study.study_labels), complete(study.slice_labels)
    from_slices = np.where((slices == 1).any(axis=0), 1, np.where((slices == 0).all(axis=0), 0, MISSING))
    return complete(np.where(own != MISSING, own, from_slices).astype(np.int8))


def complete(labels: NDArray[np.int8]) -> NDArray[np.int8]:
    """[...,6] with what follows for certain: a positive subtype makes `any` 1; `any` 0 makes all 0. Nothing else."""
    labels = labels.copy()
    labels[(labels[..., :ANY] == 1).any(axis=-1), ANY] = 1
    labels[labels[..., ANY] == 0] = 0
    return labels


def epoch_order(studies: Sequence[StudyRecord], rng: np.random.Generator) -> list[int]:
    """As many indices as there are studies, half of them with hemorrhage, epidural ones (the rarest) twice as often.

    Within each half nothing is drawn again before everything was drawn once. With one kind only: a permutation.
    """
    drawn = [_draw(pool, count, rng) for pool, count in _pools(studies)]
    return [int(index) for index in rng.permutation(np.concatenate(drawn))]


def sampling_weights(studies: Sequence[StudyRecord]) -> NDArray[np.float64]:
    """f64[N]: how often epoch_order shows each study in the mean over epochs."""
    looks = np.zeros(len(studies))
    for pool, count in _pools(studies):
        np.add.at(looks, pool, count / len(pool))
    return looks


def _pools(studies: Sequence[StudyRecord]) -> list[tuple[NDArray[np.int64], int]]:
    """What an epoch is drawn from, and how many from each."""
    labels = np.stack([study_labels(study) for study in studies])
    positive = np.flatnonzero(labels[:, ANY] == 1)
    negative = np.flatnonzero(labels[:, ANY] != 1)
    if len(positive) == 0 or len(negative) == 0:
        return [(np.arange(len(studies)), len(studies))]
    epidural = np.flatnonzero(labels[:, _EPIDURAL] == 1)
    half = (len(studies) + 1) // 2
    return [(np.concatenate([positive, epidural]), half), (negative, len(studies) - half)]


class Source(Protocol):
    """Where the loop gets its samples. Without a generator a sample is as it is, with one it is augmented."""

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample: ...


class Loader:
    """Studies -> samples of pixels, through the cache. `slices_per_study`: so many in training; 0: all."""

    def __init__(
        self, cache: StudyCache, augmentation: Augmentation, device: torch.device, slices_per_study: int = 0
    ) -> None:
        self._cache = cache
        self._augmentation = augmentation
        self._device = device
        self._slices_per_study = slices_per_study

    def for_training(self, net: Network) -> "Loader":
        """What this network learns from: whole studies when it answers for nothing less."""
        return self if net.has_slice_outputs else Loader(self._cache, self._augmentation, self._device)

    def prepare(self, study: StudyRecord) -> int:
        """Puts the study into the cache; the number of its slices."""
        return self._cache.get(study.series).slices

    def name_of(self, study: StudyRecord) -> str:
        """The same for two studies only if their samples hold the same pixels."""
        return self._cache.name_of(study.series)

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        if rng is None:
            return sample_of(study, *self.pixels(study))
        prepared = self._cache.get(study.series)
        piece = self._piece(study, prepared.slices, rng)
        x = augment(input_of(prepared, self._device, piece), self._augmentation, rng)
        sample = sample_of(study, x, prepared.geometry[piece], prepared.source_slices[piece])
        if len(x) == prepared.slices:
            return sample
        return replace(sample, study_labels=sample.slice_labels.amax(dim=1))  # what this piece shows

    def _piece(self, study: StudyRecord, slices: int, rng: np.random.Generator) -> slice:
        """Neighbouring slices to train on. All of them unless each has its labels: nobody knows what a part shows."""
        wanted = self._slices_per_study
        if wanted == 0 or wanted >= slices or (complete(study.slice_labels) == MISSING).any():
            return WHOLE
        start = int(rng.integers(slices - wanted + 1))
        return slice(start, start + wanted)

    def pixels(self, study: StudyRecord) -> tuple[Tensor, NDArray[np.float32], tuple[range, ...]]:
        """x f32[T,5,H,W] on the device, geometry f32[T,4], and the series' slices in each."""
        prepared = self._cache.get(study.series)
        return input_of(prepared, self._device), prepared.geometry, prepared.source_slices


def input_of(prepared: PreparedStudy, device: torch.device, piece: slice = WHOLE) -> Tensor:
    """f32[T,5,H,W] in [-1,1], what a network reads of a study, or of a piece of it."""
    return torch.from_numpy(compose_channels(prepared.windows, piece)).to(device).float().div_(127.5).sub_(1)


def sample_of(study: StudyRecord, x: Tensor, geometry: NDArray[np.float32], source_slices: tuple[range, ...]) -> Sample:
    """x f32[T,...] with the study's labels, on the device of x."""
    slices = merge_labels(complete(study.slice_labels), source_slices)
    return Sample(
        x=x.unsqueeze(0),
        mask=torch.ones(1, len(x), dtype=torch.bool, device=x.device),
        geometry=_batch_of_one(geometry, x.device),
        slice_labels=_batch_of_one(slices, x.device),
        study_labels=_batch_of_one(study_labels(study), x.device),
    )


def passes(samples: Iterable[Sample], slices: int) -> Iterator[Sample]:
    """The same studies in fewer samples: each takes so many that it holds `slices` slices or more, but for the last."""
    held: list[Sample] = []
    for sample in samples:
        held.append(sample)
        if sum(one.mask.shape[1] for one in held) >= slices:
            yield _together(held)
            held = []
    if held:
        yield _together(held)


def _together(samples: Sequence[Sample]) -> Sample:
    """Samples of one study each as one of all of them."""
    if len(samples) == 1:
        return samples[0]

    def padded(parts: Iterable[Tensor], padding: float) -> Tensor:
        return pad_sequence([part[0] for part in parts], batch_first=True, padding_value=padding)

    return Sample(
        x=padded((one.x for one in samples), 0),
        mask=padded((one.mask for one in samples), False),
        geometry=padded((one.geometry for one in samples), 0),
        slice_labels=padded((one.slice_labels for one in samples), MISSING),
        study_labels=torch.cat([one.study_labels for one in samples]),
    )


def _fraction(patient: PatientKey) -> float:
    digest = hashlib.sha256(b"hemofed patient split v1\x00" + patient.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _draw(pool: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rounds = [rng.permutation(pool) for _ in range(-(-count // len(pool)))]
    return np.concatenate(rounds)[:count]


def _batch_of_one(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32)).unsqueeze(0).to(device)
