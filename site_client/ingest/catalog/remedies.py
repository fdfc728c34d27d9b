"""The remedies that make a file or a series READY: a sentence for each reason code, for the people of this site."""

from typing import Final

from site_client.ingest.reasons import Reason

_NONE: Final = "nothing: this is not what training uses"
_MEND: Final = "mend that in the export, or in the PACS and export again; the next scan assesses it again"
_AGAIN: Final = "export this image again from the PACS"
_REMEDIES: Final = {
    Reason.S_DUPLICATE: "nothing: an image of this position is used",
    Reason.S_LINK: "nothing: the file that it names is met under its own name",
    Reason.S_HIDDEN: "nothing, if it holds no images; else give it a name without a dot in front",
    Reason.S_OUTSIDE_ROOT: "copy the file itself into the export; links are not followed",
    Reason.S_TABLE: "copy the table out of the archive, into a folder that folders.labels names",
    Reason.S_ARCHIVE: "nothing: its members are read",
    Reason.Q_READ: "let the user hemofed-trainer read the file; the next scan tries again",
    Reason.Q_TRUNCATED: _AGAIN + "; the copy ends too early",
    Reason.Q_NO_PIXELS: _AGAIN + " with its pixel data, as whole numbers",
    Reason.Q_NO_DECODER: "install the decoder that hemofed-site doctor names, or let the PACS send it uncompressed",
    Reason.Q_DECODE: _AGAIN + "; its pixel data is damaged, or not what its header says",
    Reason.Q_DECODE_LIMIT: _AGAIN + " uncompressed; it would unpack to more than an image has",
    Reason.Q_ARCHIVE_LIMIT: "unpack the archive, and export the files",
    Reason.Q_ARCHIVE_DAMAGED: "pack the archive again, as ZIP with deflate or without compression, or export the files",
    Reason.Q_ARCHIVE_LOCKED: "unpack the archive with its password, and export the files",
    Reason.Q_BAD_UID: _AGAIN + "; study, series or SOP instance UID is missing",
    Reason.Q_MISSING_TAG: _AGAIN + " with rescale slope and intercept, rows and columns",
    Reason.Q_DUP_CONFLICT: "keep one of the two images that share a SOP instance UID",
    Reason.Q_NO_POSITION: "export a series with position and orientation, not secondary captures",
    Reason.Q_SAME_POSITION: "export the original series of the scanner, with the position of every image",
    Reason.Q_GAP: "send the missing slices into the export; the series is assessed again",
    Reason.Q_UID_CLASH: "keep one of those that share a UID, under its own patient and study; export it again",
    Reason.Q_SPLIT: "export the original series of the scanner, with all its images in one block",
    Reason.Q_GEOMETRY: "export the original series of the scanner",
    Reason.Q_INCOMPLETE: "send the missing images into the export; the series is assessed again",
    Reason.Q_HU_RANGE: "export the original series; its values are not Hounsfield units",
    Reason.Q_STORAGE: "free space on the disk of folders.state, then scan again",
    Reason.Q_LABEL_CONFLICT: "decide which label is right, or set a rule in [labels] of site.toml",
    Reason.R_LOSSY: "export a lossless copy, or set lossy = true in [ingest] of site.toml",
    Reason.R_CONTRAST: "export the native series. If the scanner's text means none, add it to [ingest] no_contrast",
    Reason.R_NOT_HEAD: "nothing, if it is no head; else add your word of Body Part Examined to [ingest] head_words",
    Reason.R_TOO_FEW: "export the whole series, or lower slices_min in [ingest] of site.toml",
    Reason.R_LOWER_SCORE: "nothing: the better series of the study is trained on",
}


def remedy(reason: Reason) -> str:
    """Says in one sentence what would make it READY."""
    return _REMEDIES.get(reason, _MEND if reason.name.startswith("Q_") else _NONE)
