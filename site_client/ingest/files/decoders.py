"""Transfer syntaxes: decodable ones, lossy ones, and their recognition (DICOM PS3.5 section 10, PS3.6 annex A)."""

from functools import cache

from pydicom.dataset import FileDataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID, AllTransferSyntaxes

_BASE = "1.2.840.10008.1.2"
RAW_SYNTAXES = frozenset((_BASE, _BASE + ".1", _BASE + ".2", _BASE + ".1.99"))
RLE = _BASE + ".5"
# Twelve-bit JPEG: the plugins whose licenses fit claim to decode it, and decode eight bits only.
_FALSELY_CLAIMED = _BASE + ".4.51"

# By syntax alone: baseline, extended, JPEG-LS near-lossless, JPEG 2000 and high-throughput JPEG 2000 that may be lossy.
LOSSY_SYNTAXES = frozenset(f"{_BASE}.4.{number}" for number in (50, 51, 81, 91, 203))


@cache
def has_decoder(syntax: UID) -> bool:
    """Tells whether an installed plugin decodes this syntax. IT can install a missing one; the file is not broken."""
    if syntax in RAW_SYNTAXES:
        return True
    if syntax not in AllTransferSyntaxes or syntax == _FALSELY_CLAIMED:
        return False
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def decodable() -> tuple[str, ...]:
    """Lists the transfer syntaxes that can be decoded here, in a fixed order. A verdict may depend on them."""
    return tuple(sorted(syntax for syntax in AllTransferSyntaxes if has_decoder(syntax)))


def encoding_syntax(dataset: FileDataset) -> str:
    """Names the transfer syntax that pydicom recognized in a data set without a meta header (PS3.5 section 10)."""
    implicit, little = dataset.original_encoding
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
