"""Embeddings on disk, so that training the sequence head reads no pixels.

A frozen backbone gives each slice the same features in every epoch. They are cached under a hash of the backbone, the
precision in which it ran, and the study's name in the cache of pixels (series, pipeline, sizes).
"""

import hashlib
from typing import Final

import numpy as np
import torch
from torch import nn

from site_client.ingest.records import StudyRecord
from site_client.model.network import SequenceNet
from site_client.training.array_cache import ArrayCache, Arrays
from site_client.training.cache import array_of, ranges_of
from site_client.training.compute import Compute
from site_client.training.data import Loader, Sample, sample_of

_ARRAYS: Final = frozenset({"embedding", "geometry", "source_slices"})


class EmbeddingLoader:
    """A source of samples whose x is f32[1,T,F], the features of a network's backbone with its present weights.

    After more training of the backbone make another loader. Nothing is augmented.
    """

    def __init__(self, net: SequenceNet, loader: Loader, compute: Compute, cache: ArrayCache) -> None:
        """Compute features with the backbone of `net` from the pixels of `loader`, and keep them in `cache`."""
        self._net = net
        self._loader = loader
        self._compute = compute
        self._cache = cache
        self._backbone = hash_of(net.backbone)

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        """Return the whole study, x f32[1,T,F]; `rng` is not used."""
        # All that changes the last bits of a feature is part of the name.
        text = f"{self._backbone}|{self._compute.name}|{self._net.chunk}|{self._loader.name_of(study)}"
        name = hashlib.sha256(text.encode()).hexdigest()
        arrays = self._cache.get(name, _ARRAYS)
        if arrays is None:
            arrays = self._embed(study)
            self._cache.put(name, arrays)
        x = torch.from_numpy(arrays["embedding"]).to(self._compute.device)
        return sample_of(study, x, arrays["geometry"], ranges_of(arrays["source_slices"]))

    def _embed(self, study: StudyRecord) -> Arrays:
        x, geometry, source_slices = self._loader.pixels(study)
        mask = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
        with torch.no_grad(), self._compute.autocast():
            embedding = self._net.embed(x.unsqueeze(0), mask)[0]
        return {"embedding": embedding.cpu().numpy(), "geometry": geometry, "source_slices": array_of(source_slices)}


def hash_of(backbone: nn.Module) -> str:
    """Return 64 hex digits: a hash of the backbone's layers and weights."""
    digest = hashlib.sha256(str(backbone).encode())
    for name, value in backbone.named_parameters():
        digest.update(name.encode() + b"\x00" + np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
