"""The list of patients who opted out: text files with one patient ID, accession number or StudyInstanceUID a line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from site_client.errors import OptOutsUnreadable
from site_client.ingest.files.wording import accession_number
from site_client.ingest.labels.spelling import column_name, plain_text
from site_client.ingest.labels.text_table import decode
from site_client.ingest.pseudonym import SiteSecret

_BYTES_MAX: Final = 64 * 2**20
_HEADERS: Final = frozenset((
    "patientid", "patient", "patientenid", "patientennummer", "id", "accessionnumber", "accession", "studyinstanceuid",
    "studyuid", "optout",
))  # fmt: skip


def read_opt_outs(files: Sequence[Path], secret: SiteSecret) -> dict[str, tuple[str, ...]]:
    """Reads all lists.

    Args:
        files: The lists. The first cell of a line counts; a line that begins with # is a remark.
        secret: Keys the pseudonyms.

    Returns:
        For each entry, by a pseudonym of its own, the pseudonyms of the patient, study and accession it may stand for.

    Raises:
        OptOutsUnreadable: A list cannot be read as a whole. Training must not go on as if no patient had opted out.
    """
    entries: dict[str, tuple[str, ...]] = {}
    for number, path in enumerate(files, 1):
        for line, text in enumerate(_text(path, number).splitlines(), 1):
            entry = plain_text(re.split(r"[,;\t]", text)[0].strip().strip('"'))
            if not entry or entry.startswith("#") or (line == 1 and column_name(entry) in _HEADERS):
                continue
            if re.fullmatch(r"\d[.,]?\d*E\+\d+", entry, re.IGNORECASE):
                raise OptOutsUnreadable(
                    f"opt-out list {number}, line {line}: a spreadsheet turned it into a number; export it as text"
                )
            entries[secret.token("opt-out", entry)] = (
                secret.patient(entry),
                secret.study(entry),
                secret.accession(accession_number(entry)),
            )
    return entries


def _text(path: Path, number: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise OptOutsUnreadable(
            f"opt-out list {number} cannot be read ({error.strerror}); correct its rights or folders.opt_outs. "
            "Nothing is trained on until then"
        ) from None
    if len(data) > _BYTES_MAX or data[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise OptOutsUnreadable(f"opt-out list {number}: expected a text with one entry a line; save it as CSV")
    text = decode(data)
    if "\0" in text:
        raise OptOutsUnreadable(f"opt-out list {number} holds zero bytes and is damaged; export it again")
    return text
