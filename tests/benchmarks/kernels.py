"""Train slice-wise DenseNet121 with other kernels, normalizations and poolings: the comparison of decision 0016.

python tests/benchmarks/kernels.py --out DIR [options of `hemofed-site benchmark`]

There is an arm for each combination; `--arms all` trains all eight. `published-group-mean` is the network as it was
before that decision. `--batch 16 --slices-per-study 1` gives the steps of the decision's trials.
"""

from collections.abc import Callable
from itertools import product
from types import MappingProxyType

import torch
from monai.networks.nets import DenseNet121

from site_client.model import registry
from site_client.model.backbones import Pooled, densenet
from site_client.model.layers import Normalization, start_affine_layers, without_batch_norm
from site_client.model.network import CHANNELS, Network, SequenceHead, SequenceNet
from site_client.model.synthetic import synthetic_slices

KERNELS = {"published": False, "standardized": True}
NORMALIZATIONS: tuple[Normalization, ...] = ("group", "affine")
POOLINGS = {"mean": False, "peaks": True}


def constructor(standardized: bool, normalization: Normalization, peaks: bool) -> Callable[[], Network]:
    """Return the constructor of one variant."""

    def construct() -> Network:
        maps, features = densenet(DenseNet121, CHANNELS)
        without_batch_norm(maps, normalization, standardized=standardized)
        if normalization == "affine":
            start_affine_layers(maps, synthetic_slices(torch.Generator().manual_seed(1)))
        head = SequenceHead((1 + peaks) * features, width=256, hidden=128, layers=2, recurrence=None, dropout=0.3)
        return SequenceNet(Pooled(maps, peaks), head, recompute=True)

    return construct


def main() -> None:
    """Run the benchmark's command on the variants."""
    registry.ARCHITECTURES = MappingProxyType(  # type: ignore[misc]  # Final: only this script has other arms
        {
            f"{kernels}-{normalization}-{pooling}": constructor(KERNELS[kernels], normalization, POOLINGS[pooling])
            for kernels, normalization, pooling in product(KERNELS, NORMALIZATIONS, POOLINGS)
        }
    )
    # Order: the command takes the table of architectures when it is imported.
    from site_client.benchmark.command import benchmark

    benchmark()


if __name__ == "__main__":
    main()
