"""The header pass: it turns one file into a DicomHeader, or into the one code that says why it is no CT image.

It decodes no pixel, raises nothing because of a file's contents, and lets no value of a header out. pydicom's own
checks are off, because their warnings quote the value; its logger is silent; texts are compared, then dropped. Elements
are parsed from their raw bytes, which tolerates missing character sets, overlong UIDs and decimal commas.
"""

import logging
import warnings
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

from pydicom import config
from pydicom.dataset import FileDataset
from pydicom.uid import UID

from site_client.ingest.files import multiframe, tags
from site_client.ingest.files.addresses import parse_address
from site_client.ingest.files.archives import begins_as_archive
from site_client.ingest.files.decoders import LOSSY_SYNTAXES, RAW_SYNTAXES, encoding_syntax, has_decoder
from site_client.ingest.files.header import DicomHeader, Header, MultiframeHeader, Origin
from site_client.ingest.files.multiframe import ENHANCED_CT, LEGACY_CONVERTED_CT, MULTIFRAME_BYTES_MAX
from site_client.ingest.files.parse import LimitExceeded, ParsedFile, parse
from site_client.ingest.files.pixel_length import pixel_reason
from site_client.ingest.files.single_frames import FRAMES
from site_client.ingest.files.sources import open_image
from site_client.ingest.files.tags import Fields
from site_client.ingest.files.wording import Contrast, accession_number, contrast_of, is_elsewhere, kernel_class
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.records import PatientKey, SeriesKey, StudyKey
from site_client.ingest.rules import Rules

# Both at import, before any file is read: their messages quote header values.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

_ANY_SIZE = 1 << 62  # a header is read by its elements, whatever the size of the file behind it

# SOP classes (PS3.4 annex B): CT Image Storage; DICOMDIR.
CT = "1.2.840.10008.5.1.4.1.1.2"
MULTIFRAME_CT = frozenset((ENHANCED_CT, LEGACY_CONVERTED_CT))
DIRECTORY = "1.2.840.10008.1.3.10"

# Values of (0008,0008) *Image Type*.
_LOCALIZERS = frozenset(("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"))
_MAPS = frozenset((
    "MIP", "MINIP", "VOLREN", "REF_SURVIEW", "PATIENT_INFO", "DOSE_INFO", "SCREENSAVE", "MONOENERGETIC", "MONO",
    "IODINE", "VNC", "OVERLAY", "RHO_Z", "ZEFF", "PRESENTATION", "SUBTRACTION", "MASK",
))  # fmt: skip
_PERFUSION = frozenset((
    "PERFUSION", "RCBF", "RCBV", "CBF", "CBV", "MTT", "TTP", "TMAX", "TTD", "TTS", "RMTT", "DYNAMIC_PERFUSION",
))  # fmt: skip
_REFORMATS = frozenset(("MPR", "REFORMATTED", "REFORMAT", "CURVED"))
_COPIES = frozenset(("DERIVED", "SECONDARY"))
# Values of (0028,1054) *Rescale Type* other than HU (PS3.3 C.11.1.1.2).
_NOT_HU = frozenset(("OD", "HU_MOD", "PCT", "MGML", "Z_EFF", "ED", "EDW"))
_UNSPECIFIED = "US"  # as a rescale type; single images of old scanners say so of Hounsfield units


def read_header(path: Path, size_bytes: int, secret: SiteSecret, rules: Rules) -> Header | Reason:
    """Reads one file up to its pixel data, and checks by length that the pixel data is all there.

    Args:
        path: The address of a file or member.
        size_bytes: Its size.
        secret: Keys the pseudonyms.
        rules: Say which attribute names the patient, whether lossy compression is allowed, and how large an image
            may be.

    Returns:
        The header, which may hold reasons against the image, or the headers of all frames; or a code if the file is no
        CT image. S_ARCHIVE for an archive, by its first bytes.
    """
    try:
        with open_image(path, _ANY_SIZE) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(file, size_bytes, secret, rules)
    except (OSError, ValueError):
        return Reason.Q_READ


def read_sop_uid(path: Path, size_bytes: int, limit_bytes: int) -> str | Reason:
    """Reads (0008,0018) *SOP Instance UID*, for the answers that name images by it.

    Args:
        path: The address of the image. A frame has the UID of the image that it was converted from; without one it has
            its file's UID, a bar and its number.
        size_bytes: Its size.
        limit_bytes: Its inflated bytes may be this many.
    """
    with open_image(path, _ANY_SIZE) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = parse_address(path).frame
        if frame is not None:
            return FRAMES.fields(file, frame, limit_bytes).uid(tags.SOP_UID) or Reason.Q_BAD_UID
        parsed = parse(file, size_bytes, limit_bytes, (tags.SOP_UID,), stop_before_pixels=True)
        return Fields(parsed.dataset).uid(tags.SOP_UID) or Reason.Q_BAD_UID


