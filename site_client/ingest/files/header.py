"""What ingest knows of one CT image after its header was read: geometry, flags, pseudonyms. No text, no UID."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.records import PatientKey, SeriesKey, SliceKey, StudyKey

Kernel = Literal["soft", "unknown", "bone"]
Origin = Literal["original", "derived", "reformatted"]


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """One image. Lengths in mm, in the patient's coordinates (DICOM PS3.3 C.7.6.2: x left, y posterior, z cranial).

    `reasons`: what the header alone says against the image; `warnings`: what was odd. `position` and `orientation` are
    empty when absent, `thickness_mm` 0.0, numbers -1, `expected` (images in the series, (0020,1209)) 0.
    """

    study_key: StudyKey
    patient_key: PatientKey
    series_key: SeriesKey
    slice_key: SliceKey
    frame_key: str
    kernel_key: str
    kernel: Kernel
    origin: Origin
    acquisition: int
    instance: int
    rows: int
    columns: int
    spacing_mm: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    thickness_mm: float
    expected: int
    native: bool
    reasons: tuple[Reason, ...]
    warnings: tuple[Warn, ...]

    def to_json(self) -> str:
        """Closed form for the catalog."""
        table = asdict(self)
        table["reasons"] = [reason.name for reason in self.reasons]
        table["warnings"] = [warning.name for warning in self.warnings]
        return json.dumps(table, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "DicomHeader":
        """The inverse."""
        table = json.loads(text)
        table["reasons"] = tuple(Reason[name] for name in table["reasons"])
        table["warnings"] = tuple(Warn[name] for name in table["warnings"])
        for name in ("spacing_mm", "position", "orientation"):
            table[name] = tuple(table[name])
        return cls(**table)
