"""Pseudonyms: patient data stops here. UIDs become keyed hashes, paths become ciphertext.

A pseudonym is base32(HMAC-SHA256(site secret, kind + "|" + value)[:16 bytes]) (DICOM PS3.15 annex E names the idea). It
never leaves the site, and neither does the secret. The catalog keeps paths only encrypted, because folder names in
exports are often patients' names and a database file gets copied about. The cipher is AES-SIV (RFC 5297): equal paths
give equal bytes, so that a path can be a key.
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
    """The key of all pseudonyms of a site: at least 16 bytes from a source of true randomness."""

    value: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuses a short secret.

        Raises:
            IngestError: Fewer than 16 bytes.
        """
        if len(self.value) < 16:
            raise IngestError(f"expected a site secret of at least 16 bytes, got {len(self.value)}; make a new one")

    def study(self, uid: str) -> StudyKey:
        """Computes the pseudonym of (0020,000D) *Study Instance UID*."""
        return StudyKey(self.token("study", uid))

    def patient(self, patient_id: str) -> PatientKey:
        """Computes the pseudonym of (0010,0020) *Patient ID*."""
        return PatientKey(self.token("patient", patient_id))

    def series(self, uid: str) -> SeriesKey:
        """Computes the pseudonym of (0020,000E) *Series Instance UID*, or of one stack of the series."""
        return SeriesKey(self.token("series", uid))

    def slice(self, uid: str) -> SliceKey:
        """Computes the pseudonym of (0008,0018) *SOP Instance UID*."""
        return SliceKey(self.token("slice", uid))

    def accession(self, number: str) -> str:
        """Computes the pseudonym of (0008,0050) *Accession Number*, reduced by `wording.accession_number`."""
        return self.token("accession", number)

    def token(self, kind: str, value: str) -> str:
        """Computes the pseudonym of any value that only has to be compared, such as a kernel's name.

        `kind` separates the domains: equal values of two kinds have different pseudonyms.
        """
        # surrogateescape: names of files need not be valid UTF-8.
        digest = hmac.digest(self.value, f"{kind}|{value}".encode("utf-8", "surrogateescape"), "sha256")
        # 128 bits: two of a million studies collide with a chance of 10^-27.
        return base64.b32encode(digest[:16]).decode().rstrip("=")

    def path_seal(self) -> "PathSeal":
        """Makes the cipher for paths, under a key of its own that is derived from the secret."""
        return PathSeal(AESSIV(hmac.digest(self.value, b"paths|v1", "sha512")))


@dataclass(frozen=True)
class PathSeal:
    """Encrypts paths under the site's secret, and decrypts them."""

    _cipher: AESSIV = field(repr=False)

    def seal(self, path: str) -> bytes:
        """Encrypts a path. The same path always gives the same bytes."""
        # AES-SIV refuses an empty plaintext; no path holds a zero byte.
        return self._cipher.encrypt(path.encode("utf-8", "surrogateescape") or b"\0", None)

    def decrypt(self, sealed: bytes) -> str:
        """Decrypts the bytes that `seal` gave."""
        return self._cipher.decrypt(sealed, None).decode("utf-8", "surrogateescape")


def load_secret(path: Path, random: Callable[[int], bytes]) -> SiteSecret:
    """Reads the site secret, or makes it if the file does not exist. The file has mode 0600.

    A lost file changes all pseudonyms: the catalog is built anew, and the split of the patients changes.

    Args:
        path: Of the file.
        random: Gives so many random bytes.

    Raises:
        IngestError: The file is too short.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, random(SECRET_BYTES))
    return SiteSecret(path.read_bytes())
