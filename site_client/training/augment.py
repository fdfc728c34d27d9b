"""Light augmentation: one draw per study, the same for all its slices. Never a reversal of z."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges, each drawn uniformly from -value to +value; flip_probability for left and right."""

    flip_probability: float = 0.5
    rotation_degrees: float = 10.0
    scale: float = 0.08
    shift: float = 0.04  # of the image's width
    offset: float = 0.06  # of the windows' range [-1,1]: 2.4 HU in the brain window
    gain: float = 0.03
    noise: float = 0.02  # standard deviation, at most


def augment(x: Tensor, by: Augmentation, rng: np.random.Generator) -> Tensor:
    """x f32[T,C,H,W] in [-1,1] -> the same, moved, turned and shifted in brightness; what moves in is air (-1)."""
    moved = F.grid_sample(x + 1, _grid(x, by, rng), align_corners=False) - 1
    shade = moved * (1 + by.gain * rng.uniform(-1, 1)) + by.offset * rng.uniform(-1, 1)
    grain = torch.randn(x.shape, generator=_generator(rng, x.device), device=x.device)
    return (shade + grain * (by.noise * rng.uniform())).clamp(-1, 1)


def _generator(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    """Seeded by the next number of `rng`. Noise is drawn where it is used: other noise on a GPU than on a CPU."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**63)))


def _grid(x: Tensor, by: Augmentation, rng: np.random.Generator) -> Tensor:
    flip = -1.0 if rng.uniform() < by.flip_probability else 1.0
    angle = math.radians(by.rotation_degrees) * rng.uniform(-1, 1)
    zoom = 1 + by.scale * rng.uniform(-1, 1)
    across, down = by.shift * 2 * rng.uniform(-1, 1, size=2)
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    matrix = torch.tensor([[cos * flip, -sin, across], [sin * flip, cos, down]], dtype=x.dtype, device=x.device)
    return F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
