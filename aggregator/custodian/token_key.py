"""The custodian's key in a PKCS#11 token: a smart card, an HSM, SoftHSM. The key is made there and never leaves.

PKCS#11 v3.0: CKM_EC_EDWARDS_KEY_PAIR_GEN (2.3.10) and CKM_EDDSA (2.3.14) with the curve Ed25519. The library is the
extra `custodian-token`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aggregator.errors import CustodianRefused

LABEL = "hemofed custodian"
_ED25519_OID = "1.3.101.112"  # RFC 8410
_POINT_BYTES = 32


@dataclass(frozen=True)
class HardwareToken:
    """The place of a hardware token."""

    module: str  # path of its PKCS#11 library
    label: str


class TokenKey:
    """A private key in an open session of its token: a `federation.signing.Signer`."""

    def __init__(self, key: Any, mechanism: Any) -> None:
        self._key, self._mechanism = key, mechanism

    def sign(self, data: bytes, /) -> bytes:
        """Sign with Ed25519: 64 bytes."""
        return bytes(self._key.sign(data, mechanism=self._mechanism))


def make_key(token: HardwareToken, pin: str) -> bytes:
    """Make the key in the token.

    Returns:
        The public key, 32 bytes.

    Raises:
        CustodianRefused: When the token, its PIN or the library is not usable, or it holds such a key already.
    """
    with _session(token, pin) as (pkcs11, session):
        if list(session.get_objects({pkcs11.Attribute.LABEL: LABEL})):
            raise CustodianRefused(f"the token {token.label!r} holds a custodian's key already; use an empty token")
        curve = {pkcs11.Attribute.EC_PARAMS: _curve()}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC_EDWARDS, curve, local=True)
        public, _ = parameters.generate_keypair(
            mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
            store=True,
            label=LABEL,
            private_template={pkcs11.Attribute.EXTRACTABLE: False, pkcs11.Attribute.SENSITIVE: True},
        )
        # A DER OCTET STRING around the point, or the bare point in older tokens: the point is the end of both.
        return bytes(public[pkcs11.Attribute.EC_POINT])[-_POINT_BYTES:]


@contextmanager
def open_key(token: HardwareToken, pin: str) -> Iterator[TokenKey]:
    """Find the key in the token, for as long as the context lasts.

    Raises:
        CustodianRefused: When the token, its PIN or the library is not usable, or it holds no such key.
    """
    with _session(token, pin) as (pkcs11, session):
        try:
            key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=LABEL)
        except (pkcs11.NoSuchKey, pkcs11.MultipleObjectsReturned):
            raise CustodianRefused(f"the token {token.label!r} holds no custodian's key") from None
        yield TokenKey(key, pkcs11.Mechanism.EDDSA)


@contextmanager
def _session(token: HardwareToken, pin: str) -> Iterator[tuple[Any, Any]]:
    try:
        import pkcs11
    except ImportError:
        raise CustodianRefused("a token needs another library; pip install 'hemofed[custodian-token]'") from None
    try:
        with pkcs11.lib(token.module).get_token(token_label=token.label).open(rw=True, user_pin=pin) as session:
            yield pkcs11, session
    except pkcs11.PKCS11Error as error:
        # The library's own texts are often empty; the name of the error says what is wrong.
        sentence = f"the token {token.label!r} of {token.module} refused: {type(error).__name__}"
        raise CustodianRefused(f"{sentence}; check the token, its label and the PIN") from error


def _curve() -> bytes:
    from pkcs11.util.ec import encode_named_curve_parameters

    return bytes(encode_named_curve_parameters(_ED25519_OID))