def _read(file: BinaryIO, size_bytes: int, secret: SiteSecret, rules: Rules) -> Header | Reason:
    start = file.read(132)
    file.seek(0)
    if begins_as_archive(start):
        return Reason.S_ARCHIVE
    has_preamble = start[128:] == b"DICM"
    # Without the preamble of PS3.10 section 7.1 a file may still be a bare data set: it begins with group 0002 or 0008.
    bare = len(start) == 132 and start[:4] != b"\0\0\0\0" and start[:2] in (b"\2\0", b"\x08\0")
    if not has_preamble and not bare:
        return Reason.S_NOT_DICOM
    try:
        wanted = (*tags.READ, *multiframe.WANTED, tags.tag_of(rules.patient_tag))
        parsed = parse(file, size_bytes, rules.file_max_bytes, wanted, stop_before_pixels=True)
        fields = Fields(parsed.dataset)
        sop_class = fields.text(tags.SOP_CLASS) or _meta(parsed.dataset, "MediaStorageSOPClassUID")
        refusal = _refuse_class(sop_class, fields)
        if refusal is not None:
            return refusal
        syntax = UID(_meta(parsed.dataset, "TransferSyntaxUID") or encoding_syntax(parsed.dataset))
        if sop_class in MULTIFRAME_CT:
            return _frames(parsed, fields, sop_class, syntax, secret, rules)
        pixels = pixel_reason(parsed, fields, rules.file_max_bytes)
        return _header(fields, sop_class, syntax, pixels, secret, rules)
    except OSError:
        raise
    except (LimitExceeded, MemoryError, RecursionError):
        return Reason.Q_DECODE_LIMIT
    except Exception:  # pydicom lets nearly any exception through for a broken file; the file is counted, not raised
        return Reason.Q_READ if has_preamble else Reason.S_NOT_DICOM


def _refuse_class(sop_class: str, fields: Fields) -> Reason | None:
    if sop_class == DIRECTORY:
        return Reason.S_DIRECTORY
    if sop_class == CT and fields.whole(tags.FRAMES) > 1:
        return Reason.R_MULTIFRAME
    modality = fields.text(tags.MODALITY).upper()
    if sop_class:
        is_ct = sop_class == CT or sop_class in MULTIFRAME_CT
        return None if is_ct and modality in ("CT", "") else Reason.S_SOP_CLASS
    # Files of the RSNA 2019 set carry no SOP class at all: CT by modality, and it has to look like an image.
    looks_ct = modality == "CT" and fields.number(tags.INTERCEPT) is not None and fields.whole(tags.ROWS) > 0
    return None if looks_ct else Reason.S_SOP_CLASS


def _meta(dataset: FileDataset, name: str) -> str:
    """Reads an element of group 0002 as text; "" when it is absent or damaged beyond conversion."""
    meta = getattr(dataset, "file_meta", None)
    try:
        return str(meta.get(name, "")) if meta is not None else ""
    except Exception:  # pydicom converts on access, and lets nearly any exception through for a broken element
        return ""


def _frames(
    parsed: ParsedFile, top: Fields, sop_class: str, syntax: UID, secret: SiteSecret, rules: Rules
) -> MultiframeHeader | Reason:
    """Reads the headers of all frames. A fault of the file's pixel data is one of every frame."""
    if top.whole(tags.FRAMES) > multiframe.FRAMES_MAX:
        return Reason.Q_DECODE_LIMIT
    frames = multiframe.frames_of(parsed.dataset)
    if frames is None:
        return Reason.Q_MISSING_TAG
    pixels = pixel_reason(parsed, top, rules.file_max_bytes, len(frames), MULTIFRAME_BYTES_MAX)
    headers = []
    for fields in frames:
        header = _header(fields, sop_class, syntax, pixels, secret, rules)
        if isinstance(header, Reason):
            return header
        expected = max(header.expected, multiframe.parts(top))
        headers.append(replace(header, frames=len(frames), expected=expected))
    return MultiframeHeader(tuple(headers))


