"""Synthetic slices for the start of affine layers: no patient's statistic may be part of initial weights.

They have the gross look of the input of a network: a ring of bone around smooth tissue with dark and bright spots, air
outside. The phantom of `site_client.phantom` would do as well, but makes whole studies and takes a hundred times
longer.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

SLICES: Final = 16
SIZE_PX: Final = 64
# Brain, subdural and bone window of each tissue in [-1,1], at HU of about -1000, 30, 8, 65 and 1000.
_AIR, _BRAIN, _FLUID, _BLOOD, _BONE = (
    (-1.0, -1.0, -1.0),
    (-0.25, -0.5, -0.41),
    (-0.8, -0.72, -0.42),
    (0.62, -0.15, -0.38),
    (1.0, 1.0, 0.29),
)


def synthetic_slices(generator: torch.Generator) -> Tensor:
    """Draw slices with the five channels of a network: f32[16,5,64,64] in [-1,1]."""
    across = torch.linspace(-1, 1, SIZE_PX)
    y, x = torch.meshgrid(across, across, indexing="ij")
    half = 0.65 + 0.3 * torch.rand(2, SLICES, 1, 1, generator=generator)
    radius = ((x / half[0]) ** 2 + (y / half[1]) ** 2).sqrt() + 0.04 * _smooth(generator, 4)
    bone = 0.12 + 0.12 * torch.rand(SLICES, 1, 1, generator=generator)
    texture = _smooth(generator, 6)
    tissue = torch.zeros(SLICES, SIZE_PX, SIZE_PX, dtype=torch.long)
    # Order: each tissue covers the ones before it.
    tissue[radius < 1] = 4
    inside = radius < 1 - bone
    tissue[inside] = 1
    tissue[inside & (texture < -1.1)] = 2
    tissue[inside & (_smooth(generator, 10) > 1.9)] = 3
    values = torch.tensor([_AIR, _BRAIN, _FLUID, _BLOOD, _BONE])[tissue].movedim(-1, 1)  # [N,3,H,W]
    soft = (tissue.unsqueeze(1) > 0) & (tissue.unsqueeze(1) < 4)
    noise = torch.randn(SLICES, 1, SIZE_PX, SIZE_PX, generator=generator)
    windows = values + soft * (0.1 * texture.unsqueeze(1) + 0.06 * noise) * torch.tensor([1.0, 0.4, 0.03]).view(
        1, 3, 1, 1
    )
    brain, subdural, bone_window = F.avg_pool2d(windows.clamp(-1, 1), 3, 1, 1, count_include_pad=False).unbind(1)
    neighbours = [brain.roll(shift, 0) * 0.5 + brain * 0.5 for shift in (1, -1)]
    return torch.stack([neighbours[0], brain, neighbours[1], subdural, bone_window], dim=1)


def _smooth(generator: torch.Generator, cells: int) -> Tensor:
    """f32[16,64,64] of mean 0 and variance near 1: noise on a grid of so many cells, enlarged."""
    grid = torch.randn(SLICES, 1, cells, cells, generator=generator)
    return F.interpolate(grid, SIZE_PX, mode="bicubic", align_corners=True)[:, 0]
