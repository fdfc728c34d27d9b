r"""Sealed files: models and all that yields one, encrypted so that a file alone tells nothing.

    header  "hfseal1\n" || length of the plaintext (u64 LE) || salt (32)                       48 bytes
    frames  AES-256-GCM of each MiB of the plaintext; the last one is shorter, or as long

    context = digest of what the file is: kind, plan, model
    salt    = HMAC-SHA256(content key, "salt" || context || plaintext)
    key     = HKDF-SHA256(content key, salt = salt, info = context)
    nonce   = number of the frame (u88 BE) || 1 for the last frame, else 0
    AAD     = header

This is STREAM (Hoang, Reyhanitabar, Rogaway and Vizar, CRYPTO 2015, section 7) under a key of its own for each file. A
frame that was changed, moved, repeated, or taken from another file does not decrypt; a file without its last frame, or
with more behind it, is refused. The plan's digest covers the run, the manifest and the release level; the model's
digest covers the manifest and the weights.

The salt is a function of the plaintext, so equal plaintexts give equal files, and no key ever encrypts two of them: the
file at the aggregator and the files at all sites are the same bytes.
"""

import hmac
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.errors import SealRefused
from federation.hpke import SealingKey, encrypt_to

CONTENT_KEY_BYTES: Final = 32
FRAME_BYTES: Final = 1 << 20  # of plaintext
HEADER_BYTES: Final = 48
_TAG_BYTES: Final = 16
_MAGIC: Final = b"hfseal1\n"
_KEY_DOMAIN: Final = b"hemofed content key v1\x00"
_FILE_DOMAIN: Final = b"hemofed sealed file v1\x00"


class SealedKind(StrEnum):
    """The content of a sealed file. The kind is part of the context: one cannot stand in for another."""

    MODEL = "model"  # a file of `manifest.save_model`
    SUM = "sum"  # a published sum, or the words of a refused one
    CHECKPOINT = "checkpoint"  # of training from the model
    UPDATE = "update"  # of training from the model


@dataclass(frozen=True)
class SealedName:
    """The name of a sealed file: nothing but this very content opens under it.

    Attributes:
        kind: Of the content.
        plan_digest: 32 bytes.
        model_digest: 32 bytes. Of the model; of a sum, the model that it leads to, or its base model where it leads to
            none; of the rest, the model that is trained from.
    """

    kind: SealedKind
    plan_digest: bytes
    model_digest: bytes

    @property
    def context(self) -> bytes:
        """32 bytes."""
        return sha256(_FILE_DOMAIN + self.kind.encode() + b"\x00" + self.plan_digest + self.model_digest).digest()


def sealed_size(size_bytes: int) -> int:
    """Returns the length in bytes of a sealed file with so many bytes of plaintext."""
    return HEADER_BYTES + size_bytes + _TAG_BYTES * _frames(size_bytes)


