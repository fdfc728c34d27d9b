"""Light augmentation: one draw for all slices of a study. z is never reversed."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the augmentation. Each but the first and the last is drawn uniformly from -value to +value.

    Attributes:
        flip_probability: Probability of exchanging left and right.
        rotation_degrees: Degrees in the plane.
        scale: Relative change of size.
        shift: Share of the image's width and height.
        offset: Added to all windows, whose range is [-1,1]; .06 is 2.4 HU in the brain window.
        gain: Relative change of contrast.
        noise: Largest standard deviation of white noise.
    """

    flip_probability: float = 0.5
    rotation_degrees: float = 10.0
    scale: float = 0.08
    shift: float = 0.04
    offset: float = 0.06
    gain: float = 0.03
    noise: float = 0.02


def augment(x: Tensor, ranges: Augmentation, rng: np.random.Generator) -> Tensor:
    """Turn, scale and shift the slices of a study, and change their brightness.

    Args:
        x: f32[T,C,H,W] in [-1,1].
        ranges: See `Augmentation`.
        rng: All random numbers come from it.

    Returns:
        f32[T,C,H,W] in [-1,1]. Pixels from outside the image are air (-1).
    """
    # grid_sample pads with 0, so air has to be 0 while it runs.
    moved = F.grid_sample(x + 1, _grid(x, ranges, rng), align_corners=False) - 1
    shade = moved * (1 + ranges.gain * rng.uniform(-1, 1)) + ranges.offset * rng.uniform(-1, 1)
    # Drawn on the device, which is faster than copying it there. So a GPU draws other noise than a CPU.
    noise_rng = torch.Generator(x.device).manual_seed(int(rng.integers(2**63)))
    noise = torch.randn(x.shape, generator=noise_rng, device=x.device)
    return (shade + noise * (ranges.noise * rng.uniform())).clamp(-1, 1)


def _grid(x: Tensor, ranges: Augmentation, rng: np.random.Generator) -> Tensor:
    flip = -1.0 if rng.uniform() < ranges.flip_probability else 1.0
    angle = math.radians(ranges.rotation_degrees) * rng.uniform(-1, 1)
    zoom = 1 + ranges.scale * rng.uniform(-1, 1)
    across, down = ranges.shift * 2 * rng.uniform(-1, 1, size=2)
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    matrix = torch.tensor([[cos * flip, -sin, across], [sin * flip, cos, down]], dtype=x.dtype, device=x.device)
    return F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
