"""Real vector <-> uint64 words: clip, rotate, quantize, pack; and the header words beside them.

site:        clip -> Header -> encode                    (then federation.secagg masks the words)
aggregator:  open_sum -> chain.next_model, pack_sum      (after federation.secagg has unmasked the sum)
site again:  unpack_sum -> chain.next_model
"""

from federation.encoding.header import HeaderSum, SiteHeader, bin_of
from federation.encoding.layout import BINS, HEADER_WORDS, LABELS, Layout
from federation.encoding.quantize import clip
from federation.encoding.sums import DecodedSum, decode_sum, encode, pack_sum, unpack_sum

__all__ = [
    "BINS",
    "HEADER_WORDS",
    "LABELS",
    "DecodedSum",
    "HeaderSum",
    "Layout",
    "SiteHeader",
    "bin_of",
    "clip",
    "decode_sum",
    "encode",
    "pack_sum",
    "unpack_sum",
]
