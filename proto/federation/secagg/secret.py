"""Secret bytes: hidden from repr, compared in constant time, wiped on request, refused by pickle and copy.

Each kind of secret has a type of its own, so that mypy refuses a mask seed where a private key belongs.

Limits, honestly: `wipe` overwrites our own buffer. Python and OpenSSL make short-lived copies (a `bytes` for each call
into a primitive) that nothing can overwrite. The promise is that a member's state holds no secret after the phase that
needs it last (the table in state.py), and that nothing prints a secret by accident.
"""

import hmac
from typing import NoReturn

from federation.secagg.errors import MalformedValue

SECRET_BYTES = 32
SHARE_PAIR_BYTES = 66


class Secret:
    """Bytes that do not show themselves: `size_bytes` of them, 32 unless the subclass says otherwise."""

    __slots__ = ("_buffer",)
    size_bytes = SECRET_BYTES

    def __init__(self, value: bytes) -> None:
        if len(value) != self.size_bytes:
            raise MalformedValue(f"a {type(self).__name__} has {self.size_bytes} bytes, got {len(value)}")
        self._buffer = bytearray(value)

    def expose(self) -> bytes:
        """Returns the bytes, for a primitive or the member's own state file. The name is made to be searched for."""
        return bytes(self._buffer)

    def wipe(self) -> None:
        """Overwrite with zeros and empty; the secret is gone and using it again is an error."""
        # Order: zeros first. `clear` alone gives the memory back with the secret in it.
        self._buffer[:] = bytes(len(self._buffer))
        self._buffer.clear()

    @property
    def wiped(self) -> bool:
        """Whether the bytes were overwritten."""
        return not self._buffer

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(self._buffer, other._buffer)

    __hash__ = None  # type: ignore[assignment]  # a secret in a set or as a key is a mistake

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is never pickled or copied")


class MaskSecret(Secret):
    """M, from which both mask keys follow. It is Shamir-shared, and recovered only if its owner did not upload."""


class ShareSecret(Secret):
    """X25519 private key (RFC 7748) of the keys under which shares travel. It never leaves its owner."""


class Seed(Secret):
    """Seed b of the self mask. It is Shamir-shared, and recovered only if its owner's upload is in the sum."""


class PolynomialSecret(Secret):
    """The secret from which the coefficients of both Shamir polynomials are derived. It never leaves its owner."""


class SharePair(Secret):
    """Another member's seed share and mask-key share, 33 bytes each. At most one of the two is ever revealed."""

    size_bytes = SHARE_PAIR_BYTES


class StreamKey(Secret):
    """AES-256 key, 32 bytes, of one mask keystream, used for one vector and never again."""
