"""The one-time token that turns a hospital's machine into a site.

    hf1_<site>_<secret>_<ca>_<crc>

secret: 32 random bytes; ca: SHA-256 of the consortium CA's certificate (DER), so that the first connection is already
pinned; both base32 in lower case without padding. crc: CRC-32 of everything before it, 8 hexadecimal digits, to tell
a typing error from an expired token.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from federation.errors import TokenRefused
from federation.limits import check_site_name

SECRET_BYTES = 32
_FORM = re.compile(r"hf1_([a-z0-9-]{1,32})_([a-z2-7]{52})_([a-z2-7]{52})_([0-9a-f]{8})")


@dataclass(frozen=True)
class Token:
    """The parts of a token. The secret never shows in a repr or a message.

    Attributes:
        site: Name of the site, 1 to 32 characters.
        secret: 32 random bytes.
        ca_fingerprint: SHA-256 of the consortium CA's certificate (DER), 32 bytes.

    Raises:
        TokenRefused: The name or a length is wrong.
    """

    site: str
    secret: bytes = field(repr=False)
    ca_fingerprint: bytes

    def __post_init__(self) -> None:
        check_site_name(self.site)
        if len(self.secret) != SECRET_BYTES or len(self.ca_fingerprint) != 32:
            raise TokenRefused("expected a token secret and a CA fingerprint of 32 bytes each")

    @classmethod
    def new(cls, site: str, ca_fingerprint: bytes, random: Callable[[int], bytes]) -> "Token":
        """Draws a fresh token. `random(n)` gives n unpredictable bytes."""
        return cls(site, random(SECRET_BYTES), ca_fingerprint)

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Parses a pasted token. Spaces around it are ignored, and nothing else.

        Raises:
            TokenRefused: The text is not a token. The message never repeats the text.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise TokenRefused("expected a token 'hf1_site_secret_ca_crc', got another form; copy it whole")
        site, secret, ca, crc = match.groups()
        if crc != _crc(f"hf1_{site}_{secret}_{ca}"):
            raise TokenRefused("expected a token whose checksum fits, got a mistyped one; copy it again")
        return cls(site, _from_base32(secret), _from_base32(ca))

    def text(self) -> str:
        """Returns the token to hand to the hospital. It is a secret: show it once, keep only its hash."""
        body = f"hf1_{self.site}_{_to_base32(self.secret)}_{_to_base32(self.ca_fingerprint)}"
        return f"{body}_{_crc(body)}"


def _crc(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _to_base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _from_base32(text: str) -> bytes:
    """Decodes canonical base32. The last character has spare bits, which have to be 0.

    Raises:
        TokenRefused: The text is not the canonical form.
    """
    try:
        data = base64.b32decode(text.upper() + "====")
    except binascii.Error as error:
        raise TokenRefused("expected base32 in the token, got something else; copy it again") from error
    if _to_base32(data) != text:
        raise TokenRefused("expected canonical base32 in the token, got another form; copy it again")
    return data
