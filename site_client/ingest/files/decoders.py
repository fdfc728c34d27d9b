"""Which transfer syntaxes can be decoded here, and which of them lost something on the way."""

from functools import cache

from pydicom.pixels import get_decoder
from pydicom.uid import UID, AllTransferSyntaxes

_BASE = "1.2.840.10008.1.2"
RAW_SYNTAXES = frozenset((_BASE, _BASE + ".1", _BASE + ".2", _BASE + ".1.99"))
# Twelve-bit JPEG: the plugins we may ship claim it and decode eight bits only.
_CLAIMED_IN_VAIN = _BASE + ".4.51"

# By syntax alone: baseline, extended, JPEG-LS near-lossless, JPEG 2000 and high-throughput JPEG 2000 that may be lossy.
LOSSY_SYNTAXES = frozenset(f"{_BASE}.4.{number}" for number in (50, 51, 81, 91, 203))


@cache
def has_decoder(syntax: UID) -> bool:
    """Whether an installed plugin decodes this syntax. A missing one is a matter for IT, not a broken file."""
    if syntax in RAW_SYNTAXES:
        return True
    if syntax not in AllTransferSyntaxes or syntax == _CLAIMED_IN_VAIN:
        return False
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False
