"""The closed lists of words by which ingest reads free texts of a header: contrast agent, body part, kernel.

All lists hold whole words in upper case. A site adds the words of its own scanners in site.toml (`rules.SiteWords`).
"""

import re
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

from site_client.ingest.rules import SiteWords

Contrast: TypeAlias = Literal["not stated", "stated as none", "declared"]
Kernel: TypeAlias = Literal["soft", "unknown", "bone"]


# A text says "no contrast" when one word of these negates, and only words of _ABOUT stand around it.
_NEGATIONS: Final = frozenset((
    "NO", "NON", "NONE", "NOT", "N", "NIL", "NULL", "NA", "NEIN", "KEIN", "KEINE", "KEINES", "KEINEN", "NICHT", "OHNE",
    "SANS", "SIN", "SENZA", "GEEN", "WITHOUT", "WO", "AUCUN", "NINGUNO", "NESSUNO", "0",
))  # fmt: skip
_NATIVE: Final = frozenset((
    "NATIVE", "NATIV", "NATIVO", "NATIF", "PLAIN", "UNENHANCED", "NONCONTRAST", "NONENHANCED",
))  # fmt: skip
# No word for a way to give it, except I.V.: "no oral" leaves the vein open.
_ABOUT: Final = frozenset((
    "CONTRAST", "CONTRASTE", "CONTRASTO", "KONTRAST", "KONTRASTMITTEL", "KONTRASTMITTELS", "KM", "CM", "AGENT", "MEDIA",
    "MEDIUM", "MEDIO", "DE", "PRODUIT", "IV", "ML", "CC", "GIVEN", "USED", "ADMINISTERED", "APPLICABLE", "GEGEBEN",
    "VERABREICHT", "GABE", "CT", "SCAN", "BOLUS",
))  # fmt: skip

_HEAD: Final = frozenset((
    "HEAD", "BRAIN", "SKULL", "NEURO", "CRANIUM", "CRANIAL", "CEREBRUM", "CEREBRAL", "HEADNECK", "HEADBRAIN", "KOPF",
    "SCHAEDEL", "SCHÄDEL", "HIRN", "GEHIRN", "NEUROCRANIUM", "TETE", "TÊTE", "CRANE", "CRÂNE", "CABEZA", "CRANEO",
    "TESTA", "HOOFD", "HIPPOCAMPUS",
))  # fmt: skip
# With the compound terms of PS3.16 annex L.
_ELSEWHERE: Final = frozenset((
    "CHEST", "THORAX", "ABDOMEN", "ABDOMENPELVIS", "CHESTABDOMEN", "CHESTABDPELVIS", "PELVIS", "SPINE", "CSPINE",
    "TSPINE", "LSPINE", "SSPINE", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "KNEE", "LEG", "ARM",
    "HAND", "FOOT", "ANKLE", "WRIST", "ELBOW", "SHOULDER", "HIP", "HIPS", "HEART", "CARDIAC", "EXTREMITY", "LIVER",
    "KIDNEY", "LUNG", "LUNGS", "COLON", "AORTA", "FEMUR", "TIBIA", "HUMERUS", "WHOLEBODY", "BREAST", "HALS", "BECKEN",
    "WIRBELSAEULE", "WIRBELSÄULE", "HWS", "BWS", "LWS", "KNIE", "HÜFTE", "HUEFTE", "LUNGE", "LEBER", "HERZ", "FOREARM",
    "LEGS", "ARMS", "HANDS", "FEET",
))  # fmt: skip

_BONE_WORDS: Final = ("BONE", "KNOCHEN", "EDGE", "LUNG", "SHARP", "HARD", "DETAIL", "ULTRA")
_TOSHIBA_BONE: Final = frozenset((30, 31, 35, 50, 51, 52, 80, 81, 82, 83, 84, 85, 86))


def contrast_of(agent: str, has_sequence: bool, volume_ml: float, own: SiteWords) -> Contrast:
    """Reads whether a contrast agent is declared.

    Args:
        agent: (0018,0010) *Contrast/Bolus Agent*. Scanners in several languages fill it in to say that there was none.
        has_sequence: Whether (0018,0012) *Contrast/Bolus Agent Sequence* holds an item.
        volume_ml: (0018,1041) *Contrast/Bolus Volume*.
        own: Words of this site.
    """
    if has_sequence or volume_ml > 0:
        return "declared"
    # Dots and slashes join: I.V., N/A, W/O. Everything else that is no letter and no digit parts words.
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=\w)[./](?=\w)|(?<=\w)\.", "", agent.upper()))
    if not words:
        return "stated as none" if agent.strip() else "not stated"
    if _letters(agent) in map(_letters, own.no_contrast):
        return "stated as none"
    # "0 ml", "0.0": any number of zeros.
    plain = ["0" if re.fullmatch(r"0+(ML|CC)?", word) else word for word in words]
    # Of "native, KM" nothing says which of the two this is.
    if set(plain) & _NATIVE:
        return "stated as none" if set(plain) <= _NATIVE | {"CT", "SCAN"} else "declared"
    negated = [word in _NEGATIONS for word in plain]
    # One run of negations: "none, ISOVUE, none" has two, and is another story.
    runs = sum(now and not before for before, now in zip([False, *negated], negated, strict=False))
    if runs == 1 and all(no or word in _ABOUT for word, no in zip(plain, negated, strict=True)):
        return "stated as none"
    return "declared"


def is_elsewhere(body_part: str, own: SiteWords) -> bool:
    """Tells whether a body part is named that is not the head. "HEADNECK" names another part too, and shows a head."""
    words = set(re.findall(r"[^\W\d_]+", body_part.upper()))
    if words & _HEAD or words & _upper(own.head):
        return False
    return bool(words & _ELSEWHERE or words & _upper(own.elsewhere))


def kernel_class(kernel: tuple[str, ...], own: SiteWords | None = None) -> Kernel:
    """Classifies a reconstruction by the vendors' names of kernels.

    The table holds habits, no standard. It only decides which reconstruction of a study is preferred.

    Args:
        kernel: The values of (0018,1210) *Convolution Kernel*, upper case.
        own: Names of this site's kernels.
    """
    own = own or SiteWords()
    text = kernel[0] if kernel else ""
    if _letters(text) in map(_letters, own.bone_kernels):
        return "bone"
    if _letters(text) in map(_letters, own.soft_kernels):
        return "soft"
    name = text.replace(" ", "")
    siemens = re.match(r"[A-Z]{1,2}(\d\d)", name)
    toshiba = re.match(r"FC(\d\d)", name)
    # In any word: "HEAD BONE" is a bone kernel of the head.
    if any(word.startswith(_BONE_WORDS) for word in re.findall(r"[A-Z]+", text)) or re.match(r"Y[A-E]$|[DEL]$", name):
        return "bone"
    if re.match(r"STD|STAND|SOFT|SMOOTH|BRAIN|HEAD|NEURO|U[A-C]$|[A-C]$", name):
        return "soft"
    if toshiba:
        return "bone" if int(toshiba[1]) in _TOSHIBA_BONE else "soft"
    if siemens:
        return "soft" if int(siemens[1]) < 50 else "bone"
    return "unknown"


def accession_number(text: str) -> str:
    """Reduces an accession number for comparison: no blanks, upper case, and no leading zeros in front of digits only.

    A spreadsheet turns 00123 into 123, and the image keeps 00123. Two studies that become equal by it get no label.
    """
    number = re.sub(r"\s", "", text).upper()
    return (number.lstrip("0") or "0") if number.isdigit() else number


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text.upper())


def _upper(words: Iterable[str]) -> set[str]:
    return {word.upper() for word in words}
