"""Damaged files: seeded mutations of sound ones, and files made to exhaust whoever reads them."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless, RLELossless

CANARIES = ("CANARYNAME", "ANNA", "1.2.3", "STANDARD")  # what the scanner of these tests writes into headers
# Lengths and numbers that programs forget: empty, the largest of 16 bits, of 31, of 32 and of an undefined length.
_EXTREMES = (0, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def encodings(ct: Path) -> list[bytes]:
    """One image raw, and in every compression that is at home in archives and has an encoder here."""
    files = [ct.read_bytes()]
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        files.append(compressed(ct, syntax).read_bytes())
    return files


def compressed(ct: Path, syntax: UID) -> Path:
    dataset = dcmread(ct)
    dataset.compress(syntax, generate_instance_uid=False)
    path = ct.with_name(f"{ct.name}-{syntax.name.split()[0]}")
    dataset.save_as(path)
    return path


def mutations(files: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Files with one to five faults each: in the header, in the stream, or in both."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(files[number % len(files)])
        pixels = data.index(b"\xe0\x7f\x10\x00")
        for _ in range(rng.integers(1, 6)):
            # Headers and the first bytes of a stream decide what is allocated, so half of all faults fall there.
            low, high = ((132, pixels), (pixels, pixels + 160), (pixels, len(data)), (0, len(data)))[rng.integers(4)]
            place = int(rng.integers(low, max(low + 1, min(high, len(data)))))
            match rng.integers(6):
                case 0:
                    data[place : place + 1] = bytes([rng.integers(256)])
                case 1:
                    data[place : place + 4] = struct.pack("<I", _EXTREMES[rng.integers(len(_EXTREMES))])
                case 2:
                    del data[place : place + int(rng.integers(1, 40))]
                case 3:
                    data[place:place] = rng.bytes(int(rng.integers(1, 40)))
                case 4:
                    data[place : place + 2] = (b"SQ", b"UN", b"OB", b"D0", b"AT", b"FL")[rng.integers(6)]
                case _:
                    del data[place:]
            if len(data) < 300:  # nothing left to damage
                break
        yield bytes(data)


def deflated(ct: Path, megabytes: int) -> bytes:
    """The image in the deflated syntax, behind a private element of so many MB of zeros."""
    raw = ct.read_bytes()
    body = raw.index(b"\x08\x00\x08\x00CS")  # Image Type, the first element after group 0002 here
    head = raw[:body].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    # The group's length and the element's grow by the two bytes of the longer UID.
    head = head.replace(b"UI\x14\x001.2.840.10008.1.2.1.99", b"UI\x16\x001.2.840.10008.1.2.1.99")
    length = struct.unpack("<I", head[140:144])[0]
    head = head[:140] + struct.pack("<I", length + 2) + head[144:]
    zeros = b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", megabytes << 20) + bytes(megabytes << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return head + packer.compress(zeros + raw[body:]) + packer.flush()


def nested(ct: Path, depth: int) -> bytes:
    """The image behind sequences inside sequences, none of which states its length."""
    raw = ct.read_bytes()
    body = raw.index(b"\x18\x00\x50\x00DS")  # Slice Thickness
    # (0018,0012) Contrast/Bolus Agent Sequence is one that ingest reads.
    level = b"\x18\x00\x12\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return raw[:body] + level * depth + raw[body:]


def endless(ct: Path, path: Path) -> Path:
    """The image's header, then an element without a length and a gigabyte of zeros that take no block of the disk."""
    raw = ct.read_bytes()
    body = raw.index(b"\x18\x00\x50\x00DS")
    path.write_bytes(raw[:body] + b"\x18\x00\x12\x00SQ\0\0\xff\xff\xff\xff")
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    return path
