"""Verifies a report of AMD SEV-SNP in process: certificates, signature, and what the plan asks of the machine.

By AMD's "SEV Secure Nested Paging Firmware ABI Specification" (56860), table "ATTESTATION_REPORT", and "Versioned Chip
Endorsement Key Certificate and KDS Interface Specification" (57230), table "X.509v3 extensions". The layout of the TCB
is that of Milan, Genoa and their kin; a report of family 1Ah (Turin), which has another one, is refused.
"""

import struct
import warnings
from datetime import datetime
from hashlib import sha256
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.utils import CryptographyDeprecationWarning
from federation.release import Release
from federation.v1.rounds_pb2 import SnpEvidence
from federation.vocabulary import EvidenceRefusal

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
_NUMBER_BYTES: Final = 72  # of r and of s, little-endian; P-384 fills 48
_MIGRATION, _DEBUG = 1 << 18, 1 << 19  # of the guest's policy
_ECDSA_P384: Final = 1
_TURIN: Final = 0x1A
_TCB_BYTES: Final = (0, 1, 6, 7)  # of boot loader, secure processor's system, SNP firmware, microcode
_VERSIONS: Final = tuple(x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.3.{last}") for last in (1, 2, 3, 8))
_CHIP: Final = x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4")


class AttestationRefused(Exception):
    """Evidence that does not suffice, with its reason of a closed list."""

    def __init__(self, reason: EvidenceRefusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


class EvidenceVerifier(Protocol):
    """Decides about evidence. An external verifier (Trustee, Veraison) can stand behind it."""

    def __call__(self, evidence: SnpEvidence, release: Release, bound_to: bytes, now: datetime) -> None:
        """Return when the evidence suffices.

        Args:
            evidence: From the site, unexamined.
            release: Of the plan.
            bound_to: The report data that it has to hold, 64 bytes.
            now: Aware UTC.

        Raises:
            AttestationRefused: It does not.
        """


def verify_snp(evidence: SnpEvidence, release: Release, bound_to: bytes, now: datetime) -> None:
    """Verify a report with `cryptography` alone; see `EvidenceVerifier`.

    Raises:
        AttestationRefused: It does not suffice.
    """
    report = evidence.report
    if len(report) != REPORT_BYTES:
        raise AttestationRefused(EvidenceRefusal.FORM)
    # The signature before any field: nothing else in the report is believed until it is verified.
    vcek = _chip_certificate(evidence, release, now)
    _check_signature(report, vcek)
    (version,) = struct.unpack_from("<I", report, 0)
    policy, vmpl, algorithm = struct.unpack_from("<8xQ", report)[0], *struct.unpack_from("<II", report, 0x30)
    (flags,) = struct.unpack_from("<I", report, 0x48)
    # Bits 2 to 4 of the flags: 0 says that the chip's own key has signed, and not one of a cloud's.
    if version < 2 or algorithm != _ECDSA_P384 or (flags >> 2) & 7 or (version > 2 and report[0x188] >= _TURIN):
        raise AttestationRefused(EvidenceRefusal.FORM)
    if report[0x50:0x90] != bound_to:
        raise AttestationRefused(EvidenceRefusal.BINDING)
    if report[0x90:0xC0].hex() not in release.measurements:
        raise AttestationRefused(EvidenceRefusal.MEASUREMENT)
    if policy & (_DEBUG | _MIGRATION):
        raise AttestationRefused(EvidenceRefusal.DEBUG)
    if vmpl != 0:
        raise AttestationRefused(EvidenceRefusal.VMPL)
    _check_versions(report, vcek, release)


def _chip_certificate(evidence: SnpEvidence, release: Release, now: datetime) -> x509.Certificate:
    """Return the VCEK, which the pinned ARK vouches for through the ASK."""
    if sha256(evidence.ark).hexdigest() != release.root:
        raise AttestationRefused(EvidenceRefusal.CHAIN)
    try:
        with warnings.catch_warnings():
            # AMD's VCEK have the serial number 0.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            ark, ask, vcek = (
                x509.load_der_x509_certificate(data) for data in (evidence.ark, evidence.ask, evidence.vcek)
            )
        ask.verify_directly_issued_by(ark)
        vcek.verify_directly_issued_by(ask)
        if not (_has_one_spelling(ask, evidence.ask) and _has_one_spelling(vcek, evidence.vcek)):
            raise ValueError
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion):
        raise AttestationRefused(EvidenceRefusal.CHAIN) from None
    for certificate in (ark, ask, vcek):
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise AttestationRefused(EvidenceRefusal.CHAIN)
    return vcek


def _has_one_spelling(certificate: x509.Certificate, data: bytes) -> bool:
    """Whether behind the signed part come the algorithm that is named in it, and the signature (RFC 5280, 4.1)."""
    signed, signature = certificate.tbs_certificate_bytes, certificate.signature
    bits = b"\x03\x82" + (len(signature) + 1).to_bytes(2) + b"\x00" + signature
    algorithm = data[data.find(signed) + len(signed) : -len(bits)]
    return data.endswith(bits) and algorithm in signed


def _check_signature(report: bytes, vcek: x509.Certificate) -> None:
    signature = report[SIGNED_BYTES:]
    r, s = (int.from_bytes(signature[at : at + _NUMBER_BYTES], "little") for at in (0, _NUMBER_BYTES))
    key = vcek.public_key()
    # What follows r and s is not signed: other bytes than zeros would be a second spelling of one report.
    if not isinstance(key, ec.EllipticCurvePublicKey) or any(signature[2 * _NUMBER_BYTES :]):
        raise AttestationRefused(EvidenceRefusal.SIGNATURE)
    try:
        key.verify(encode_dss_signature(r, s), report[:SIGNED_BYTES], ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise AttestationRefused(EvidenceRefusal.SIGNATURE) from None


def _check_versions(report: bytes, vcek: x509.Certificate, release: Release) -> None:
    """Compare the reported TCB with the plan's floor, and chip and TCB with those that the certificate is for."""
    reported = [report[0x180 + place] for place in _TCB_BYTES]
    if any(version < least for version, least in zip(reported, release.tcb_min, strict=True)):
        raise AttestationRefused(EvidenceRefusal.TCB)
    try:
        certified = [_value_of(vcek, identifier) for identifier in _VERSIONS]
        chip = _value_of(vcek, _CHIP)
    except x509.ExtensionNotFound:
        raise AttestationRefused(EvidenceRefusal.CHAIN) from None
    # DER of a small INTEGER; 128 and more have a leading zero byte.
    if certified != [_integer(version) for version in reported] or chip != report[0x1A0:0x1E0]:
        raise AttestationRefused(EvidenceRefusal.TCB)


def _value_of(certificate: x509.Certificate, identifier: x509.ObjectIdentifier) -> bytes:
    value = certificate.extensions.get_extension_for_oid(identifier).value
    # `cryptography` knows no extension of AMD's, and hands each on as it is.
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def _integer(number: int) -> bytes:
    content = number.to_bytes(number.bit_length() // 8 + 1)
    return b"\x02" + bytes([len(content)]) + content