def _header(
    fields: Fields, sop_class: str, syntax: UID, pixels: Reason | None, secret: SiteSecret, rules: Rules
) -> DicomHeader | Reason:
    uids = [fields.uid(tag) for tag in (tags.STUDY_UID, tags.SERIES_UID, tags.SOP_UID)]
    if None in uids:
        return Reason.Q_BAD_UID
    study, series, sop = (uid or "" for uid in uids)
    keys = partial(_token, secret)
    patient = fields.text(tags.tag_of(rules.patient_tag))
    kernel = fields.words(tags.KERNEL)
    accession = accession_number(fields.text(tags.ACCESSION))
    reasons, oddities = _assess(fields, sop_class, syntax, rules)
    if pixels is not None:
        reasons.append(pixels)
    if not sop_class:
        oddities.append(Warn.W_NO_SOP_CLASS)
    if not patient:
        oddities.append(Warn.W_NO_PATIENT)
    return DicomHeader(
        study_key=StudyKey(keys("study", study)),
        # A study without a patient ID is a patient of its own: one key for all of them would tie strangers together.
        patient_key=PatientKey(keys("patient", patient if patient else f"study|{study}")),
        series_key=SeriesKey(keys("series", series)),
        slice_key=secret.slice(sop),
        frame_key=keys("frame", fields.text(tags.FRAME_UID)),
        kernel_key=keys("kernel", "\\".join(kernel)),
        kernel=kernel_class(kernel, rules.words),
        origin=_origin(set(fields.words(tags.IMAGE_TYPE))),
        acquisition=fields.whole(tags.ACQUISITION),
        instance=fields.whole(tags.INSTANCE),
        rows=fields.whole(tags.ROWS),
        columns=fields.whole(tags.COLUMNS),
        spacing_mm=fields.numbers(tags.SPACING, 2),
        position=fields.numbers(tags.POSITION, 3),
        orientation=fields.numbers(tags.ORIENTATION, 6),
        thickness_mm=max(0.0, fields.number(tags.THICKNESS) or 0.0),
        expected=max(0, fields.whole(tags.EXPECTED)),
        native=syntax in RAW_SYNTAXES,
        reasons=tuple(dict.fromkeys(reasons)),
        warnings=tuple(oddities),
        accession_key=secret.accession(accession) if accession else "",
        contrast=_contrast(fields, rules),
        series_number=fields.whole(tags.SERIES_NUMBER),
        since_study_s=fields.since_study_s(),
    )


def _contrast(fields: Fields, rules: Rules) -> Contrast:
    has_sequence, volume_ml = fields.present(tags.CONTRAST_SEQUENCE), fields.number(tags.CONTRAST_VOLUME) or 0.0
    return contrast_of(fields.text(tags.CONTRAST_AGENT), has_sequence, volume_ml, rules.words)


@lru_cache(maxsize=256)
def _token(secret: SiteSecret, kind: str, value: str) -> str:
    """Computes a pseudonym once for all the slices of a series."""
    return secret.token(kind, value)


def _assess(fields: Fields, sop_class: str, syntax: UID, rules: Rules) -> tuple[list[Reason], list[Warn]]:
    image_type = set(fields.words(tags.IMAGE_TYPE))
    rescaled = fields.number(tags.SLOPE) not in (None, 0.0) and fields.number(tags.INTERCEPT) is not None
    lossy = fields.text(tags.LOSSY) == "01" or syntax in LOSSY_SYNTAXES
    unit = fields.text(tags.RESCALE_TYPE).upper()
    grounds = {
        Reason.R_LOCALIZER: bool(image_type & _LOCALIZERS),
        # DERIVED alone is no ground: recompression sets it too (PS3.3 C.7.6.1.1.2). Without a rescale it is no CT.
        Reason.R_DERIVED: bool(image_type & _MAPS)
        or unit in _NOT_HU
        or (unit == _UNSPECIFIED and sop_class == ENHANCED_CT)
        or ("DERIVED" in image_type and not rescaled)
        or fields.whole(tags.SAMPLES) > 1,
        Reason.R_PERFUSION: bool(image_type & _PERFUSION),
        Reason.R_LOSSY: lossy and not rules.lossy,
        Reason.R_CONTRAST: _contrast(fields, rules) == "declared",
        Reason.R_BURNED_IN: fields.text(tags.BURNED_IN).upper() == "YES",
        Reason.R_NOT_HEAD: is_elsewhere(fields.text(tags.BODY_PART), rules.words),
        Reason.Q_NO_DECODER: not has_decoder(syntax),
        Reason.Q_MISSING_TAG: not rescaled or fields.whole(tags.ROWS) <= 0 or fields.whole(tags.COLUMNS) <= 0,
        Reason.Q_NO_POSITION: not (fields.numbers(tags.POSITION, 3) and fields.numbers(tags.ORIENTATION, 6)),
        Reason.Q_GEOMETRY: not all(0.05 < mm < 5.0 for mm in fields.numbers(tags.SPACING, 2) or (0.0,)),
    }
    oddities = {Warn.W_LOSSY: lossy and rules.lossy, Warn.W_DERIVED: bool(image_type & _COPIES)}
    reasons = [reason for reason, holds in grounds.items() if holds]
    if {Reason.R_LOCALIZER, Reason.R_DERIVED} & set(reasons):
        # A localizer or a map is no damaged CT: what it lacks needs no attention.
        reasons = [reason for reason in reasons if reason.name.startswith("R_")]
    return reasons, [warning for warning, holds in oddities.items() if holds]


def _origin(image_type: set[str]) -> Origin:
    if image_type & _REFORMATS:
        return "reformatted"
    return "derived" if image_type & _COPIES else "original"
