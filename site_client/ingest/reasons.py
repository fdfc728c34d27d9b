"""Reason codes: a closed list of why a file or a series is not trained on, each with a phrase for the people on site.

| prefix | meaning |
|---|---|
| S_ | skipped: a file that does not concern us |
| Q_ | quarantined: a fault in a file, a series or a label; held back until it changes |
| R_ | refused: a sound series that training does not use |
| W_ | warning: an oddity in a series that is used |

Logs, messages and counts hold codes only, and never a header's value, a UID or a path.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Reasons against a file or a series. The value of each is its meaning in words."""

    S_JUNK = "not an image: an empty, temporary, hidden or viewer's file"
    S_NOT_DICOM = "not DICOM"
    S_DIRECTORY = "a DICOMDIR, read only as a list"
    S_ARCHIVE = "an archive, whose members are read as the files of a folder"
    S_TABLE = "a table inside an archive, in which no labels are looked for"
    S_SOP_CLASS = "not a CT image: report, secondary capture, segmentation, other modality"
    S_DUPLICATE = "a copy of an image that is used, or another image of its position"
    S_OUTSIDE_ROOT = "a link that leaves the export, or a member that leaves its archive"
    S_LINK = "a link inside the export, which is not followed"
    S_HIDDEN = "a hidden folder, which is not entered"
    S_HIDDEN_TRUTH = "a phantom's hidden answers, which ingest refuses to read"
    Q_READ = "the file could not be read"
    Q_TRUNCATED = "pixel data ends before the header says it should"
    Q_NO_PIXELS = "an image without pixel data, or with other pixels than whole numbers"
    Q_NO_DECODER = "no decoder for this transfer syntax is installed"
    Q_DECODE = "the pixel data could not be decoded"
    Q_DECODE_LIMIT = "reading or decoding would take more memory or time than allowed"
    Q_ARCHIVE_LIMIT = "an archive beyond the limits of depth, number, ratio or size"
    Q_ARCHIVE_LOCKED = "an archive or a member of one with a password"
    Q_ARCHIVE_DAMAGED = "an archive or a member of one does not unpack: damaged, or packed in a way not known here"
    Q_BAD_UID = "a UID is missing or malformed"
    Q_MISSING_TAG = "an attribute that is needed is missing or malformed"
    Q_UID_CLASH = "a study, a series or an image that two patients, studies or series claim"
    Q_DUP_CONFLICT = "two different images carry one SOP instance UID"
    Q_NO_POSITION = "no position or orientation"
    Q_SAME_POSITION = "different images state one position, and nothing tells which of them it is"
    Q_GAP = "slices are missing between others"
    Q_GEOMETRY = "orientation or spacing is not usable"
    Q_SPLIT = "the series goes on in images of another frame, kernel, spacing or tilt: this is a part of the head"
    Q_INCOMPLETE = "fewer images than the files say the series has"
    Q_HU_RANGE = "values are not Hounsfield units: air or brain is not where it should be"
    Q_STORAGE = "a file of ours could not be written: the disk is full or failing"
    Q_LABEL_CONFLICT = "labels contradict each other"
    R_LOCALIZER = "a localizer"
    R_DERIVED = "a summary, map or reformat"
    R_LOSSY = "lossy compression"
    R_CONTRAST = "contrast agent declared"
    R_BURNED_IN = "text burned into the image"
    R_PERFUSION = "perfusion or another series over time"
    R_MULTIFRAME = "several frames in a file of a class for one frame"
    R_TOO_FEW = "too few slices"
    R_NOT_AXIAL = "not axial"
    R_NOT_HEAD = "not a head"
    R_NO_BRAIN = "no brain tissue"
    R_EXTENT = "coverage, thickness or field of view is not that of a head CT"
    R_LOWER_SCORE = "another series of the study is better"


class Warn(StrEnum):
    """Oddities in a series that is used all the same. The value of each is its meaning in words."""

    W_VARIABLE_SPACING = "distances between slices vary"
    W_MIXED_THICKNESS = "slices of different thickness"
    W_NO_THICKNESS = "thickness not stated, taken from the distances"
    W_OVERLAP = "slices overlap"
    W_LOSSY = "lossy compression, allowed here"
    W_DERIVED = "marked as derived, which recompression alone does too"
    W_WRAPPED = "12-bit values had wrapped and were unwrapped"
    W_NO_PATIENT = "no patient ID: the study counts as a patient of its own"
    W_NO_SOP_CLASS = "no SOP class: taken for CT by modality and geometry"
    W_MANY_STUDIES = "a patient with very many studies: several patients may share one patient ID"
    W_INSTANCE_HOLE = "instance numbers have holes, positions have none"


class SeriesState(StrEnum):
    """State of a stack. `state_of` derives it from the reasons; a scan may find READY still WAITING."""

    READY = "ready"
    WAITING = "still arriving"
    NOT_SELECTED = "not selected"
    QUARANTINED = "quarantined"


def state_of(reasons: tuple[Reason, ...]) -> SeriesState:
    """Derives the state from the reasons. One fault (Q_) outweighs any number of refusals (R_)."""
    # A fault may be repaired and the series then be ready; a refusal stays what it is.
    if any(reason.name.startswith("Q_") for reason in reasons):
        return SeriesState.QUARANTINED
    return SeriesState.NOT_SELECTED if reasons else SeriesState.READY
