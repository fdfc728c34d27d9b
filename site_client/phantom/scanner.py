"""Turns tissue into an image: layout of the scan, blur, noise, and the headrest."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from site_client.phantom.lattice import Scan
from site_client.phantom.noise import Floats
from site_client.phantom.profiles import Headrest, Kernel, Scanner

# Sigma of the point spread.
BLUR_MM: dict[Kernel, float] = {"smooth": 0.75, "standard": 0.6, "sharp": 0.42, "new": 0.5}
# Sigma of the noise filter: CT noise is correlated over 1.5-2 px of 0.45 mm, and white noise is a give-away.
NOISE_MM: dict[Kernel, float] = {"smooth": 0.62, "standard": 0.5, "sharp": 0.4, "new": 0.45}

LOWEST_MM, HIGHEST_MM = -60.0, 88.0  # extent of a scan in head space
PARTS_MM = 40.0  # length of the thin base block where a scanner uses two thicknesses


def lay_out(
    random: np.random.Generator, scanner: Scanner, size_px: int, thickness_mm: float | None, head_mm: tuple[float, ...]
) -> Scan:
    """Lays out a scan of the whole head.

    Args:
        random: The study's physics stream.
        scanner: Decides thickness and tilt.
        size_px: Rows and columns.
        thickness_mm: In place of the scanner's own.
        head_mm: Half extents of the inner skull.
    """
    thickness = _thicknesses(random, scanner, thickness_mm, head_mm[2])
    edges = np.concatenate([[0.0], np.cumsum(thickness)])
    start = LOWEST_MM + float(random.uniform(-4, 4))
    low, high = scanner.tilt_deg
    tilt = -np.deg2rad(random.uniform(low, high)) if high else 0.0
    pixel_mm = float(random.uniform(225, 248)) / size_px
    room = 0.5 * pixel_mm * size_px - np.array([82.0, 105.0])
    # The head must fit into the field of view wherever it lies.
    reach = np.clip(room, 1.0, 20.0)
    center = np.array([random.uniform(-1, 1) * reach[0], random.uniform(-1, 1) * reach[1], 0.0])
    center[1] += 2.0
    return Scan(
        size_px=size_px,
        pixel_mm=round(pixel_mm, 6),
        tilt_rad=float(tilt),
        along_mm=start + (edges[:-1] + edges[1:]) / 2,
        thickness_mm=thickness,
        sample_mm=1.3 if size_px > 160 else 2.5,
        pose=_rotation(np.deg2rad(np.clip(random.normal(0, [3.0, 2.5, 3.5]), -10, 10))),
        center_mm=center,
    )


def _thicknesses(
    random: np.random.Generator, scanner: Scanner, thickness_mm: float | None, top_mm: float
) -> npt.NDArray[np.float64]:
    length = HIGHEST_MM - LOWEST_MM - (71.0 - top_mm)
    if thickness_mm is not None:
        return np.full(int(np.ceil(length / thickness_mm)), float(thickness_mm))
    if len(scanner.thickness_mm) == 1:
        return np.full(int(np.ceil(length / scanner.thickness_mm[0])), scanner.thickness_mm[0])
    base, vertex = scanner.thickness_mm
    thin = int(PARTS_MM / base)
    thick = int(np.ceil((length - thin * base) / vertex))
    return np.concatenate([np.full(thin, base), np.full(thick, vertex)])


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Computes the rotation about x (nod), y (lean), z (turn), in that order."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    nod = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    lean = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    turn = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return np.asarray(turn @ lean @ nod)


def full_image(scan: Scan, scanner: Scanner, box: tuple[slice, slice], head: Floats) -> Floats:
    """Sets the box of the head, f32[T, h, w], into the field of view, f32[T, H, W], with the scanner's headrest."""
    image = np.full((scan.slices, scan.size_px, scan.size_px), -1000.0, dtype=np.float32)
    image[:, box[0], box[1]] = head
    rest = _headrest(scan, scanner.headrest)
    return np.where((image < -700) & (rest > -1000), rest[None], image)


def _headrest(scan: Scan, headrest: Headrest) -> Floats:
    pixels = (np.arange(scan.size_px) - (scan.size_px - 1) / 2) * scan.pixel_mm
    y, x = pixels[:, None], pixels[None, :]
    # A cup is round; a flat one is a superellipse. Foam lines the shell.
    away = (np.abs(x) ** headrest.squareness + np.abs(y + 6.0) ** headrest.squareness) ** (1 / headrest.squareness)
    rest = np.full(away.shape, -1000.0, dtype=np.float32)
    inner = headrest.radius_mm - headrest.foam_mm
    rest[(away > inner) & (away <= headrest.radius_mm) & (y > headrest.from_mm + 5)] = headrest.foam_hu
    shell = (away > headrest.radius_mm) & (away < headrest.radius_mm + headrest.shell_mm) & (y > headrest.from_mm)
    rest[shell] = headrest.shell_hu
    return rest


def blur(image: Floats, scan: Scan, kernel: Kernel) -> Floats:
    """Applies the kernel's point spread in the plane to f32[T, H, W], at least that of the pixel grid itself."""
    sigma = max(0.45, BLUR_MM[kernel] / scan.pixel_mm)
    return np.asarray(ndimage.gaussian_filter(image, (0, sigma, sigma), truncate=3.0), dtype=np.float32)


def add_noise(random: np.random.Generator, image: Floats, bone: Floats, scan: Scan, scanner: Scanner) -> Floats:
    """Adds correlated noise to f32[T, H, W], rising to the rim and with the bone that takes the photons."""
    white = random.standard_normal(image.shape, dtype=np.float32)
    sigma = NOISE_MM[scanner.kernel] / min(scan.pixel_mm, 0.6)
    noise = ndimage.gaussian_filter(white, (0, sigma, sigma), truncate=3.0)
    noise /= noise.std()
    pixels = (np.arange(scan.size_px) - (scan.size_px - 1) / 2) * scan.pixel_mm / 100
    radial = 0.9 + 0.2 * (pixels[:, None] ** 2 + pixels[None, :] ** 2)
    dense = (bone[:, ::4, ::4] > 300).mean(axis=(1, 2))
    # Noise falls with the square root of the photons, and so of the thickness.
    thin = np.sqrt(5.0 / np.clip(scan.thickness_mm, 2.5, 10))
    level = scanner.noise_hu * thin * (0.85 + 2.5 * np.minimum(dense, 0.12))
    noise *= level[:, None, None].astype(np.float32) * radial[None].astype(np.float32)
    return np.asarray(image + noise, dtype=np.float32)
