"""The catalog's rows. They cache what the export holds: all can be rebuilt from it, but `datasets` and `labels`.

No column holds a name, an identifier, a UID, a date or a readable path: keys are pseudonyms, paths are encrypted.
"""

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 4  # of a file with another number only these tables and facts are kept, and the export is read again
KEPT_TABLES = ("labels", "opt_outs", "facts", "datasets")
KEPT_FACTS = ("secret", "label_stamp", "label_counts", "label_held")


class CatalogTable(DeclarativeBase):
    """All tables of the catalog."""


class FileRow(CatalogTable):
    """One file of the export, as of the scan that first met it with this size and time.

    A member of an archive and a frame of a multi-frame file have rows of their own, with the times of the file.
    """

    __tablename__ = "files"
    path: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True, comment="address relative to the export, sealed")
    container: Mapped[bytes | None] = mapped_column(
        LargeBinary, index=True, comment="`path` of the archive or multi-frame file"
    )
    size_bytes: Mapped[int]
    mtime_ns: Mapped[int]
    ctime_ns: Mapped[int]
    since_s: Mapped[float] = mapped_column(comment="Unix time of the scan that first saw this size and these times")
    basis: Mapped[str] = mapped_column(comment="digest of the rules and decoders that `code` and `header` depend on")
    study_key: Mapped[str | None] = mapped_column(String(26), index=True, comment="null: not a CT image")
    patient_key: Mapped[str | None] = mapped_column(String(26), comment="null: the file names no patient")
    series_key: Mapped[str | None] = mapped_column(String(26), index=True, comment="pseudonym; null: not a CT image")
    slice_key: Mapped[str | None] = mapped_column(String(26), index=True, comment="pseudonym; null: not a CT image")
    code: Mapped[str | None] = mapped_column(comment="Reason's name why the file itself is not used; null: it may be")
    # As read: thresholds may change, and series are then assessed again without opening a file.
    header: Mapped[str | None] = mapped_column(comment="Header.to_json(); null: a code, or frames have rows")


class ListedRow(CatalogTable):
    """An image that a DICOMDIR of the export lists."""

    __tablename__ = "listed"
    path: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True, comment="of the DICOMDIR, sealed")
    series_key: Mapped[str] = mapped_column(String(26), primary_key=True, index=True)
    slice_key: Mapped[str] = mapped_column(String(26), primary_key=True)


class StackRow(CatalogTable):
    """One stack of a series, assessed."""

    __tablename__ = "stacks"
    stack_key: Mapped[str] = mapped_column(String(26), primary_key=True, comment="pseudonym")
    series_key: Mapped[str] = mapped_column(String(26), index=True)
    study_key: Mapped[str] = mapped_column(String(26), index=True)
    patient_key: Mapped[str] = mapped_column(String(26))
    accession_key: Mapped[str] = mapped_column(String(26), index=True, comment="pseudonym; empty when not stated")
    state: Mapped[str] = mapped_column(comment="State's name")
    reasons: Mapped[str] = mapped_column(comment="Reason names, space separated; empty when READY or WAITING for time")
    warnings: Mapped[str] = mapped_column(comment="Warn names, space separated")
    sheet: Mapped[str] = mapped_column(comment="JSON list of [criterion, value, points]")
    score: Mapped[int]
    started_s: Mapped[float | None] = mapped_column(comment="seconds from the study's begin to the first image")
    series_number: Mapped[int] = mapped_column(comment="(0020,0011); -1 when not stated")
    slices: Mapped[int]
    chosen: Mapped[bool] = mapped_column(comment="the one stack of its study that is trained on")
    content_hash: Mapped[str] = mapped_column(comment="hex; empty unless READY")
    rules: Mapped[str] = mapped_column(comment="digest of the rules and decoders it was assessed by")


class SliceRow(CatalogTable):
    """A place in a READY stack, counted from its caudal end."""

    __tablename__ = "slices"
    stack_key: Mapped[str] = mapped_column(ForeignKey("stacks.stack_key", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[bytes] = mapped_column(LargeBinary, comment="sealed")
    slice_key: Mapped[str] = mapped_column(String(26), index=True)


class LabelRow(CatalogTable):
    """Labels of one slice or one study, merged over all label files."""

    __tablename__ = "labels"
    key: Mapped[str] = mapped_column(String(26), primary_key=True, comment="slice_key, study_key or accession_key")
    cells: Mapped[bytes] = mapped_column(LargeBinary, comment="6 bytes in the order of LABELS: 0, 1, 2 conflict, 255")


class OptOutRow(CatalogTable):
    """A pseudonym for which an entry of the opt-out list may stand: a patient, a study or an accession."""

    __tablename__ = "opt_outs"
    entry: Mapped[str] = mapped_column(String(26), primary_key=True, comment="pseudonym of the entry itself")
    key: Mapped[str] = mapped_column(String(26), primary_key=True, index=True)
    is_listed: Mapped[bool] = mapped_column(comment="false: no longer in the list, and no person has confirmed it")


class FactRow(CatalogTable):
    """Single values: the export, the secret, the label files that were read last."""

    __tablename__ = "facts"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)


class DatasetRow(CatalogTable):
    """A dataset that was handed out and to which a round may still be pinned."""

    __tablename__ = "datasets"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    made_s: Mapped[float] = mapped_column(comment="Unix time")
    body: Mapped[bytes] = mapped_column(LargeBinary, comment="zlib JSON of the studies, paths sealed")
