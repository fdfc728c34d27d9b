"""Real vector <-> uint64 words: clip, rotate, quantize, pack; and the header words beside them.

site:        clip -> SiteHeader -> coarse_header -> encode                    (then federation.secagg masks the words)
aggregator:  decode_sum -> chain.next_model, pack_sum      (after federation.secagg has unmasked the sum)
site again:  unpack_sum -> chain.next_model
"""

from federation.encoding.classes import coarse_header, size_class
from federation.encoding.header import HeaderSum, SiteHeader, bin_of
from federation.encoding.layout import HEADER_WORDS, HISTOGRAM_SHAPE, Layout
from federation.encoding.quantize import clip
from federation.encoding.sums import DecodedSum, decode_sum, encode, pack_sum, unpack_sum

__all__ = [
    "HEADER_WORDS",
    "HISTOGRAM_SHAPE",
    "DecodedSum",
    "HeaderSum",
    "Layout",
    "SiteHeader",
    "bin_of",
    "clip",
    "coarse_header",
    "decode_sum",
    "encode",
    "pack_sum",
    "size_class",
    "unpack_sum",
]
