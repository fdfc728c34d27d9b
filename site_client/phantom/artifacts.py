"""Artifacts: the effects of physics on an image besides blur and noise.

Every function changes an HU image f32[T, H, W] in place. Each draws the same random numbers whatever the image holds.
So a twin meets the same accidents as its study.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from site_client.phantom.lattice import Scan
from site_client.phantom.noise import Floats
from site_client.phantom.profiles import Kernel

VAULT_MM = 15.0  # of bone that a ray meets on one side of an ordinary vault; only more hardens the beam visibly
WATER_SD_HU, WATER_MAX_HU = 2.5, 5.0
GAIN_SD = 0.03  # of what absorbs more than water
OVERSHOOT: dict[Kernel, float] = {"smooth": 0.0, "standard": 0.12, "sharp": 0.4, "new": 0.3}


def scale_kvp(image: Floats, kvp: int) -> None:
    """Scales bone and blood to the tube voltage: the lower, the more calcium absorbs, and blood a little more."""
    if kvp != 120:
        bone, blood = (1.16, 1.04) if kvp < 120 else (0.9, 0.98)
        np.copyto(image, 100 + (image - 100) * np.float32(bone), where=image > 100)
        np.copyto(image, 35 + (image - 35) * np.float32(blood), where=(image > 40) & (image < 100))


def overshoot(image: Floats, scan: Scan, kernel: Kernel) -> None:
    """Adds a sharp kernel's ringing beside bone."""
    gain = OVERSHOOT[kernel]
    if gain:
        sigma = max(0.6, 0.9 / scan.pixel_mm)
        image += np.float32(gain) * (image - ndimage.gaussian_filter(image, (0, sigma, sigma), truncate=2.5))


def harden(random: np.random.Generator, image: Floats, bone: Floats, scan: Scan) -> None:
    """Adds dark bands of 10-20 HU between the petrous bones, and a rim 3-8 HU too bright under the vault.

    `bone`: f32[T, H, W], what hardens a beam.
    """
    rim, band = random.uniform(3, 8), random.uniform(0.7, 1.3)
    step = max(1, round(1.6 / scan.pixel_mm))  # the bands are smooth, so a coarse grid is enough
    dense = np.clip(bone[:, ::step, ::step] / 900, 0, 1.3)
    dense[dense < 0.35] = 0
    grid_mm = scan.pixel_mm * step
    # The path through bone on either side; the shorter one decides, because a band lies between two bones.
    left = np.cumsum(dense, axis=2, dtype=np.float32) * grid_mm
    right = left[:, :, -1:] - left
    dark = -np.clip(band * (np.minimum(left, right) - VAULT_MM), 0, 20)
    dark = ndimage.gaussian_filter(dark, (0, 3 / grid_mm, 1.5 / grid_mm), truncate=2.5)
    glow = ndimage.gaussian_filter(np.minimum(dense, 1), (0, 4 / grid_mm, 4 / grid_mm), truncate=2.5)
    coarse = dark + 2 * rim * np.minimum(glow, 0.5)
    change = np.repeat(np.repeat(coarse, step, axis=1), step, axis=2)[:, : image.shape[1], : image.shape[2]]
    image += np.where((image > -150) & (image < 200), change, np.float32(0))


def blur_by_motion(random: np.random.Generator, image: Floats, scan: Scan, chance: float) -> None:
    """Adds double contours to a few neighbouring slices: the patient moved."""
    # All numbers are drawn first: a patient who lies still must not shift the stream.
    moved = random.random() < chance
    start, length = random.uniform(0, 0.8), int(random.integers(2, 7))
    shift = random.normal(0, 2.2, 2) / scan.pixel_mm
    first = int(start * scan.slices)
    if moved:
        for k in range(first, min(scan.slices, first + length)):
            other = ndimage.shift(image[k], shift, order=1, mode="nearest")
            image[k] = 0.55 * image[k] + 0.45 * other


def streak(random: np.random.Generator, image: Floats, scan: Scan, metal_mm: list[npt.NDArray[np.float64]]) -> None:
    """Adds streaks around metal. `metal_mm`: positions in scanner space."""
    phase = random.uniform(0, np.pi)
    # A star of rays in the slice of the metal, fading with distance.
    for place in metal_mm:
        along = place[2] * np.cos(scan.tilt_rad) - place[1] * np.sin(scan.tilt_rad)
        k = int(np.argmin(np.abs(scan.along_mm - along)))
        pixels = (np.arange(scan.size_px) - (scan.size_px - 1) / 2) * scan.pixel_mm
        down = place[1] * np.cos(scan.tilt_rad) + place[2] * np.sin(scan.tilt_rad)
        down -= scan.along_mm[k] * np.tan(scan.tilt_rad)
        y, x = np.meshgrid(pixels - down, pixels - place[0], indexing="ij")
        angle, radius = np.arctan2(y, x), np.hypot(x, y)
        rays = np.cos(9 * angle + phase) * np.cos(4 * angle - 2 * phase)
        image[k] += np.where(image[k] > -300, 380 * rays / (1 + radius / 6), 0).astype(np.float32)


def miscalibrate(random: np.random.Generator, image: Floats) -> None:
    """Shifts and scales f32[T, H, W] in place, as the water calibration of a scanner of that day allows.

    A scanner passes with water between -5 and 5 HU (ACR CT accreditation, phantom testing). The mean brain differs by
    as much as a small bleed changes it, so brightness alone must not tell them apart.
    """
    water_hu = np.clip(random.normal(0, WATER_SD_HU), -WATER_MAX_HU, WATER_MAX_HU)
    gain = random.normal(0, GAIN_SD)
    image += np.float32(water_hu) + np.float32(gain) * np.maximum(image, 0)
