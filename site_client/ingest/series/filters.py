"""The hard filters of a stack, each with the measured value and the limit: why is a series not used?

`stacks` and `content` decide; this file says by which numbers. A test holds the two against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from site_client.ingest.reasons import Reason
from site_client.ingest.rules import Rules
from site_client.ingest.series.content import Content
from site_client.ingest.series.stacks import Image, Stack

# Codes that a single header sets, with the limit that all of them share: no image may have one.
_BY_HEADER: Final = (
    Reason.R_LOCALIZER, Reason.R_DERIVED, Reason.R_PERFUSION, Reason.R_LOSSY, Reason.R_CONTRAST, Reason.R_BURNED_IN,
    Reason.R_NOT_HEAD, Reason.Q_NO_DECODER, Reason.Q_MISSING_TAG, Reason.Q_NO_POSITION, Reason.Q_GEOMETRY,
    Reason.Q_NO_PIXELS, Reason.Q_TRUNCATED, Reason.Q_DUP_CONFLICT,
)  # fmt: skip


@dataclass(frozen=True)
class HardFilter:
    """One filter. `passed` is False where it holds the stack back with `reason`."""

    reason: Reason
    criterion: str
    measured: str
    limit: str
    passed: bool


def header_filters(images: Sequence[Image]) -> list[HardFilter]:
    """Lists the filters that a header decides: how many images have the code, of how many."""
    return [
        HardFilter(reason, reason.value, f"{count} of {len(images)} images", "none", count == 0)
        for reason in _BY_HEADER
        for count in (sum(reason in image.header.reasons for image in images),)
    ]


def geometry_filters(stack: Stack, rules: Rules) -> list[HardFilter]:
    """Lists the filters of tilt, number, extent, thickness and field of view; none where the stack has no order."""
    if not stack.positions_mm:
        return []
    head = stack.images[0].header
    normal = np.cross(head.orientation[:3], head.orientation[3:])
    tilt = float(np.degrees(np.arccos(min(1.0, abs(normal[2])))))
    extent = stack.positions_mm[-1] - stack.positions_mm[0]
    slab = next((float(line.value) for line in stack.sheet if line.criterion == "thickness_mm"), 0.0)
    fields = [size * mm for size, mm in zip((head.rows, head.columns), head.spacing_mm, strict=False)]
    steps = np.diff(stack.positions_mm)
    longest = float(steps.max()) if steps.size else 0.0
    usual = float(np.median(steps)) if steps.size else 0.0
    missing = Reason.Q_GAP not in stack.reasons
    complete = Reason.Q_INCOMPLETE not in stack.reasons
    whole = Reason.Q_SPLIT not in stack.reasons
    filters = [
        HardFilter(
            Reason.Q_SPLIT, "goes on in another stack of the series", "no" if whole else "yes", "no", whole
        ),
        HardFilter(
            Reason.R_NOT_AXIAL, "tilt", f"{tilt:.1f} degrees", f"at most {rules.tilt_max_degrees:g}",
            Reason.R_NOT_AXIAL not in stack.reasons,
        ),
        HardFilter(Reason.Q_GAP, "longest step", f"{longest:.2f} mm", f"no hole; usual {usual:.2f} mm", missing),
        HardFilter(
            Reason.Q_INCOMPLETE, "images", f"{len(stack.images)}",
            f"{head.expected} by (0020,1209) or a DICOMDIR" if head.expected else "none stated", complete,
        ),
    ]  # fmt: skip
    if not rules.check_coverage:
        return filters
    few = len(stack.images) >= rules.slices_min
    filters.append(HardFilter(Reason.R_TOO_FEW, "slices", f"{len(stack.images)}", f"at least {rules.slices_min}", few))
    bounds = (
        ("extent", extent, rules.coverage_min_mm, rules.coverage_max_mm),
        ("thickness", slab, rules.thickness_min_mm, rules.thickness_max_mm),
        *(("field of view", field, rules.field_min_mm, rules.field_max_mm) for field in fields),
    )
    filters += [
        HardFilter(Reason.R_EXTENT, name, f"{value:.1f} mm", f"{low:g} to {high:g} mm", low <= value <= high)
        for name, value, low, high in bounds
    ]
    return filters


def content_filters(slices: Sequence[Content]) -> list[HardFilter]:
    """Lists the filters of the content, by the medians of a sample of slices."""
    brain = float(np.median([content.brain for content in slices]))
    bounds = (
        (Reason.R_NOT_HEAD, "bone around, share of directions", [content.ring for content in slices], 0.7, 1.0),
        (Reason.R_NOT_HEAD, "width, mm", [content.width_mm for content in slices], 90.0, 280.0),
        (Reason.R_NOT_HEAD, "air at the border, share", [content.border_air for content in slices], 0.3, 1.0),
        (Reason.R_NO_BRAIN, "brain inside, share", [content.brain for content in slices], 0.3, 1.0),
    )
    filters = [_within(reason, name, values, low, high) for reason, name, values, low, high in bounds]
    # The HU are those of air and brain only in a head with a brain.
    if all(line.passed for line in filters) and brain >= 0.3:
        modes = [content.brain_mode_hu for content in slices if content.brain >= 0.3]
        filters.append(_within(Reason.Q_HU_RANGE, "brain, HU", modes, 15.0, 50.0))
        airs = [content.air_hu for content in slices if np.isfinite(content.air_hu)]
        if airs:
            filters.append(_within(Reason.Q_HU_RANGE, "air, HU", airs, -1024.0, -850.0))
    return filters


def _within(reason: Reason, name: str, values: Sequence[float], low: float, high: float) -> HardFilter:
    median = float(np.median(values))
    return HardFilter(reason, name, f"{median:.2f}", f"{low:g} to {high:g}", bool(low <= median <= high))
