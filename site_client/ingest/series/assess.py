"""The assessment of one series: copies dropped, stacks split, pixels decoded where the headers allow hope."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from site_client.errors import SeriesUnreadable
from site_client.ingest.files.hounsfield import may_have_wrapped, to_hu
from site_client.ingest.files.pixels import digest, read_slice
from site_client.ingest.reasons import Reason, SeriesState, Warn, state_of
from site_client.ingest.rules import Rules
from site_client.ingest.series import content
from site_client.ingest.series.stacks import Image, Stack, split
from site_client.ingest.series.volume import content_hash, have_wrapped

SAMPLED = (0.35, 0.5, 0.6, 0.7, 0.8)  # of the stack from its caudal end: above the face, below the vertex

# Series that are never decoded: their fault needs no pixel, and burned-in text must not be looked at.
NEVER_DECODED = frozenset(
    (Reason.R_LOCALIZER, Reason.R_DERIVED, Reason.R_BURNED_IN, Reason.R_NOT_AXIAL, Reason.R_PERFUSION)
)
PathOf = Callable[[int], Path]


@dataclass(frozen=True)
class AssessedSeries:
    """A stack with its final reasons and warnings. `content_hash` is "" unless `state` is READY."""

    stack: Stack
    reasons: tuple[Reason, ...]
    warnings: tuple[Warn, ...]
    state: SeriesState
    content_hash: str


@dataclass(frozen=True)
class Assessment:
    """A series' stacks, and the numbers of the files that are copies of others."""

    stacks: tuple[AssessedSeries, ...]
    copies: tuple[int, ...]


def assess_series(images: Sequence[Image], path_of: PathOf, rules: Rules) -> Assessment:
    """Assesses every image of one series.

    Args:
        images: all images with this series key.
        path_of: the path of a file by its number.
        rules: the thresholds.

    Returns:
        The assessment. It depends neither on the order of the images nor on the names of their files.
    """
    unique, copies = _without_copies(images, path_of)
    stacks = tuple(_assess_stack(stack, path_of, rules) for stack in split(unique, rules))
    repeats = [file for assessed in stacks for file in assessed.stack.repeats]
    return Assessment(stacks, (*copies, *repeats))


def _without_copies(images: Sequence[Image], path_of: PathOf) -> tuple[list[Image], list[int]]:
    by_uid: dict[str, list[Image]] = {}
    for image in images:
        by_uid.setdefault(image.header.slice_key, []).append(image)
    unique: list[Image] = []
    copies: list[int] = []
    for same_uid in by_uid.values():
        best, *others = sorted(same_uid, key=_faults)
        # A damaged copy is no rival: a transfer that broke off and was repeated leaves one.
        rivals = [
            image for image in others if _faults(image) == _faults(best) and not _same_image(best, image, path_of)
        ]
        if rivals:
            best = replace(best, header=replace(best.header, reasons=(*best.header.reasons, Reason.Q_DUP_CONFLICT)))
        unique.append(best)
        copies.extend(image.file for image in others)
    return unique, copies


def _faults(image: Image) -> int:
    return sum(reason.name.startswith("Q_") for reason in image.header.reasons)


def _same_image(image: Image, other: Image, path_of: PathOf) -> bool:
    head, rival = image.header, other.header
    if (head.position, head.orientation, head.spacing_mm) != (rival.position, rival.orientation, rival.spacing_mm):
        return False
    try:
        # Digests first: most copies are copies byte for byte, and need no decoding.
        if digest(path_of(image.file)) == digest(path_of(other.file)):
            return True
        # A gateway may have rewritten header or compression: the pixels decide.
        return bool(np.array_equal(read_slice(path_of(image.file)).stored, read_slice(path_of(other.file)).stored))
    except SeriesUnreadable:
        return False


def _assess_stack(stack: Stack, path_of: PathOf, rules: Rules) -> AssessedSeries:
    reasons, warnings, hashed = stack.reasons, stack.warnings, ""
    if state_of(reasons) is not SeriesState.QUARANTINED and not NEVER_DECODED & set(reasons):
        try:
            content_reasons, wrapped = _assess_content(stack, path_of, rules)
            reasons = tuple(dict.fromkeys((*reasons, *content_reasons)))
            warnings = (*warnings, Warn.W_WRAPPED) if wrapped else warnings
            if not reasons:  # only what will be trained on is read as a whole
                hashed = content_hash([digest(path_of(image.file)) for image in stack.images])
        except SeriesUnreadable as error:
            reasons = (*reasons, Reason[error.code])
    return AssessedSeries(stack, reasons, warnings, state_of(reasons), hashed)


def _assess_content(stack: Stack, path_of: PathOf, rules: Rules) -> tuple[tuple[Reason, ...], bool]:
    """Decodes both ends, where a broken codec shows as anywhere, and a sample, which is measured.

    Returns:
        The reasons against the content, and whether 12-bit values wrapped.
    """
    last = len(stack.images) - 1
    middle = {round(fraction * last) for fraction in SAMPLED}
    slices = {index: read_slice(path_of(stack.images[index].file)) for index in sorted(middle | {0, last})}
    wrapped = have_wrapped(list(slices.values()))
    if not rules.check_content:
        return (), wrapped
    measured = []
    for index in sorted(middle):
        image = slices[index]
        hu = to_hu(image.stored, image.scale, wrapped and may_have_wrapped(image.scale))
        measured.append(content.measure(hu, (image.spacing_mm[0], image.spacing_mm[1])))
    return content.assess(measured), wrapped
