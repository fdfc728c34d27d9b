"""Six sites: who their patients are and what scanner they have.

Shares are percent of studies and overlap. Within a site the header carries no label information: everything about the
scanner is drawn from the physics and header streams, which know nothing of the lesion.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

Kernel = Literal["smooth", "standard", "sharp", "new"]
ProfileName = Literal["T", "S", "N", "C", "R", "U"]


@dataclass(frozen=True)
class Patients:
    """Who comes. `percent` of studies by subtype (RSNA order, `any` last); age as (share, median, spread) groups."""

    percent: tuple[float, ...]
    ages: tuple[tuple[float, float, float], ...]
    mimics: float
    fracture: float = 0.02
    calcification: float = 0.25
    infarct: float = 0.06
    postoperative: float = 0.02
    metal: float = 0.01
    motion: float = 0.03
    chronic_subdural: float = 0.2


@dataclass(frozen=True)
class Scanner:
    """What takes the images, and the family of its headers.

    thickness_mm: one value, or (base, vertex) for two blocks; padding: the stored value outside the reconstruction
    circle, None for none; padding_tag: whether the header declares it; wrapped: share of studies with 12-bit overflow.
    """

    kernel: Kernel
    noise_hu: float
    thickness_mm: tuple[float, ...]
    tilt_deg: tuple[float, float]
    kvp: int
    signed: bool
    bits_stored: int
    implicit: bool
    intercept: int
    padding: int | None
    padding_tag: bool
    manufacturer: str
    kernel_name: str
    window: tuple[tuple[float, ...], tuple[float, ...]]
    wrapped: float = 0.0
    compressed: float = 0.15


@dataclass(frozen=True)
class Profile:
    name: str
    patients: Patients
    scanner: Scanner
    label_noise: float = field(default=0.025)
    study_labels_only: float = field(default=0.0)


def _signed16(
    kernel: Kernel, noise: float, thickness: tuple[float, ...], tilt: tuple[float, float], intercept: int, padding: int
) -> Scanner:
    names = {-1024: ("Alpine Imaging", "H41s"), 0: ("Meridian Medical", "STD+"), -1000: ("Nova CT", "Hr40")}
    manufacturer, kernel_name = names[intercept]
    return Scanner(
        kernel=kernel,
        noise_hu=noise,
        thickness_mm=thickness,
        tilt_deg=tilt,
        kvp=100 if intercept == -1000 else 120,
        signed=True,
        bits_stored=16,
        implicit=False,
        intercept=intercept,
        padding=padding,
        padding_tag=intercept != -1000,
        manufacturer=manufacturer,
        kernel_name=kernel_name,
        window=((40.0, 600.0), (80.0, 2800.0)) if intercept == -1024 else ((35.0,), (85.0,)),
    )


def _unsigned12(
    kernel: Kernel,
    noise: float,
    thickness: tuple[float, ...],
    tilt: tuple[float, float],
    manufacturer: str,
    kernel_name: str,
    implicit: bool = False,
    wrapped: float = 0.0,
) -> Scanner:
    return Scanner(
        kernel=kernel,
        noise_hu=noise,
        thickness_mm=thickness,
        tilt_deg=tilt,
        kvp=120,
        signed=False,
        bits_stored=12,
        implicit=implicit,
        intercept=-1024,
        padding=None,
        padding_tag=False,
        manufacturer=manufacturer,
        kernel_name=kernel_name,
        window=((36.0, 36.0), (80.0, 80.0)),
        wrapped=wrapped,
    )


PROFILES: Final[dict[str, Profile]] = {
    "T": Profile(
        "T",
        Patients((6, 12, 4, 14, 18, 35), ((1.0, 38, 17),), mimics=0.35, fracture=0.2),
        _signed16("sharp", 4.0, (2.5, 5.0), (8, 26), -1024, -2000),
    ),
    "S": Profile(
        "S",
        Patients((0.5, 18, 10, 6, 7, 30), ((1.0, 72, 10),), mimics=0.5, calcification=0.6, infarct=0.25),
        _unsigned12("smooth", 2.5, (5.0,), (0, 0), "Lumen Systems", "UB", implicit=True),
    ),
    "N": Profile(
        "N",
        Patients((2, 20, 24, 30, 14, 55), ((1.0, 55, 14),), mimics=0.4, postoperative=0.3, metal=0.2),
        _unsigned12("standard", 3.0, (1.25, 4.0), (0, 20), "Kepler Health", "H31f"),
    ),
    "C": Profile(
        "C",
        Patients((0.3, 2, 0.8, 1.8, 2.5, 6), ((1.0, 60, 18),), mimics=0.4),
        _signed16("standard", 3.5, (5.0,), (0, 15), 0, -1500),
    ),
    "R": Profile(
        "R",
        Patients((0.5, 4, 1.5, 2.5, 4, 10), ((1.0, 58, 18),), mimics=0.35, motion=0.25),
        _unsigned12("smooth", 6.0, (7.0, 10.0), (10, 20), "Trailhead Mobile", "FC21", wrapped=0.15),
        label_noise=0.08,
        study_labels_only=0.5,
    ),
    "U": Profile(
        "U",
        Patients((1, 6, 4, 5, 12, 20), ((0.25, 9, 5), (0.75, 78, 8)), mimics=0.4, chronic_subdural=0.6),
        _signed16("new", 3.0, (3.0,), (0, 0), -1000, -2000),
    ),
}
