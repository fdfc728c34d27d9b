"""Turns the catalog's studies into the samples of a training step or an evaluation.

Patients are split, not studies. A patient stays in training or in validation in every round, whatever studies arrive.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from federation.labels import ANY, MISSING
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from site_client.ingest.records import PatientKey, StudyRecord
from site_client.model.inputs import HEIGHT, WHOLE, PreparedStudy, compose_channels, merge_labels
from site_client.model.network import Network
from site_client.training.augment import Augmentation, augment
from site_client.training.cache import StudyCache
from site_client.training.sampling import SlabSampler
from site_client.training.study_labels import complete, has_labels, study_labels


@dataclass(frozen=True)
class Sample:
    """B studies, padded to the longest of them. Functions here return B = 1 unless they say otherwise.

    Attributes:
        x: f32[B,T,5,H,W] in [-1,1], or embeddings f32[B,T,F].
        mask: bool[B,T], true for slices.
        geometry: f32[B,T,4], see `PreparedStudy`.
        slice_labels: f32[B,T,6]: 0, 1 or -1 (missing).
        study_labels: f32[B,6], likewise.
        anchored: bool[B], whether the study trains the backbone, see `SlabSampler`.
    """

    x: Tensor
    mask: Tensor
    geometry: Tensor
    slice_labels: Tensor
    study_labels: Tensor
    anchored: Tensor


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


class Source(Protocol):
    """A source of samples for the loop."""

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        """Return a study as a sample with x f32[1,T,5,H,W], augmented with random numbers of `rng` if there is one."""
        ...


class Loader:
    """A source of whole studies, through the cache."""

    def __init__(
        self, cache: StudyCache, augmentation: Augmentation, device: torch.device, slices_per_study: int = 0
    ) -> None:
        """Read from `cache` to `device`. `slices_per_study` is for training, see `for_training`; 0 reads all."""
        self._cache = cache
        self._augmentation = augmentation
        self._device = device
        self._slices_per_study = slices_per_study

    def of_whole_studies(self) -> "Loader":
        """Return a loader of the same studies that is for training on whole ones."""
        return Loader(self._cache, self._augmentation, self._device)

    def for_training(self, net: Network, studies: Sequence[StudyRecord]) -> "Source":
        """Return the source for training `net` on these studies: of slabs, or of whole studies.

        A network without slice outputs is trained on whole studies.
        """
        sampler = self.sampler(studies)
        return self if sampler is None or not net.has_slice_outputs else _SlabLoader(self, sampler)

    def for_private_training(self, net: Network) -> "Source":
        """Return the source for private training: a slab depends on its own patient, never on where others bleed."""
        if not self._slices_per_study or not net.has_slice_outputs:
            return self
        return _SlabLoader(self, SlabSampler(self._slices_per_study, np.empty(0)))

    def sampler(self, studies: Sequence[StudyRecord]) -> SlabSampler | None:
        """Return the sampler of slabs for training on these studies; None if whole studies are read."""
        if not self._slices_per_study:
            return None
        bleeds = [np.empty(0)]
        for study in studies:
            if (study.slice_labels == 1).any():
                labels, heights = self.labels_and_heights(study)
                bleeds.append(heights[labels[:, ANY] == 1])
        return SlabSampler(self._slices_per_study, np.concatenate(bleeds))

    def prepare(self, study: StudyRecord) -> int:
        """Put the study into the cache, and return the number of its slices."""
        return self._cache.get(study.series).slices

    def prepared(self, study: StudyRecord) -> PreparedStudy:
        """Return the prepared study: windows uint8[T,3,H,W], geometry f32[T,4]."""
        return self._cache.get(study.series)

    def name_of(self, study: StudyRecord) -> str:
        """Return a name that two studies share only if their samples hold the same pixels."""
        return self._cache.name_of(study.series)

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        """Return the whole study, x f32[1,T,5,H,W] in [-1,1], augmented if there is an `rng`."""
        x, geometry, source_slices = self.pixels(study)
        return sample_of(study, x if rng is None else augment(x, self._augmentation, rng), geometry, source_slices)

    def slab(self, study: StudyRecord, sampler: SlabSampler, rng: np.random.Generator) -> Sample:
        """Return an augmented slab of N slices, x f32[1,N,5,H,W], whose study labels are those of its slices."""
        prepared = self._cache.get(study.series)
        labels = merge_labels(complete(study.slice_labels), prepared.source_slices)
        slab, anchored = sampler.draw(labels, prepared.geometry[:, HEIGHT].astype(np.float64), rng)
        x = augment(input_of(prepared, self._device, slab), self._augmentation, rng)
        sample = sample_of(study, x, prepared.geometry[slab], prepared.source_slices[slab])
        if len(x) == prepared.slices:
            return sample
        # -1, missing, is the least: a slab is read in part only where every slice has a label (`SlabSampler.starts`).
        of_slab = sample.slice_labels.amax(dim=1)
        return replace(sample, study_labels=of_slab, anchored=torch.full_like(sample.anchored, anchored))

    def pixels(self, study: StudyRecord) -> tuple[Tensor, NDArray[np.float32], tuple[range, ...]]:
        """Return x f32[T,5,H,W] on the device, geometry f32[T,4], and the source slices of each slice."""
        prepared = self._cache.get(study.series)
        return input_of(prepared, self._device), prepared.geometry, prepared.source_slices

    def labels_and_heights(self, study: StudyRecord) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Return labels int8[T,6] and relative heights f64[T] of the prepared slices, without reading pixels."""
        geometry, source_slices = self._cache.layout(study.series)
        return merge_labels(complete(study.slice_labels), source_slices), geometry[:, HEIGHT].astype(np.float64)


class _SlabLoader:
    """A source of augmented slabs."""

    def __init__(self, loader: Loader, sampler: SlabSampler) -> None:
        self._loader = loader
        self._sampler = sampler

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        return self._loader.sample(study, None) if rng is None else self._loader.slab(study, self._sampler, rng)


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
        anchored=torch.ones(1, dtype=torch.bool, device=x.device),
    )


def passes(samples: Iterable[Sample], slices: int) -> Iterator[Sample]:
    """Join samples of one study each into fewer samples, which go through the network together.

    Args:
        samples: Of one study each, x f32[1,T,5,H,W].
        slices: A pass is full when it holds so many slices.

    Yields:
        Samples of B studies, x f32[B,T,5,H,W], in order. The last one may hold fewer slices.
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
        return samples[0]  # cost: padding copies

    def padded(tensors: Iterable[Tensor], padding: float) -> Tensor:
        return pad_sequence([tensor[0] for tensor in tensors], batch_first=True, padding_value=padding)

    return Sample(
        x=padded((sample.x for sample in samples), 0),
        mask=padded((sample.mask for sample in samples), False),
        geometry=padded((sample.geometry for sample in samples), 0),
        slice_labels=padded((sample.slice_labels for sample in samples), MISSING),
        study_labels=torch.cat([sample.study_labels for sample in samples]),
        anchored=torch.cat([sample.anchored for sample in samples]),
    )


def _fraction(patient: PatientKey) -> float:
    # A hash and no draw: a patient who comes later moves no other patient from one set to the other.
    digest = hashlib.sha256(b"hemofed patient split v1\x00" + patient.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _batch_of_one(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32)).unsqueeze(0).to(device)
