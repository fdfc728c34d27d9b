"""Six words over the keys of a site or of the custodian, for comparing them by telephone."""

from functools import cache
from hashlib import sha256

from mnemonic import Mnemonic

_DOMAIN = b"hemofed fingerprint v1\x00"
_CUSTODIAN_DOMAIN = b"hemofed custodian fingerprint v1\x00"


def six_words(csr_der: bytes, signing_key: bytes, sealing_key: bytes) -> str:
    """Returns six words over the keys that a site asks to be enrolled with, for reading aloud.

    The words are BIP-39's. They encode the first 66 bits of SHA-256 over a domain and the SHA-256 of each argument.

    Args:
        csr_der: The certificate signing request (RFC 2986), DER.
        signing_key: Raw Ed25519 public key, 32 bytes.
        sealing_key: HPKE X-Wing public key, 1216 bytes.
    """
    # Each argument is hashed by itself: bytes moved from the end of one to the start of the next change the words.
    parts = b"".join(sha256(part).digest() for part in (csr_der, signing_key, sealing_key))
    return _first_66_bits(sha256(_DOMAIN + parts).digest())


def custodian_words(key: bytes) -> str:
    """Returns six BIP-39 words (66 bits) over the custodian's Ed25519 public key of 32 bytes, for reading aloud."""
    return _first_66_bits(sha256(_CUSTODIAN_DOMAIN + key).digest())


def _first_66_bits(digest: bytes) -> str:
    number = int.from_bytes(digest, "big") >> (256 - 66)
    return " ".join(_words()[number >> shift & 2047] for shift in range(55, -1, -11))


@cache
def _words() -> tuple[str, ...]:
    return tuple(Mnemonic("english").wordlist)
