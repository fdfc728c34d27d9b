"""A bundle: a packed model in one signed file, for hosts without torch.

    magic          18 bytes, "hemofed bundle v1" and a line feed
    signature      64 bytes, Ed25519 (RFC 8032) over all that follows
    length         4 bytes, of the description, unsigned, big endian
    description    JSON, see `BundleDescription`
    trunk, head    two ONNX graphs of the lengths in the description, see `graphs`

The signature is verified before anything behind it is parsed: an ONNX graph is a program.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.errors import BadSignature
from federation.labels import LABELS
from federation.signing import Signer, sign, verify

from site_client.errors import BundleRefused
from site_client.files import replace_in_pieces
from site_client.model.inputs import PIPELINE_VERSION
from site_client.typed_json import decode, encode
from site_client.untrusted_files import read_regular

INTENDED_USE: Final = "Research only. Not for clinical use: no diagnosis, no triage, no treatment depends on an answer."
BYTES_MAX: Final = 1 << 30
_MAGIC: Final = b"hemofed bundle v1\n"
_DOMAIN: Final = "hemofed bundle v1"
_SIGNATURE_BYTES: Final = 64
_LENGTH: Final = struct.Struct(">I")
_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class BundleDescription:
    """The description of a packed model.

    Attributes:
        intended_use: INTENDED_USE of the version that packed it.
        architecture: Its name in the sites' registry.
        model: Digest of the federated model's weights, hex.
        image_size_px: Side of a slice in pixels.
        slices_max: Most slices of a study.
        pipeline: Version of the image pipeline that the inputs go through.
        labels: In the order of the outputs.
        calibration: JSON text of `hemofed-site calibrate`; the head's graph applies it.
        quality: Measures before and after packing, on the validation patients of the site that packed it.
        trunk_bytes: Length of the trunk's graph.
        head_bytes: Length of the head's graph.
    """

    intended_use: str
    architecture: str
    model: str
    image_size_px: int
    slices_max: int
    pipeline: int
    labels: tuple[str, ...]
    calibration: str
    quality: Mapping[str, Any]
    trunk_bytes: int
    head_bytes: int

    def as_json(self) -> dict[str, object]:
        """Return plain values for json.dumps, as `hemofed-site predict` describes its model."""
        return {
            "architecture": self.architecture,
            "digest": self.model,
            "image_size_px": self.image_size_px,
            "slices_max": self.slices_max,
            "pipeline": self.pipeline,
            "intended_use": self.intended_use,
            "quality": self.quality,
        }


@dataclass(frozen=True)
class Bundle:
    """A description and the two graphs that it describes."""

    description: BundleDescription
    trunk: bytes
    head: bytes


def write_bundle(path: Path, bundle: Bundle, key: Signer) -> None:
    """Write a bundle, whole or not at all."""
    description = encode(bundle.description)
    content = b"".join([_LENGTH.pack(len(description)), description, bundle.trunk, bundle.head])
    # For other hosts and users: it holds weights and sums over patients, and no patient's value.
    replace_in_pieces(path, [_MAGIC, sign(key, _DOMAIN, content), content], 0o644)


def read_bundle(path: Path, signer: Ed25519PublicKey) -> Bundle:
    """Read a bundle that `signer` has signed.

    Raises:
        BundleRefused: There is no such file, it is no bundle, a byte of it was changed, another key signed it, or this
            version has another image pipeline or other labels.
    """
    try:
        raw = read_regular(path, BYTES_MAX)
    except (OSError, ValueError) as error:
        raise BundleRefused(f"expected a bundle, got no readable file {path.name!r}; copy it again") from error
    if not raw.startswith(_MAGIC):
        raise BundleRefused(f"expected a bundle of `hemofed-site pack`, got another file {path.name!r}")
    begin = len(_MAGIC) + _SIGNATURE_BYTES
    content = raw[begin:]
    try:
        verify(signer, _DOMAIN, content, raw[len(_MAGIC) : begin])
    except BadSignature as error:
        raise BundleRefused(
            f"expected a bundle signed by {signer.public_bytes_raw().hex()[:16]}, got changed bytes or another signer; "
            "copy it again, and compare --signer with the hospital that packed it"
        ) from error
    return _parsed(content)


def signer_of(text: str) -> Ed25519PublicKey:
    """Read a signer's public key, 64 hex digits.

    Raises:
        BundleRefused: It is something else.
    """
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != _KEY_BYTES:
        raise BundleRefused("expected --signer as 64 hex digits, got another text; `hemofed-site pack` prints it")
    return Ed25519PublicKey.from_public_bytes(raw)


def _parsed(content: bytes) -> Bundle:
    try:
        (length,) = _LENGTH.unpack_from(content)
        description = decode(BundleDescription, content[_LENGTH.size : _LENGTH.size + length], whole=True)
    except (struct.error, ValueError) as error:
        # Signed all the same: a version of hemofed with another format has written it.
        raise BundleRefused("expected a description that this version knows, got another; update hemofed") from error
    if description.pipeline != PIPELINE_VERSION:
        raise BundleRefused(
            f"expected a bundle of image pipeline {PIPELINE_VERSION}, got one of {description.pipeline}; "
            "use the hemofed that packed it"
        )
    if description.labels != LABELS:
        raise BundleRefused(f"expected the labels {', '.join(LABELS)}, got others; use the hemofed that packed it")
    begin = _LENGTH.size + length
    middle = begin + description.trunk_bytes
    return Bundle(description, content[begin:middle], content[middle : middle + description.head_bytes])
