"""A DICOMDIR as the list of the images that should have come (DICOM PS3.3 annex F). Its file names are not used."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from site_client.ingest.files.multiframe import ENHANCED_CT, LEGACY_CONVERTED_CT
from site_client.ingest.files.parse import parse
from site_client.ingest.files.sources import open_image
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import FILE_BYTES_MAX

_RECORDS = Tag(0x0004, 0x1220)  # Directory Record Sequence
_CT = frozenset(("1.2.840.10008.5.1.4.1.1.2", ENHANCED_CT, LEGACY_CONVERTED_CT))


def read_directory(path: Path, secret: SiteSecret) -> dict[str, list[str]] | Reason:
    """Lists the CT images of a DICOMDIR, all by pseudonym: of each series its images.

    Args:
        path: The address of a file, of FILE_BYTES_MAX at most.
        secret: Keys the pseudonyms.

    Raises:
        Exception: Nearly any, from pydicom, for a broken file.
    """
    with open_image(path, FILE_BYTES_MAX) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = file.read()
        dataset = parse(io.BytesIO(data), len(data), FILE_BYTES_MAX, (_RECORDS,), False).dataset
        if _RECORDS not in dataset:
            return {}
        # Records refer to each other by their place in the file; their order in the sequence means nothing (F.3.2.2).
        records = {record.seq_item_tell: record for record in dataset[_RECORDS].value}
        listed: dict[str, set[str]] = {}
        for record in records.values():
            if record.DirectoryRecordType == "SERIES":
                images = {
                    secret.slice(str(below.get("ReferencedSOPInstanceUIDInFile")))
                    for below in _below(record, records)
                    if str(below.get("ReferencedSOPClassUIDInFile")) in _CT
                }
                if images:
                    listed.setdefault(secret.series(str(record.SeriesInstanceUID)), set()).update(images)
        return {series: sorted(images) for series, images in listed.items()}


def _below(record: Dataset, records: dict[int, Dataset]) -> Iterator[Dataset]:
    """Follows the records of a series, each once, whatever a damaged file links to what."""
    seen: set[int] = set()
    place = record.get("OffsetOfReferencedLowerLevelDirectoryEntity", 0)
    while place in records and place not in seen:
        seen.add(place)
        yield records[place]
        place = records[place].get("OffsetOfTheNextDirectoryRecord", 0)
