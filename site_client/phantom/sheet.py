"""A contact sheet: each kind of bleed and each site, in brain, subdural and bone windows, as one PNG.

python -m site_client.phantom.sheet --out docs/phantom/contact_sheet.png

Rows: the five bleeds in label order, then the sites T, S, N, C, R, U. Columns: three levels, or the bleed's largest
slice and its neighbors, in the brain window; then the middle one in the subdural and the bone window.
"""

import struct
import zlib
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from federation.labels import SUBTYPES

from site_client.phantom.lesions import STUDY_PERCENT, draw_lesions
from site_client.phantom.noise import Floats
from site_client.phantom.profiles import PROFILES
from site_client.phantom.streams import PhantomStreams
from site_client.phantom.study import Study, Wishes, make_study

Gray = npt.NDArray[np.uint8]
# Center and width in HU.
WINDOWS = {"brain": (40, 80), "subdural": (80, 200), "bone": (600, 2800)}
SHOWN_ML = 15.0
LEVELS_MM = (-28.0, 10.0, 42.0)


def window(image: Floats, name: str) -> Gray:
    """Converts HU f32[H, W] to gray uint8[H, W] through one of WINDOWS."""
    center, width = WINDOWS[name]
    return np.asarray(np.clip((image - center + width / 2) / width * 255, 0, 255).astype(np.uint8))


def png_bytes(gray: Gray) -> bytes:
    """Encodes uint8[H, W] as an 8-bit grayscale PNG (ISO/IEC 15948)."""
    height, width = gray.shape
    rows = b"".join(b"\0" + row.tobytes() for row in gray)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


def contact_sheet(seed: int, difficulty: float) -> Gray:
    """Draws the whole sheet, uint8[11 * 256, 5 * 256]."""
    wishes = Wishes(prevalence="balanced", difficulty=difficulty)
    bleeds = [_study("S", seed, first_with(subtype, seed, difficulty), wishes) for subtype in SUBTYPES]
    sites = [_study(name, seed, 1, wishes) for name in PROFILES]
    rows = [_row(study, largest_and_neighbors(study, name)) for study, name in zip(bleeds, SUBTYPES, strict=True)]
    rows += [_row(study, [int(np.abs(study.scan.along_mm - level).argmin()) for level in LEVELS_MM]) for study in sites]
    return np.vstack(rows)


def largest_and_neighbors(study: Study, subtype: str) -> list[int]:
    """Finds the slice with most blood of this subtype; lists it between its neighbors."""
    largest = int(study.truth.ml[:, SUBTYPES.index(subtype)].argmax())
    return [max(0, largest - 1), largest, min(study.scan.slices - 1, largest + 1)]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _row(study: Study, slices: list[int]) -> Gray:
    shown = [window(study.image[k], "brain") for k in slices]
    shown += [window(study.image[slices[1]], name) for name in ("subdural", "bone")]
    return np.hstack(shown)


def first_with(subtype: str, seed: int, difficulty: float) -> int:
    """Finds the first patient of the stroke hub with bleeds of this subtype only, large enough to be seen."""
    index = 0
    # The lesion stream alone is read: many patients are tried, and one is drawn.
    while True:
        random = PhantomStreams.of("S", seed, index).generator("lesion")
        lesions = draw_lesions(random, STUDY_PERCENT["balanced"], PROFILES["S"].patients.chronic_subdural, difficulty)
        if lesions and all(lesion.subtype == subtype for lesion in lesions) and lesions[0].ml > SHOWN_ML:
            return index
        index += 1


def _study(name: str, seed: int, index: int, wishes: Wishes) -> Study:
    streams, profile = PhantomStreams.of(name, seed, index), PROFILES[name]
    return make_study(streams, streams, profile.patients, profile.scanner, wishes)


@click.command()
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True)
@click.option("--difficulty", type=click.FloatRange(0.2, 3.0), default=0.5, show_default=True, help="Of the bleeds.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The PNG to write.")
def main(seed: int, difficulty: float, out: Path) -> None:
    """Write the contact sheet of the phantom."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(png_bytes(contact_sheet(seed, difficulty)))


if __name__ == "__main__":
    main()
