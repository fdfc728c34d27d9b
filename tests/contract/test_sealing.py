"""federation.sealing and federation.hpke: what opens, and that nothing else does."""

import hmac
import json
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from federation.errors import SealRefused
from federation.hpke import OVERHEAD_BYTES, SEALING_KEY_BYTES, SealingKey, encrypt_to
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.sealed_model import load_sealed_model, model_name, seal_model
from federation.sealing import (
    FRAME_BYTES,
    HEADER_BYTES,
    SealedKind,
    SealedName,
    derive_content_key,
    seal,
    sealed_size,
    unseal,
    unseal_into_memory,
    unwrap_content_key,
    wrap_content_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import hpke_reference

KEY = bytes(range(32))
NAME = SealedName(SealedKind.MODEL, b"\x01" * 32, b"\x02" * 32)
FRAME = FRAME_BYTES + 16
VECTORS = json.loads((Path(__file__).parent / "vectors" / "sealing.json").read_text())


def sealed(plaintext: bytes, name: SealedName = NAME, key: bytes = KEY) -> bytes:
    return b"".join(seal(key, name, [plaintext]))


def opened(data: bytes, name: SealedName = NAME, key: bytes = KEY, size_max: int = 1 << 30) -> bytes:
    return b"".join(unseal(key, name, BytesIO(data), size_max))


def reference(key: bytes, name: SealedName, plaintext: bytes) -> bytes:
    """The format, written out a second time from the page, with HKDF as two HMACs and frames cut by slices."""
    domain = b"hemofed sealed file v1\x00" + name.kind.value.encode() + b"\x00"
    context = sha256(domain + name.plan_digest + name.model_digest).digest()
    salt = hmac.digest(key, b"salt\x00" + context + plaintext, "sha256")
    file_key = hmac.digest(hmac.digest(salt, key, "sha256"), context + b"\x01", "sha256")
    header = b"hfseal1\n" + len(plaintext).to_bytes(8, "little") + salt
    frames = [plaintext[at : at + FRAME_BYTES] for at in range(0, len(plaintext), FRAME_BYTES)] or [b""]
    body = [
        AESGCM(file_key).encrypt(number.to_bytes(11, "big") + bytes([number == len(frames) - 1]), frame, header)
        for number, frame in enumerate(frames)
    ]
    return header + b"".join(body)


@pytest.fixture(scope="module")
def long() -> bytes:
    return np.random.default_rng(1).bytes(3 * FRAME_BYTES + 5)


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES])
def test_a_sealed_file_is_the_one_of_the_second_implementation_and_opens(long: bytes, size: int) -> None:
    plaintext = long[:size]
    data = sealed(plaintext)
    assert data == reference(KEY, NAME, plaintext)
    assert opened(data) == plaintext
    assert len(data) == sealed_size(size)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, FRAME_BYTES + 3), max_size=4))
def test_into_how_many_pieces_the_plaintext_is_cut_changes_no_byte(sizes: list[int]) -> None:
    plaintext = bytes(sum(sizes))
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    pieces = [memoryview(plaintext)[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    assert b"".join(seal(KEY, NAME, pieces)) == reference(KEY, NAME, plaintext)


def test_recorded_files_and_keys_still_open() -> None:
    key, name = bytes.fromhex(VECTORS["content_key"]), SealedName(SealedKind.SUM, b"\x0a" * 32, b"\x0b" * 32)
    assert opened(bytes.fromhex(VECTORS["sealed"]), name, key) == b"a published sum"
    assert sealed(b"a published sum", name, key).hex() == VECTORS["sealed"]
    receiver = SealingKey.from_bytes(bytes.fromhex(VECTORS["sealing_key"]))
    assert unwrap_content_key(bytes.fromhex(VECTORS["wrapped"]), b"mercy", receiver, NAME) == key
    assert derive_content_key(bytes(32), b"\x0a" * 32, b"\x0b" * 32).hex() == VECTORS["derived"]


def _tampered(data: bytes) -> Iterator[tuple[str, bytes]]:
    body = data[HEADER_BYTES:]
    frames = [body[at : at + FRAME] for at in range(0, len(body), FRAME)]
    head = data[:HEADER_BYTES]
    yield "cut behind a frame", head + b"".join(frames[:-1])
    yield "cut within a frame", data[:-1]
    yield "nothing but a header", head
    yield "half a header", data[:20]
    yield "two frames exchanged", head + frames[1] + frames[0] + b"".join(frames[2:])
    yield "a frame twice", head + frames[0] + frames[0] + b"".join(frames[2:])
    yield "a frame left out", head + b"".join(frames[1:])
    yield "bytes behind the end", data + b"\x00"
    yield "another file behind the end", data + data
    shorter = head[:8] + (2 * FRAME_BYTES).to_bytes(8, "little") + head[16:]
    yield "a smaller length, to cut it", shorter + b"".join(frames[:2])
    for place in (0, 9, 17, 40, HEADER_BYTES, HEADER_BYTES + FRAME_BYTES, len(data) - 1):
        yield f"a bit of byte {place}", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_file_that_was_cut_reordered_or_changed_anywhere_is_refused(long: bytes) -> None:
    for what, data in _tampered(sealed(long)):
        with pytest.raises(SealRefused):
            assert opened(data) is None, what


def test_frames_of_two_files_cannot_be_exchanged_even_under_one_key_and_name(long: bytes) -> None:
    one, other = sealed(long), sealed(long[::-1])
    mixed = one[: HEADER_BYTES + FRAME] + other[HEADER_BYTES + FRAME :]
    with pytest.raises(SealRefused, match="frame 1"):
        opened(mixed)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        pytest.param(SealedName(SealedKind.SUM, NAME.plan_digest, NAME.model_digest), KEY, id="another kind"),
        pytest.param(SealedName(NAME.kind, b"\x03" * 32, NAME.model_digest), KEY, id="another plan"),
        pytest.param(SealedName(NAME.kind, NAME.plan_digest, b"\x03" * 32), KEY, id="another model"),
        pytest.param(SealedName(NAME.kind, NAME.model_digest, NAME.plan_digest), KEY, id="digests exchanged"),
        pytest.param(NAME, bytes(32), id="another key"),
    ],
)
def test_a_file_opens_under_its_own_name_and_key_only(name: SealedName, key: bytes) -> None:
    with pytest.raises(SealRefused):
        opened(sealed(b"weights"), name, key)