def seal(content_key: bytes, name: SealedName, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Encrypts a file.

    Args:
        content_key: 32 bytes, of this plan and model.
        name: What the file is.
        pieces: The plaintext, in order; read twice, so not an iterator. Views have to be of bytes.

    Yields:
        The header, then each frame.
    """
    salted, size_bytes = hmac.new(content_key, b"salt\x00" + name.context, "sha256"), 0
    for piece in pieces:
        salted.update(piece)
        size_bytes += len(piece)
    header = _MAGIC + size_bytes.to_bytes(8, "little") + salted.digest()
    cipher, last = _cipher(content_key, name, header), _frames(size_bytes) - 1
    yield header
    for number, frame in enumerate(_in_frames(pieces)):
        yield cipher.encrypt(_nonce(number, is_last=number == last), frame, header)


def unseal(content_key: bytes, name: SealedName, file: BinaryIO, size_max: int) -> Iterator[bytes]:
    """Decrypts a file frame by frame. Nothing may be used before the last one came: the file may have been cut.

    Args:
        content_key: 32 bytes.
        name: What the file is said to be.
        file: Open for reading, at its beginning.
        size_max: Bytes of plaintext that it may hold at most.

    Yields:
        The plaintext, a MiB at a time.

    Raises:
        SealRefused: It is another file, was made with another key, or has changed anywhere.
    """
    header = file.read(HEADER_BYTES)
    size_bytes = int.from_bytes(header[len(_MAGIC) : len(_MAGIC) + 8], "little")
    if len(header) != HEADER_BYTES or not header.startswith(_MAGIC) or size_bytes > size_max:
        raise SealRefused("expected the header of a sealed file, got other bytes")
    cipher, frames = _cipher(content_key, name, header), _frames(size_bytes)
    for number in range(frames):
        is_last = number == frames - 1
        length = size_bytes - number * FRAME_BYTES if is_last else FRAME_BYTES
        try:
            yield cipher.decrypt(_nonce(number, is_last=is_last), file.read(length + _TAG_BYTES), header)
        except InvalidTag:
            raise SealRefused(f"frame {number} of a sealed {name.kind} does not decrypt under its name") from None
    if file.read(1):
        raise SealRefused(f"a sealed {name.kind} goes on behind its last frame")


def unseal_into_memory(content_key: bytes, name: SealedName, file: BinaryIO, size_max: int) -> BinaryIO:
    """Decrypts a file into memory that has a path while it is open, `/proc/self/fd/N`, and no name on a disk.

    Args:
        content_key: As for `unseal`; so are the other arguments.
        name: Likewise.
        file: Likewise.
        size_max: Likewise.

    Returns:
        The whole plaintext, open at its beginning.

    Raises:
        SealRefused: As from `unseal`.
    """
    plaintext = os.fdopen(os.memfd_create("hemofed", os.MFD_CLOEXEC), "w+b")
    try:
        plaintext.writelines(unseal(content_key, name, file, size_max))
        plaintext.flush()
        plaintext.seek(0)
    except BaseException:
        plaintext.close()
        raise
    return plaintext


def derive_content_key(secret: bytes, plan_digest: bytes, model_digest: bytes) -> bytes:
    """Derives the content key of a model, and of all that leads to it or is trained from it: 32 bytes.

    Args:
        secret: Of the aggregator, 32 bytes.
        plan_digest: 32 bytes.
        model_digest: 32 bytes.
    """
    return _hkdf(secret, b"", _KEY_DOMAIN + plan_digest + model_digest)


def wrap_content_key(content_key: bytes, receiver: bytes, public_key: bytes, name: SealedName) -> bytes:
    """Encrypts a content key for one machine (HPKE).

    Args:
        content_key: 32 bytes.
        receiver: Whom it is for: a site's name, or another constant that both ends know.
        public_key: Of the receiver, X-Wing, 1216 bytes.
        name: The model, of kind MODEL.
    """
    return encrypt_to(public_key, content_key, _wrapping(receiver, name))


def unwrap_content_key(wrapped: bytes, receiver: bytes, key: SealingKey, name: SealedName) -> bytes:
    """Decrypts what `wrap_content_key` made: 32 bytes.

    Raises:
        SealRefused: It is for another machine, receiver, plan or model.
    """
    content_key = key.decrypt(wrapped, _wrapping(receiver, name))
    if len(content_key) != CONTENT_KEY_BYTES:
        raise SealRefused(f"expected a content key of {CONTENT_KEY_BYTES} bytes, got {len(content_key)}")
    return content_key


def _wrapping(receiver: bytes, name: SealedName) -> bytes:
    # The context has a fixed length, so no receiver can run into it.
    return _KEY_DOMAIN + name.context + receiver


def _cipher(content_key: bytes, name: SealedName, header: bytes) -> AESGCM:
    return AESGCM(_hkdf(content_key, header[-32:], name.context))


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), CONTENT_KEY_BYTES, salt, info).derive(key)


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11) + bytes([is_last])


def _frames(size_bytes: int) -> int:
    # An empty plaintext has one frame: its tag is the only proof that nothing was cut away.
    return max(1, -(-size_bytes // FRAME_BYTES))


def _in_frames(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Cut the plaintext into frames, of which only the last may be short. A frame within one piece is not copied."""
    waiting, is_first = bytearray(), True
    for piece in pieces:
        view = memoryview(piece)
        while len(waiting) + len(view) > FRAME_BYTES:  # more than one: the last frame is known only at the end
            taken = FRAME_BYTES - len(waiting)
            yield bytes(waiting) + view[:taken] if waiting else view[:taken]
            waiting, view, is_first = bytearray(), view[taken:], False
        waiting += view
    if waiting or is_first:
        yield bytes(waiting)
