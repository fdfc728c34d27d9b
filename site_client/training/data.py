"""From the catalog's studies to the samples of a training step or an evaluation.

Patients are split, not studies. A patient stays in training or in validation in every round, whatever studies arrive.
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
    """B studies, padded to the longest of them. Functions here return B = 1 unless they say otherwise.

    Attributes:
        x: f32[B,T,5,H,W] in [-1,1], or embeddings f32[B,T,F].
        mask: bool[B,T], true for slices.
        geometry: f32[B,T,4], see `PreparedStudy`.
        slice_labels: f32[B,T,6]: 0, 1 or -1 (missing).
        study_labels: f32[B,6], likewise.
    """

    x: Tensor
    mask: Tensor
    geometry: Tensor
    slice_labels: Tensor
    study_labels: Tensor


@dataclass(frozen=True)
class Split:
    """Two sets of studies without a common patient. Studies without any label are in neither."""

    training: tuple[StudyRecord, ...]
    validation: tuple[StudyRecord, ...]


def split_patients(studies: Sequence[StudyRecord], validation_fraction: float) -> Split:
    """Split labelled studies by a hash of the patient's pseudonym, which no other patient can change.

    Args:
        studies: Labelled or not.
        validation_fraction: Expected share of patients in validation, 0 to 1.
    """
    labelled = [study for study in studies if has_labels(study)]
    held_out = [_fraction(study.patient_key) < validation_fraction for study in labelled]
    return Split(
        training=tuple(study for study, held in zip(labelled, held_out, strict=True) if not held),
        validation=tuple(study for study, held in zip(labelled, held_out, strict=True) if held),
    )


def has_labels(study: StudyRecord) -> bool:
    """Tell whether the study or a slice of it has a known label."""
    return bool((study.slice_labels != MISSING).any() or (study.study_labels != MISSING).any())


def study_labels(study: StudyRecord) -> NDArray[np.int8]:
    """Return int8[6], the study's own labels. Its slices fill missing ones: 1 if any is 1, 0 if all are 0."""
    own, slices = complete(study.study_labels), complete(study.slice_labels)
    from_slices = np.where((slices == 1).any(axis=0), 1, np.where((slices == 0).all(axis=0), 0, MISSING))
    return complete(np.where(own != MISSING, own, from_slices).astype(np.int8))


def complete(labels: NDArray[np.int8]) -> NDArray[np.int8]:
    """Fill int8[...,6] with all that is certain: a positive subtype makes `any` 1, and `any` 0 makes all labels 0."""
    labels = labels.copy()
    labels[(labels[..., :ANY] == 1).any(axis=-1), ANY] = 1
    labels[labels[..., ANY] == 0] = 0
    return labels


