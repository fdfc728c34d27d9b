"""Rules: the thresholds of a head CT that is fit for training. A site may change three of them in site.toml."""

import hashlib
from dataclasses import asdict, dataclass

PIPELINE_VERSION = 1  # raise it when the same files could get another assessment or other HU values


@dataclass(frozen=True)
class SiteWords:
    """Words that a site adds to the lists of `files/wording.py`. Capitals, blanks and signs do not matter.

    `no_contrast`: whole texts of (0018,0010) *Contrast/Bolus Agent* that mean none. `head`, `elsewhere`: words of
    (0018,0015) *Body Part Examined*. `soft_kernels`, `bone_kernels`: whole texts of (0018,1210) *Convolution Kernel*.
    """

    no_contrast: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    soft_kernels: tuple[str, ...] = ()
    bone_kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """Thresholds of the catalog. Lengths are in mm, times in seconds."""

    settle_s: float = 60.0  # a file is complete when neither size nor time changed for this long
    incomplete_after_s: float = 7200.0  # a series with a hole waits this long for the rest
    slices_min: int = 12
    coverage_min_mm: float = 100.0
    coverage_max_mm: float = 260.0
    thickness_min_mm: float = 0.5
    thickness_max_mm: float = 10.0
    field_min_mm: float = 180.0
    field_max_mm: float = 300.0
    tilt_max_degrees: float = 30.0
    preferred_thickness_mm: float = 5.0
    lossy: bool = False
    check_coverage: bool = True  # off only in tests that assess truncated series by other criteria
    check_content: bool = True
    file_max_bytes: int = 64 * 2**20
    no_contrast: tuple[str, ...] = ()  # words of this site, see SiteWords
    head_words: tuple[str, ...] = ()
    elsewhere_words: tuple[str, ...] = ()
    soft_kernels: tuple[str, ...] = ()
    bone_kernels: tuple[str, ...] = ()

    @property
    def words(self) -> SiteWords:
        """The words that this site adds."""
        lists = (self.no_contrast, self.head_words, self.elsewhere_words, self.soft_kernels, self.bone_kernels)
        return SiteWords(*map(tuple, lists))

    @property
    def digest(self) -> str:
        """Hex digest of all thresholds. A series that was assessed under another digest is assessed again."""
        text = repr((PIPELINE_VERSION, sorted(asdict(self).items())))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
