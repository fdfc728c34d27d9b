"""Models as sealed files: encrypted while they are written, decrypted into memory and never onto a disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from federation.errors import SealRefused
from federation.manifest import Manifest, Model, load_model, model_pieces
from federation.sealing import SealedKind, SealedName, seal, unseal_into_memory


def model_name(plan_digest: bytes, model_digest: bytes) -> SealedName:
    """Names a sealed model."""
    return SealedName(SealedKind.MODEL, plan_digest, model_digest)


def seal_model(content_key: bytes, plan_digest: bytes, model: Model) -> Iterator[bytes]:
    """Encrypts the very bytes that `save_model` writes. Equal models of a plan give equal files.

    Yields:
        The file, piece by piece.
    """
    return seal(content_key, model_name(plan_digest, model.digest), model_pieces(model))


def load_sealed_model(content_key: bytes, name: SealedName, manifest: Manifest, file: BinaryIO) -> Model:
    """Reads a file of `seal_model`.

    Args:
        content_key: 32 bytes.
        name: From `model_name`.
        manifest: Of the plan; it bounds the size.
        file: Open for reading, at its beginning.

    Raises:
        SealRefused: It is another file, was made with another key, or has changed.
        Malformed: What was sealed is no model.
    """
    with unseal_into_memory(content_key, name, file, manifest.file_bytes_max) as plaintext:
        model = load_model(Path(f"/proc/self/fd/{plaintext.fileno()}"))
    if model.manifest != manifest or model.digest != name.model_digest:
        raise SealRefused("expected the model that a sealed file is named by, got another inside")
    return model