def epoch_order(studies: Sequence[StudyRecord], rng: np.random.Generator) -> list[int]:
    """Draw the studies of an epoch: half with hemorrhage, epidural ones (the rarest) with double weight.

    Each half is drawn without replacement until it is exhausted, then again. With studies of one kind only the result
    is a permutation.

    Returns:
        Indices into `studies`, as many as there are studies.
    """
    drawn = []
    for pool, count in _pools(studies):
        passes_over_pool = [rng.permutation(pool) for _ in range(-(-count // len(pool)))]
        drawn.append(np.concatenate(passes_over_pool)[:count])
    return [int(index) for index in rng.permutation(np.concatenate(drawn))]


def sampling_weights(studies: Sequence[StudyRecord]) -> NDArray[np.float64]:
    """Return f64[N]: how often `epoch_order` draws each study in an epoch, in the mean over epochs."""
    weights = np.zeros(len(studies))
    for pool, count in _pools(studies):
        np.add.at(weights, pool, count / len(pool))
    return weights


def _pools(studies: Sequence[StudyRecord]) -> list[tuple[NDArray[np.int64], int]]:
    """The pools of indices that an epoch is drawn from, each with the number of its draws."""
    labels = np.stack([study_labels(study) for study in studies])
    positive = np.flatnonzero(labels[:, ANY] == 1)
    negative = np.flatnonzero(labels[:, ANY] != 1)
    if len(positive) == 0 or len(negative) == 0:
        return [(np.arange(len(studies)), len(studies))]
    epidural = np.flatnonzero(labels[:, _EPIDURAL] == 1)
    half = (len(studies) + 1) // 2
    return [(np.concatenate([positive, epidural]), half), (negative, len(studies) - half)]


class Source(Protocol):
    """A source of samples for the loop."""

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        """Return a study as a sample, augmented with random numbers of `rng` if there is one."""
        ...


class Loader:
    """A source of pixels, through the cache.

    In training it reads a slab of each study: `slices_per_study` neighbouring slices, other ones in every epoch.
    """

    def __init__(
        self, cache: StudyCache, augmentation: Augmentation, device: torch.device, slices_per_study: int = 0
    ) -> None:
        """Read from `cache` to `device`. With `slices_per_study` 0 training reads whole studies."""
        self._cache = cache
        self._augmentation = augmentation
        self._device = device
        self._slices_per_study = slices_per_study

    def for_training(self, net: Network) -> "Loader":
        """Return the loader for training `net`: of whole studies if it has no slice outputs."""
        return self if net.has_slice_outputs else Loader(self._cache, self._augmentation, self._device)

    def prepare(self, study: StudyRecord) -> int:
        """Put the study into the cache, and return the number of its slices."""
        return self._cache.get(study.series).slices

    def name_of(self, study: StudyRecord) -> str:
        """Return a name that two studies share only if their samples hold the same pixels."""
        return self._cache.name_of(study.series)

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        """Return the whole study; with `rng` an augmented slab of it, whose study labels are those of its slices."""
        if rng is None:
            return sample_of(study, *self.pixels(study))
        prepared = self._cache.get(study.series)
        slab = self._slab(study, prepared.slices, rng)
        x = augment(input_of(prepared, self._device, slab), self._augmentation, rng)
        sample = sample_of(study, x, prepared.geometry[slab], prepared.source_slices[slab])
        if len(x) == prepared.slices:
            return sample
        return replace(sample, study_labels=sample.slice_labels.amax(dim=1))

    def _slab(self, study: StudyRecord, slices: int, rng: np.random.Generator) -> slice:
        """Draw a slab. It is the whole study unless every slice has all labels: they are the slab's study labels."""
        wanted = self._slices_per_study
        if wanted == 0 or wanted >= slices or (complete(study.slice_labels) == MISSING).any():
            return WHOLE
        start = int(rng.integers(slices - wanted + 1))
        return slice(start, start + wanted)

    def pixels(self, study: StudyRecord) -> tuple[Tensor, NDArray[np.float32], tuple[range, ...]]:
        """Return x f32[T,5,H,W] on the device, geometry f32[T,4], and the source slices of each slice."""
        prepared = self._cache.get(study.series)
        return input_of(prepared, self._device), prepared.geometry, prepared.source_slices


def input_of(prepared: PreparedStudy, device: torch.device, slab: slice = WHOLE) -> Tensor:
    """Return the input of a network, f32[T,5,H,W] in [-1,1], of a study or of a slab of T slices."""
    return torch.from_numpy(compose_channels(prepared.windows, slab)).to(device).float().div_(127.5).sub_(1)


def sample_of(study: StudyRecord, x: Tensor, geometry: NDArray[np.float32], source_slices: tuple[range, ...]) -> Sample:
    """Join x f32[T,...] with geometry and the study's labels, on the device of x."""
    slices = merge_labels(complete(study.slice_labels), source_slices)
    return Sample(
        x=x.unsqueeze(0),
        mask=torch.ones(1, len(x), dtype=torch.bool, device=x.device),
        geometry=_batch_of_one(geometry, x.device),
        slice_labels=_batch_of_one(slices, x.device),
        study_labels=_batch_of_one(study_labels(study), x.device),
    )


def passes(samples: Iterable[Sample], slices: int) -> Iterator[Sample]:
    """Join samples of one study each into fewer samples, which go through the network together.

    Args:
        samples: Of one study each.
        slices: A pass is full when it holds so many slices.

    Yields:
        Samples of B studies, in order. The last one may hold fewer slices.
    """
    waiting: list[Sample] = []
    for sample in samples:
        waiting.append(sample)
        if sum(held.mask.shape[1] for held in waiting) >= slices:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(samples: Sequence[Sample]) -> Sample:
    if len(samples) == 1:
        return samples[0]

    def padded(tensors: Iterable[Tensor], padding: float) -> Tensor:
        return pad_sequence([tensor[0] for tensor in tensors], batch_first=True, padding_value=padding)

    return Sample(
        x=padded((sample.x for sample in samples), 0),
        mask=padded((sample.mask for sample in samples), False),
        geometry=padded((sample.geometry for sample in samples), 0),
        slice_labels=padded((sample.slice_labels for sample in samples), MISSING),
        study_labels=torch.cat([sample.study_labels for sample in samples]),
    )


def _fraction(patient: PatientKey) -> float:
    digest = hashlib.sha256(b"hemofed patient split v1\x00" + patient.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _batch_of_one(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32)).unsqueeze(0).to(device)
