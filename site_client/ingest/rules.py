"""What counts as a head CT fit for training. Defaults are MODEL.md section 1; a site may widen or narrow them."""

import hashlib
from dataclasses import asdict, dataclass

PIPELINE_VERSION = 1  # raise it when a verdict or a HU value could come out differently for the same files


@dataclass(frozen=True)
class Rules:
    """Thresholds of the catalog. Lengths in mm, times in seconds, fractions of 1."""

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
    check_coverage: bool = True  # off only for judging other criteria on truncated test series
    check_content: bool = True
    file_max_bytes: int = 64 * 2**20

    @property
    def digest(self) -> str:
        """Hex; verdicts reached under another digest are reached anew."""
        text = repr((PIPELINE_VERSION, sorted(asdict(self).items())))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
