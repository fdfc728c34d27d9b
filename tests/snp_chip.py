"""A processor of our own making: keys, certificates and reports of the form that AMD's have, for tests of freshness."""

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from federation.release import Release, ReleaseLevel
from federation.v1.rounds_pb2 import SnpEvidence

CHIP_ID = bytes(range(64))
MEASUREMENT = bytes(range(48))
TCB = (3, 0, 8, 200)  # boot loader, secure processor's system, SNP firmware, microcode
FROM, UNTIL = datetime(2026, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
_PSS = padding.PSS(padding.MGF1(SHA384()), 48)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: str, issuer: str) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(_named(subject)).issuer_name(_named(issuer))
    return builder.serial_number(1).not_valid_before(FROM).not_valid_after(UNTIL)


@dataclass(frozen=True)
class Maker:
    """A maker of processors: its root and signing keys (RSA-PSS; short ones, which are quick to draw)."""

    ark_key: rsa.RSAPrivateKey
    ask_key: rsa.RSAPrivateKey
    ark: bytes
    ask: bytes


@cache
def maker(name: str = "AMD of this test") -> Maker:
    ark_key, ask_key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    ark = _builder(name, name).public_key(ark_key.public_key()).sign(ark_key, SHA384(), rsa_padding=_PSS)
    ask = _builder("SEV-Test", name).public_key(ask_key.public_key()).sign(ark_key, SHA384(), rsa_padding=_PSS)
    return Maker(ark_key, ask_key, ark.public_bytes(Encoding.DER), ask.public_bytes(Encoding.DER))


@dataclass
class Chip:
    """A processor that starts a virtual machine; called with 64 bytes, it reports on that machine."""

    measurement: bytes = MEASUREMENT
    policy: int = 0x30000
    vmpl: int = 0
    tcb: tuple[int, int, int, int] = TCB
    certified_tcb: tuple[int, int, int, int] = TCB
    version: int = 2
    flags: int = 0
    family: int = 0
    made_by: Maker = field(default_factory=maker)
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))

    def vcek(self) -> bytes:
        builder = _builder("SEV-VCEK", "SEV-Test").public_key(self.key.public_key())
        for last, number in zip((1, 2, 3, 8), self.certified_tcb, strict=True):
            value = number.to_bytes(number.bit_length() // 8 + 1)
            identifier = x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.3.{last}")
            content = b"\x02" + bytes([len(value)]) + value
            builder = builder.add_extension(x509.UnrecognizedExtension(identifier, content), critical=False)
        chip = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4"), CHIP_ID)
        signed = builder.add_extension(chip, critical=False).sign(self.made_by.ask_key, SHA384(), rsa_padding=_PSS)
        return signed.public_bytes(Encoding.DER)

    def report(self, report_data: bytes) -> bytes:
        """By AMD 56860, table "ATTESTATION_REPORT"."""
        report = bytearray(1184)
        struct.pack_into("<IIQ", report, 0, self.version, 0, self.policy)
        struct.pack_into("<II", report, 0x30, self.vmpl, 1)
        struct.pack_into("<I", report, 0x48, self.flags)
        report[0x50:0x90], report[0x90:0xC0] = report_data, self.measurement
        for place, number in zip((0, 1, 6, 7), self.tcb, strict=True):
            report[0x38 + place] = report[0x180 + place] = number
        report[0x188] = self.family
        report[0x1A0:0x1E0] = CHIP_ID
        r, s = decode_dss_signature(self.key.sign(bytes(report[:0x2A0]), ec.ECDSA(SHA384())))
        report[0x2A0:0x2E8], report[0x2E8:0x330] = r.to_bytes(72, "little"), s.to_bytes(72, "little")
        return bytes(report)

    def __call__(self, report_data: bytes) -> SnpEvidence:
        return SnpEvidence(
            report=self.report(report_data), vcek=self.vcek(), ask=self.made_by.ask, ark=self.made_by.ark
        )


def release(**changes: object) -> Release:
    """The level "cvm" for machines of `Chip()`."""
    fields = {"root": sha256(maker().ark).hexdigest(), "measurements": (MEASUREMENT.hex(),)} | changes
    return Release(ReleaseLevel.CVM, **fields)  # type: ignore[arg-type]  # as the caller names them
