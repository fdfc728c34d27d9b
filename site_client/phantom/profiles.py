"""Six sites: their patients and their scanners.

Shares are percent of studies and overlap. Within a site the header carries no label information: everything about the
scanner is drawn from the physics and header streams, which know nothing of the lesion.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Kernel = Literal["smooth", "standard", "sharp", "new"]
ProfileName = Literal["T", "S", "N", "C", "R", "U"]
Percent = Mapping[str, float]  # of studies, by label; a study counts under each of its labels


@dataclass(frozen=True)
class Patients:
    """The patients of a site. `percent`: of studies, by label. `ages`: groups of (share, median, spread) in years.

    The other figures are shares of patients or, for `motion`, of studies; `mimics` is the chance of one rare mimic.
    """

    percent: Percent
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
class Headrest:
    """The headrest: a shell lined with foam.

    `radius_mm`: of the shell, from the middle of the field of view. `squareness`: 2 for a round cup, more for a flat
    one. `from_mm`: it begins so far below the middle.
    """

    radius_mm: float = 121.0
    shell_mm: float = 2.5
    shell_hu: float = 90.0
    foam_mm: float = 9.0
    foam_hu: float = -920.0
    squareness: float = 2.0
    from_mm: float = 40.0


@dataclass(frozen=True)
class Scanner:
    """A scanner and the family of its headers.

    `thickness_mm`: one value, or (base, vertex) for two blocks. `tilt_deg`: lowest and highest gantry tilt. `padding`:
    the stored value outside the reconstruction circle, None for none; `padding_tag`: whether the header declares it.
    `window`: centers and widths in HU. `wrapped`: share of studies with 12-bit overflow. `compressed`: share of series
    that an archive has compressed.
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
    headrest: Headrest = Headrest()


@dataclass(frozen=True)
class Profile:
    """A site. `label_noise`: share of positive slices that differ. `study_labels_only`: share of studies."""

    name: str
    patients: Patients
    scanner: Scanner
    label_noise: float = field(default=0.025)
    study_labels_only: float = field(default=0.0)


# By the name of the scanner's soft kernel, which each site has of its own.
_HEADRESTS: Final = {
    "H41s": Headrest(),
    "UB": Headrest(116.0, 3.5, 60.0, 12.0, -880.0, 2.3, 30.0),
    "H31f": Headrest(124.0, 1.6, 180.0, 5.0, -950.0, 2.0, 10.0),
    "STD+": Headrest(119.0, 5.0, -150.0, 7.0, -900.0, 2.8, 55.0),
    "FC21": Headrest(122.0, 2.0, 40.0, 14.0, -930.0, 4.0, 70.0),
    "Hr40": Headrest(118.0, 3.0, 120.0, 10.0, -860.0, 2.2, -10.0),
}


def _signed16(
    kernel: Kernel, noise: float, thickness: tuple[float, ...], tilt: tuple[float, float], intercept: int, padding: int
) -> Scanner:
    # Each intercept stands for one vendor's habits.
    names = {-1024: ("Alpine Imaging", "H41s"), 0: ("Meridian Medical", "STD+"), -1000: ("Nova CT", "Hr40")}
    manufacturer, kernel_name = names[intercept]
    return Scanner(
        headrest=_HEADRESTS[kernel_name],
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
        headrest=_HEADRESTS[kernel_name],
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
    "T": Profile(  # a trauma center
        "T",
        Patients(
            {
                "epidural": 6,
                "intraparenchymal": 12,
                "intraventricular": 4,
                "subarachnoid": 14,
                "subdural": 18,
                "any": 35,
            },
            ((1.0, 38, 17),),
            mimics=0.35,
            fracture=0.2,
        ),
        _signed16("sharp", 4.0, (2.5, 5.0), (8, 26), -1024, -2000),
    ),
    "S": Profile(  # a stroke hub
        "S",
        Patients(
            {
                "epidural": 0.5,
                "intraparenchymal": 18,
                "intraventricular": 10,
                "subarachnoid": 6,
                "subdural": 7,
                "any": 30,
            },
            ((1.0, 72, 10),),
            mimics=0.5,
            calcification=0.6,
            infarct=0.25,
        ),
        _unsigned12("smooth", 2.5, (5.0,), (0, 0), "Lumen Systems", "UB", implicit=True),
    ),
    "N": Profile(  # a neurosurgical clinic
        "N",
        Patients(
            {
                "epidural": 2,
                "intraparenchymal": 20,
                "intraventricular": 24,
                "subarachnoid": 30,
                "subdural": 14,
                "any": 55,
            },
            ((1.0, 55, 14),),
            mimics=0.4,
            postoperative=0.3,
            metal=0.2,
        ),
        _unsigned12("standard", 3.0, (1.25, 4.0), (0, 20), "Kepler Health", "H31f"),
    ),
    "C": Profile(  # a community hospital
        "C",
        Patients(
            {
                "epidural": 0.3,
                "intraparenchymal": 2,
                "intraventricular": 0.8,
                "subarachnoid": 1.8,
                "subdural": 2.5,
                "any": 6,
            },
            ((1.0, 60, 18),),
            mimics=0.4,
        ),
        _signed16("standard", 3.5, (5.0,), (0, 15), 0, -1500),
    ),
    "R": Profile(  # a rural site with a mobile scanner
        "R",
        Patients(
            {
                "epidural": 0.5,
                "intraparenchymal": 4,
                "intraventricular": 1.5,
                "subarachnoid": 2.5,
                "subdural": 4,
                "any": 10,
            },
            ((1.0, 58, 18),),
            mimics=0.35,
            motion=0.25,
        ),
        _unsigned12("smooth", 6.0, (7.0, 10.0), (10, 20), "Trailhead Mobile", "FC21", wrapped=0.15),
        label_noise=0.08,
        study_labels_only=0.5,
    ),
    "U": Profile(  # unseen: a site that is never federated, with a quarter of children
        "U",
        Patients(
            {"epidural": 1, "intraparenchymal": 6, "intraventricular": 4, "subarachnoid": 5, "subdural": 12, "any": 20},
            ((0.25, 9, 5), (0.75, 78, 8)),
            mimics=0.4,
            chronic_subdural=0.6,
        ),
        _signed16("new", 3.0, (3.0,), (0, 0), -1000, -2000),
    ),
}
