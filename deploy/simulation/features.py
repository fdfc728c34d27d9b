"""Features of a frozen trunk for `private_heads`: the trunk learns on some phantoms, the vectors are of others."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from federation.labels import MISSING
from numpy.typing import NDArray

from deploy.simulation.arms import TaskContext, network_of, train_pooled
from deploy.simulation.patients import SimulatedSite
from deploy.simulation.private_heads import FeatureSet
from deploy.simulation.settings import UNSEEN
from site_client.ingest.records import StudyRecord
from site_client.model.network import Network, SequenceNet


def feature_sets(context: TaskContext, seed: int, sites: list[SimulatedSite]) -> tuple[FeatureSet, FeatureSet]:
    """Train the trunk on the training studies, and compute the features of all test studies.

    Returns:
        The vectors of the federated sites, in random order, and those of the unseen site, which judge.
    """
    federated = [site for site in sites if site.name != UNSEEN]
    net = network_of(context, train_pooled(context, seed, "trunk", federated).model)
    training = [study for site in federated for study in site.training]
    known, _ = _vectors(context, net, training)
    mean, deviation = known.mean(axis=0), known.std(axis=0) + 1e-6  # a feature may be the same for all slices

    def of(studies: Sequence[StudyRecord]) -> FeatureSet:
        vectors, labels = _vectors(context, net, studies)
        # About 1 long: what is longer is scaled down, so that a row's length tells nothing.
        x = (vectors - mean) / deviation / np.sqrt(vectors.shape[1])
        x /= np.maximum(1.0, np.linalg.norm(x, axis=1, keepdims=True))
        order = np.random.default_rng(seed).permutation(len(x))
        return FeatureSet(x[order].astype(np.float32), labels[order])

    unseen = [site for site in sites if site.name == UNSEEN]
    return of([s for site in federated for s in site.test]), of([s for site in unseen for s in site.test])


def _vectors(
    context: TaskContext, net: Network, studies: Sequence[StudyRecord]
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Features f32[N,F] and labels int8[N,6] of all slices with known labels."""
    pairs = list(_by_study(context, net, studies))
    return np.concatenate([features for features, _ in pairs]), np.concatenate([labels for _, labels in pairs])


def _by_study(
    context: TaskContext, net: Network, studies: Sequence[StudyRecord]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int8]]]:
    assert isinstance(net, SequenceNet)  # every architecture of a simulation but the one for whole volumes
    loader = context.loader()
    net.eval()
    for study in studies:
        sample = loader.sample(study, None)
        with torch.no_grad():
            embedding = net.embed(sample.x, sample.mask)[0].float().cpu().numpy()
        labels = sample.slice_labels[0].cpu().numpy().astype(np.int8)
        known = (labels != MISSING).all(axis=1)
        yield embedding[known], labels[known]
