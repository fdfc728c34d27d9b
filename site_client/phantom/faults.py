"""Faults of real archives: slices lost, sent twice or cut short, additional series, 12-bit values that wrapped.

They are drawn from a stream of their own. So a fault changes neither the patient nor the header, and a twin has the
faults of its study.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from site_client.phantom.dicom import StudyIdentity, WrittenSeries, digest_of, write_localizer, write_series
from site_client.phantom.lattice import Scan
from site_client.phantom.noise import Floats
from site_client.phantom.profiles import Scanner
from site_client.phantom.streams import PhantomStreams

BONE_KERNEL = "BONE"
_EDGE_SLICES = 3  # at either end no slice is lost: without a neighbour beyond it no reader could notice


@dataclass(frozen=True)
class Rates:
    """Share of studies with each fault. `wrapped`: of unsigned 12-bit scanners, or their own share if higher."""

    missing: float = 0.02
    duplicate: float = 0.01
    localizer: float = 0.5
    second_kernel: float = 0.2
    truncated: float = 0.005
    wrapped: float = 0.01


NO_FAULTS = Rates(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Faults:
    """The faults of one study. `missing`, `duplicate`, `truncated`: a slice, counted from the lowest, or None."""

    missing: int | None
    duplicate: int | None
    truncated: int | None
    localizer: bool
    second_kernel: bool
    wrapped: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the faults that this study has."""
        return tuple(name for name, value in vars(self).items() if value is not None and value is not False)


def draw_faults(random: np.random.Generator, rates: Rates, scanner: Scanner, slices: int) -> Faults:
    """Draws the faults of one study with so many slices.

    Every number is drawn whatever the rates, so that one fault's rate moves no other fault.
    """
    missing, duplicate, truncated, localizer, second_kernel, wrapped = random.random(6)
    places = [int(place) for place in random.integers(_EDGE_SLICES, max(_EDGE_SLICES + 1, slices - _EDGE_SLICES), 3)]
    # Signed values have room for -1000 HU, and 16 bits have room above.
    may_wrap = not scanner.signed and scanner.bits_stored == 12
    return Faults(
        missing=places[0] if missing < rates.missing else None,
        duplicate=places[1] if duplicate < rates.duplicate else None,
        truncated=places[2] if truncated < rates.truncated else None,
        localizer=bool(localizer < rates.localizer),
        second_kernel=bool(second_kernel < rates.second_kernel),
        wrapped=bool(may_wrap and rates.wrapped and wrapped < max(rates.wrapped, scanner.wrapped)),
    )


def write_study(
    streams: PhantomStreams,
    identity: StudyIdentity,
    scanner: Scanner,
    scan: Scan,
    image: Floats,
    out: Path,
    faults: Faults,
) -> WrittenSeries:
    """Writes a study with its faults; `image` is HU f32[T, H, W].

    Returns:
        The main series with the files and images that are delivered. Its digest covers all files of the study.
    """
    series = write_series(streams, identity, scanner, scan, image, out, wrapped=faults.wrapped)
    extra: list[Path] = []
    if faults.second_kernel:
        bone = replace(scanner, kernel_name=BONE_KERNEL)
        extra += write_series(streams, identity, bone, scan, sharpened(image), out, second=True).files
    if faults.localizer:
        extra.append(write_localizer(streams, identity, scanner, scan, image, out))
    if faults.duplicate is not None:
        original = series.files[faults.duplicate]
        extra.append(original.with_name(f"{streams.name(16, 'file', identity.part, 'copy')}.dcm"))
        extra[-1].write_bytes(original.read_bytes())
    if faults.truncated is not None:
        path = series.files[faults.truncated]
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])  # the header stays whole, the pixels do not
    # Last: the slices above are counted in the whole series.
    if faults.missing is not None:
        series.files[faults.missing].unlink()
        kept = [k for k in range(len(series.files)) if k != faults.missing]
        files, sop_uids = tuple(series.files[k] for k in kept), tuple(series.sop_uids[k] for k in kept)
        series = replace(series, files=files, sop_uids=sop_uids)
    return replace(series, sha256=digest_of((*series.files, *extra)))


def sharpened(image: Floats) -> Floats:
    """Imitates a bone kernel on HU f32[T, H, W]: edges overshoot, noise about doubles."""
    return np.asarray(image + 1.5 * (image - ndimage.gaussian_filter(image, (0, 1.0, 1.0))), dtype=np.float32)