def test_a_file_that_claims_to_be_larger_than_it_may_be_is_refused_before_it_is_read() -> None:
    with pytest.raises(SealRefused, match="header"):
        opened(sealed(bytes(100)), size_max=99)


def test_no_key_and_nonce_ever_meet_two_plaintexts() -> None:
    """The salt follows from the plaintext, so other bytes get another key, under one content key and name too."""
    one, other = sealed(bytes(100)), sealed(bytes(99) + b"\x01")
    assert one[16:HEADER_BYTES] != other[16:HEADER_BYTES]
    keystreams = [bytes(a ^ b for a, b in zip(data[HEADER_BYTES:], bytes(100), strict=False)) for data in (one, other)]
    assert keystreams[0][:99] != keystreams[1][:99]


def test_what_is_opened_into_memory_has_no_name_on_a_disk() -> None:
    with unseal_into_memory(KEY, NAME, BytesIO(sealed(b"weights")), 100) as plaintext:
        path = Path(f"/proc/self/fd/{plaintext.fileno()}")
        assert path.readlink().name == "memfd:hemofed (deleted)"
        assert path.read_bytes() == plaintext.read() == b"weights"


def test_a_sealed_model_is_the_saved_file_under_encryption(tmp_path: Path) -> None:
    manifest = Manifest((TensorSpec("weight", (3, 5)), TensorSpec("bias", (3,))))
    model = Model(manifest, np.arange(18, dtype=np.float32), (np.ones(18),))
    save_model(tmp_path / "model", model)
    name = model_name(NAME.plan_digest, model.digest)
    data = b"".join(seal_model(KEY, NAME.plan_digest, model))
    assert data == sealed((tmp_path / "model").read_bytes(), name)
    assert load_sealed_model(KEY, name, manifest, BytesIO(data)).digest == model.digest
    other = b"".join(seal(KEY, model_name(NAME.plan_digest, bytes(32)), [(tmp_path / "model").read_bytes()]))
    with pytest.raises(SealRefused, match="another inside"):
        load_sealed_model(KEY, model_name(NAME.plan_digest, bytes(32)), manifest, BytesIO(other))


def test_a_content_key_for_a_site_opens_by_the_second_implementation_of_hpke() -> None:
    receiver = SealingKey.generate()
    assert len(receiver.public_bytes) == SEALING_KEY_BYTES
    ciphertext = encrypt_to(receiver.public_bytes, KEY, b"for a test")
    assert len(ciphertext) == len(KEY) + OVERHEAD_BYTES
    seeds = receiver.to_bytes()
    assert hpke_reference.decrypt(seeds[:64], seeds[64:], ciphertext, b"for a test") == KEY


def test_a_wrapped_key_opens_for_its_receiver_model_and_plan_only() -> None:
    receiver, other = SealingKey.generate(), SealingKey.generate()
    wrapped = wrap_content_key(KEY, b"mercy", receiver.public_bytes, NAME)
    assert unwrap_content_key(wrapped, b"mercy", receiver, NAME) == KEY
    assert wrap_content_key(KEY, b"mercy", receiver.public_bytes, NAME) != wrapped
    elsewhere = SealedName(NAME.kind, NAME.plan_digest, b"\x03" * 32)
    flipped = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    for data, site, key, name in (
        (wrapped, b"st-anne", receiver, NAME),
        (wrapped, b"mercy", other, NAME),
        (wrapped, b"mercy", receiver, elsewhere),
        (flipped, b"mercy", receiver, NAME),
        (b"", b"mercy", receiver, NAME),
    ):
        with pytest.raises(SealRefused):
            unwrap_content_key(data, site, key, name)


@pytest.mark.parametrize("public_key", [b"", bytes(SEALING_KEY_BYTES - 1), b"\xff" * SEALING_KEY_BYTES])
def test_what_is_no_public_key_is_refused(public_key: bytes) -> None:
    with pytest.raises(SealRefused):
        encrypt_to(public_key, KEY, b"")


def test_every_model_and_plan_has_a_content_key_of_its_own() -> None:
    digests = [bytes([number]) * 32 for number in range(5)]
    keys = {derive_content_key(KEY, plan, model) for plan in digests for model in digests}
    assert len(keys) == 25
