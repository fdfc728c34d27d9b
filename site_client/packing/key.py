"""The trainer's packing key: Ed25519, in the trainer's own state folder.

It is not the site's signing key. That one is the agent's, which has the network; packing needs patients, whom only the
trainer reads. A key that crossed the wall would end it (docs/decisions/0027).
"""

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from site_client.errors import StateRefused, StateUnreadable
from site_client.files import private_folder, replace_file
from site_client.untrusted_files import read_regular

NAME: Final = "packing.key"
_BYTES: Final = 32


def packing_key(folder: Path) -> Ed25519PrivateKey:
    """Return the key of a trainer's state folder; the first call makes it.

    Raises:
        StateRefused: The file is no key of 32 bytes, or cannot be read.
    """
    path = private_folder(folder) / NAME
    try:
        raw = read_regular(path, _BYTES)
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        replace_file(path, key.private_bytes_raw())
        return key
    except OSError as error:
        raise StateUnreadable.of(NAME, error) from error
    except ValueError:
        raw = b""
    if len(raw) != _BYTES:
        raise StateRefused(
            f"expected a key of {_BYTES} bytes in {NAME}, got something else; move it away, pack again, and tell those "
            "who use your bundles the new key"
        )
    return Ed25519PrivateKey.from_private_bytes(raw)
