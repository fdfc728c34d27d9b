"""The facts of one CT image that ingest keeps after its header was read. They hold no text and no UID."""

import json
from dataclasses import dataclass
from typing import Literal

from site_client.ingest.files.wording import Contrast, Kernel
from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.records import PatientKey, SeriesKey, SliceKey, StudyKey

Origin = Literal["original", "derived", "reformatted"]


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """One image. Lengths are in mm, in the patient's coordinates: x left, y posterior, z cranial (PS3.3 C.7.6.2).

    An absent tuple is empty, an absent thickness 0.0, an absent number -1, an absent `expected` 0.

    `frame_key`: pseudonym of (0020,0052) *Frame of Reference UID*. `kernel_key`: pseudonym of (0018,1210) *Convolution
    Kernel*; `kernel`: its class. `origin`: from (0008,0008) *Image Type*. `acquisition`: (0020,0012) *Acquisition
    Number*. `instance`: (0020,0013) *Instance Number*. `spacing_mm`: (0028,0030) *Pixel Spacing*, between rows, between
    columns. `position`: (0020,0032) *Image Position (Patient)*. `orientation`: (0020,0037) *Image Orientation
    (Patient)*. `expected`: (0020,1209) *Number of Series Related Instances*. `native`: the transfer syntax is not
    compressed. `reasons`: codes against the image by its header alone. `warnings`: oddities. `accession_key`: pseudonym
    of (0008,0050) *Accession Number*. `contrast`: as declared by the agent, its sequence or its volume.
    `series_number`: (0020,0011) *Series Number*. `since_study_s`: seconds from the study's begin to the image's, which
    names no date. `frames`: in the file that the image is one of.
    """

    # Pseudonyms only: the catalog stores this object.
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
    accession_key: str = ""
    contrast: Contrast = "not stated"
    series_number: int = -1
    since_study_s: float | None = None
    frames: int = 1

    def to_json(self) -> str:
        """Writes the header for the catalog."""
        table = {field: getattr(self, field) for field in self.__slots__}
        # Names, not values: the sentences of a code may change, and old rows stay readable.
        table["reasons"] = [reason.name for reason in self.reasons]
        table["warnings"] = [warning.name for warning in self.warnings]
        return json.dumps(table, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "DicomHeader":
        """Reads the text that `to_json` wrote."""
        table = json.loads(text)
        table["reasons"] = tuple(Reason[name] for name in table["reasons"])
        table["warnings"] = tuple(Warn[name] for name in table["warnings"])
        for name in ("spacing_mm", "position", "orientation"):  # JSON has lists only
            table[name] = tuple(table[name])
        return cls(**table)


@dataclass(frozen=True, slots=True)
class MultiframeHeader:
    """A file with several images: the header of each, in the order of the file."""

    frames: tuple[DicomHeader, ...]


Header = DicomHeader | MultiframeHeader
