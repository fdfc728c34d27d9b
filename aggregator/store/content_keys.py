"""The content keys of sealed models, all derived from one secret beside the CA's key. The database holds none.

A thief of the database, of the blobs, or of both, has ciphertext. A thief of the folder `ca` has the keys.
"""

import hmac
import os
from pathlib import Path
from typing import Final

from federation.sealing import CONTENT_KEY_BYTES, derive_content_key

from aggregator.errors import StateFolderRefused
from aggregator.secret_file import write_secret

_CHALLENGE_DOMAIN: Final = b"hemofed evidence challenge v1"


class ContentKeys:
    """The keys of one consortium. Safe for several processes on one state folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._secret: bytes | None = None

    def make(self) -> None:
        """Draw the secret, durably, if there is none yet."""
        if self._path.exists():
            return
        draft = self._path.with_name(f".{self._path.name}.new-{os.getpid()}")
        write_secret(draft, os.urandom(CONTENT_KEY_BYTES))
        try:
            # A link and no rename: of two processes the second must not replace a secret that is in use.
            self._path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()

    def of(self, plan_digest: bytes, model_digest: bytes) -> bytes:
        """Return the content key of a model under a plan, 32 bytes.

        Raises:
            StateFolderRefused: When the secret is missing or damaged; no other secret opens what it has sealed.
        """
        return derive_content_key(self._read(), plan_digest, model_digest)

    @property
    def challenge_key(self) -> bytes:
        """The key of the MAC over nonces for evidence, 32 bytes; all aggregators of a consortium have the same.

        Raises:
            StateFolderRefused: As `of`.
        """
        return hmac.digest(self._read(), _CHALLENGE_DOMAIN, "sha256")

    def _read(self) -> bytes:
        if self._secret is None:
            try:
                secret = self._path.read_bytes()
            except FileNotFoundError:
                secret = b""
            if len(secret) != CONTENT_KEY_BYTES:
                raise StateFolderRefused(
                    f"expected {CONTENT_KEY_BYTES} bytes in {self._path}, got {len(secret)}; restore it from a backup"
                )
            self._secret = secret
        return self._secret
