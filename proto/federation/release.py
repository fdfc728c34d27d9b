"""The release of sealed models: what a site has to show before the aggregator gives it a content key."""

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from hashlib import sha256, sha512
from typing import Final

from federation.bounds import check_whole
from federation.errors import PlanRefused
from federation.sealing import SealedName
from federation.v1 import plan_pb2

NONCE_BYTES: Final = 32
MEASUREMENTS_MAX: Final = 8
_EVIDENCE_DOMAIN: Final = b"hemofed evidence v1\x00"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")  # SHA-256
_MEASUREMENT: Final = re.compile(r"[0-9a-f]{96}")  # SHA-384


class ReleaseLevel(StrEnum):
    """The evidence for a content key. plan.toml uses these names."""

    NONE = "none"
    CVM = "cvm"

    @property
    def number(self) -> plan_pb2.Release.Level.ValueType:
        """The enumerator on the wire."""
        return plan_pb2.Release.Level.Value(self.name)


@dataclass(frozen=True)
class Release:
    """The release of a run's models. The fields are those of plan.proto, with plan.toml's defaults.

    Attributes:
        level: The evidence for a key. All other fields are for CVM, and have their defaults with any other.
        root: SHA-256 of the DER of AMD's root certificate (ARK) of the processors' generation, in hexadecimal.
        measurements: Launch measurements of the virtual machines that may get a key, in hexadecimal, ascending.
        boot_loader_min: Least security version of the boot loader.
        tee_min: Likewise of the secure processor's operating system.
        snp_min: Likewise of the SNP firmware.
        microcode_min: Likewise of the microcode.
        packing: Whether `hemofed-site pack` may make a bundle of a model of the run.

    Raises:
        PlanRefused: A value is out of its bounds.
    """

    level: ReleaseLevel = ReleaseLevel.NONE
    root: str = ""
    measurements: tuple[str, ...] = ()
    boot_loader_min: int = 0
    tee_min: int = 0
    snp_min: int = 0
    microcode_min: int = 0
    packing: bool = False

    def __post_init__(self) -> None:
        for name in ("boot_loader_min", "tee_min", "snp_min", "microcode_min"):
            check_whole(f"release.{name}", getattr(self, name), 0, 255)
        if self.level is ReleaseLevel.CVM:
            if _DIGEST.fullmatch(self.root) is None:
                raise PlanRefused("release.root", "expected the SHA-256 of a certificate, 64 digits of 0-9 a-f")
            if not 1 <= len(self.measurements) <= MEASUREMENTS_MAX:
                raise PlanRefused("release.measurements", f"expected 1 to {MEASUREMENTS_MAX} launch measurements")
            if any(_MEASUREMENT.fullmatch(measurement) is None for measurement in self.measurements):
                raise PlanRefused("release.measurements", "expected launch measurements of 96 digits of 0-9 a-f")
            if list(self.measurements) != sorted(set(self.measurements)):
                raise PlanRefused("release.measurements", "expected each launch measurement once, in ascending order")
        elif any(getattr(self, field.name) != field.default for field in fields(self)):
            raise PlanRefused("release.level", "expected 'cvm' beside other keys of this table, got another level")

    @property
    def permits_packing(self) -> bool:
        """Whether a model of the run may become a bundle, which every host can read."""
        return self.level is ReleaseLevel.NONE or self.packing

    @property
    def tcb_min(self) -> tuple[int, int, int, int]:
        """Least versions of boot loader, secure processor's system, SNP firmware, microcode."""
        return self.boot_loader_min, self.tee_min, self.snp_min, self.microcode_min


def report_data(nonce: bytes, receiver_key: bytes, site: str, name: SealedName) -> bytes:
    """Returns the 64 bytes that evidence has to be bound to: SHA-512 over a domain and all that it is for.

    Args:
        nonce: Of the aggregator, 32 bytes.
        receiver_key: X-Wing public key that the site has drawn for this one release, 1216 bytes.
        site: Its name.
        name: Of the model.
    """
    parts = nonce + sha256(receiver_key).digest() + name.context + site.encode()
    return sha512(_EVIDENCE_DOMAIN + parts).digest()
