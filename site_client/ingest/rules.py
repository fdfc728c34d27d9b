"""Rules: the thresholds of a head CT that is fit for training. A site may change some of them in site.toml."""

import hashlib
from dataclasses import asdict, dataclass

PIPELINE_VERSION = 4  # raise it when the same files could get another assessment or other HU values


FILE_BYTES_MAX = 64 * 2**20  # a single-frame CT of 1024 x 1024 pixels takes 2 MiB
# Limits of an archive with all archives inside it. CT packs two to four times, an empty image a thousand times.
ARCHIVE_MEMBERS_MAX = 200_000  # their list takes a second to parse, and 100 MB
ARCHIVES_DEEP_MAX = 3
ARCHIVE_RATIO_MAX = 100  # of unpacked bytes to the archive's own, from ARCHIVE_FREE_BYTES on
ARCHIVE_FREE_BYTES = 256 * 2**20
ARCHIVE_BYTES_MAX = 2**40  # unpacked

# Rules that the header pass does not ask. A new rule counts as one that it asks: headers are then read again.
_FOR_SERIES_ONLY = frozenset((
    "settle_s", "incomplete_after_s", "slices_min", "coverage_min_mm", "coverage_max_mm", "thickness_min_mm",
    "thickness_max_mm", "field_min_mm", "field_max_mm", "tilt_max_degrees", "preferred_thickness_mm",
    "check_coverage", "check_content", "studies_of_a_patient_max",
))  # fmt: skip


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

    settle_s: float = 60.0  # two scans this far apart find the same files; 0: the export is complete, nothing waits
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
    file_max_bytes: int = FILE_BYTES_MAX  # of a file, of its inflated bytes and of its decoded image
    patient_tag: str = "0010,0020"  # the attribute that names a patient, (0010,0020) *Patient ID*
    studies_of_a_patient_max: int = 30  # more of them are noticed: many patients may share one ID
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
        return _digest(asdict(self))

    @property
    def header_digest(self) -> str:
        """Hex digest of the rules that the header pass asks. A header that was read under another one is read again."""
        return _digest({name: value for name, value in asdict(self).items() if name not in _FOR_SERIES_ONLY})


def _digest(table: dict[str, object]) -> str:
    text = repr((PIPELINE_VERSION, sorted(table.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
