"""Embeddings on disk, so that training the reader never touches pixels.

A backbone that is not trained any more gives each slice the same features in every epoch. They are kept under the hash
of the backbone, the precision it ran in, and what names the study in the cache of pixels: series, pipeline, sizes.
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

_PARTS: Final = frozenset({"embedding", "geometry", "source_slices"})


class EmbeddingLoader:
    """Studies -> samples whose x is the embedding f32[1,T,F] of this network's backbone, as it is now.

    Whoever trains the backbone needs another loader afterwards. Nothing is augmented: a generator is not asked.
    """

    def __init__(self, net: SequenceNet, loader: Loader, compute: Compute, shelf: ArrayCache) -> None:
        self._net = net
        self._loader = loader
        self._compute = compute
        self._shelf = shelf
        self._backbone = hash_of(net.backbone)

    def sample(self, study: StudyRecord, rng: np.random.Generator | None) -> Sample:
        name = self._name(study)
        found = self._shelf.get(name, _PARTS)
        if found is None:
            found = self._embed(study)
            self._shelf.put(name, found)
        x = torch.from_numpy(found["embedding"]).to(self._compute.device)
        return sample_of(study, x, found["geometry"], ranges_of(found["source_slices"]))

    def _name(self, study: StudyRecord) -> str:
        what = f"{self._backbone}|{self._compute.name}|{self._net.chunk}|{self._loader.name_of(study)}"
        return hashlib.sha256(what.encode()).hexdigest()

    def _embed(self, study: StudyRecord) -> Arrays:
        x, geometry, source_slices = self._loader.pixels(study)
        mask = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
        with torch.no_grad(), self._compute.autocast():
            embedding = self._net.embed(x.unsqueeze(0), mask)[0]
        return {"embedding": embedding.cpu().numpy(), "geometry": geometry, "source_slices": array_of(source_slices)}


def hash_of(backbone: nn.Module) -> str:
    """Over its layers and their weights: 64 hex digits."""
    digest = hashlib.sha256(str(backbone).encode())
    for name, value in backbone.named_parameters():
        digest.update(name.encode() + b"\x00" + np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
