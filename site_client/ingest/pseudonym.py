"""Patient data stops here: UIDs become pseudonyms, paths become ciphertext.

A pseudonym is base32(HMAC-SHA256(site secret, kind + "|" + value)[:16 bytes]). It never leaves the site, and neither
does the secret. The catalog keeps paths only sealed (AES-SIV, RFC 5297: equal paths give equal bytes, so they can be a
key), because folder names in exports are often patients' names, and a database file gets copied about.
"""

import base64
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from site_client.errors import IngestError
from site_client.files import replace_file
from site_client.ingest.records import PatientKey, SeriesKey, SliceKey, StudyKey

SECRET_BYTES = 32


@dataclass(frozen=True)
class SiteSecret:
    """Keys every pseudonym of a site. At least 16 bytes from a real random source."""

    value: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.value) < 16:
            raise IngestError(f"expected a site secret of at least 16 bytes, got {len(self.value)}; make a new one")

    def study(self, uid: str) -> StudyKey:
        """Pseudonym of a StudyInstanceUID."""
        return StudyKey(self._key("study", uid))

    def patient(self, patient_id: str) -> PatientKey:
        """Pseudonym of a PatientID."""
        return PatientKey(self._key("patient", patient_id))

    def series(self, uid: str) -> SeriesKey:
        """Pseudonym of a SeriesInstanceUID, or of one stack in it."""
        return SeriesKey(self._key("series", uid))

    def slice(self, uid: str) -> SliceKey:
        """Pseudonym of a SOPInstanceUID."""
        return SliceKey(self._key("slice", uid))

    def token(self, kind: str, value: str) -> str:
        """Pseudonym of anything else that only has to be compared: a kernel's name, a frame of reference."""
        return self._key(kind, value)

    def path_seal(self) -> "PathSeal":
        """Seals and opens paths."""
        return PathSeal(AESSIV(hmac.digest(self.value, b"paths|v1", "sha512")))

    def _key(self, kind: str, value: str) -> str:
        digest = hmac.digest(self.value, f"{kind}|{value}".encode("utf-8", "surrogateescape"), "sha256")
        return base64.b32encode(digest[:16]).decode().rstrip("=")


@dataclass(frozen=True)
class PathSeal:
    """Paths <-> bytes that only this site's secret opens."""

    _cipher: AESSIV = field(repr=False)

    def seal(self, path: str) -> bytes:
        """Deterministic: the same path gives the same bytes."""
        return self._cipher.encrypt(path.encode("utf-8", "surrogateescape") or b"\0", None)

    def decrypt(self, sealed: bytes) -> str:
        """The path again."""
        return self._cipher.decrypt(sealed, None).decode("utf-8", "surrogateescape")


def load_secret(path: Path, random: Callable[[int], bytes]) -> SiteSecret:
    """Reads the site secret, making it when there is none yet. The file is 0600; lose it and all pseudonyms change."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, random(SECRET_BYTES))
    return SiteSecret(path.read_bytes())
