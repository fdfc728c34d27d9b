"""The list of patients who opted out: text files with one patient ID, accession number or StudyInstanceUID a line.

A doubt goes to the patient: a cell that may stand for several patients or studies keeps all of them out.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from site_client.errors import OptOutsUnreadable
from site_client.ingest.files.wording import accession_number
from site_client.ingest.labels.spelling import column_name, plain_text
from site_client.ingest.labels.text_table import decode
from site_client.ingest.pseudonym import SiteSecret

_BYTES_MAX: Final = 64 * 2**20
_DIGITS_MAX: Final = 20  # of a patient ID that is a number
_HEADERS: Final = frozenset((
    "patientid", "patient", "patientenid", "patientennummer", "id", "accessionnumber", "accession", "studyinstanceuid",
    "studyuid", "optout",
))  # fmt: skip


def read_opt_outs(files: Sequence[Path], secret: SiteSecret) -> dict[str, tuple[str, ...]]:
    """Reads all lists.

    Args:
        files: The lists. Every cell of a line counts, because nothing tells for sure in which column the patients
            stand. A line that begins with # is a remark.
        secret: Keys the pseudonyms.

    Returns:
        For each line, by a pseudonym of its own, the pseudonyms of the patient, study and accession it may stand for.

    Raises:
        OptOutsUnreadable: A list cannot be read as a whole. Training must not go on as if no patient had opted out.
    """
    entries: dict[str, tuple[str, ...]] = {}
    for number, path in enumerate(files, 1):
        for line, text in enumerate(_text(path, number).splitlines(), 1):
            if text.startswith("#"):
                continue
            cells = [cell for cell in map(_plain, re.split(r"[,;\t|]", text)) if cell]
            if any(re.fullmatch(r"\d[.,]?\d*E\+\d+", cell, re.IGNORECASE) for cell in cells):
                raise OptOutsUnreadable(
                    f"opt-out list {number}, line {line}: a spreadsheet turned it into a number; export it as text"
                )
            named = [cell for cell in cells if column_name(cell) not in _HEADERS]
            if named:
                keys = (key for cell in named for key in _keys(cell, secret))
                entries[secret.token("opt-out", "\t".join(named))] = tuple(dict.fromkeys(keys))
    return entries


def _plain(cell: str) -> str:
    """Takes off quotes, what a spreadsheet puts around a text, and characters that no eye sees."""
    text = "".join(sign for sign in cell if unicodedata.category(sign) != "Cf").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return plain_text(text).strip('"')


def _keys(cell: str, secret: SiteSecret) -> Iterator[str]:
    """Yields the pseudonyms of all that a cell may stand for.

    A spreadsheet turns 00123 into 123 or 123.0, and the image keeps 00123: a number stands for every number of zeros.
    """
    number = re.fullmatch(r"0*(\d+?)(?:\.0+)?", cell)
    digits = number[1] if number is not None else ""
    spellings = [digits.zfill(width) for width in range(len(digits), _DIGITS_MAX + 1)] if digits else []
    for patient in dict.fromkeys((cell, *spellings)):
        yield secret.patient(patient)
    yield secret.study(cell)
    yield secret.accession(accession_number(digits or cell))


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
