"""One series, judged: copies dropped, stacks split, pixels looked at where the headers leave a chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from site_client.errors import SeriesUnreadable
from site_client.ingest.files.hounsfield import may_have_wrapped, to_hu
from site_client.ingest.files.pixels import Slice, digest, read_slice
from site_client.ingest.reasons import Reason, SeriesState, Warn, state_of
from site_client.ingest.rules import Rules
from site_client.ingest.series import content
from site_client.ingest.series.stacks import Image, Stack, split
from site_client.ingest.series.volume import content_hash, have_wrapped

SAMPLED = (0.35, 0.5, 0.6, 0.7, 0.8)  # of the stack from its caudal end: above the face, below the vertex

# Series that are never decoded: what is wrong with them needs no pixel, and burned-in text must not be looked at.
_UNSEEN = frozenset((Reason.R_LOCALIZER, Reason.R_DERIVED, Reason.R_BURNED_IN, Reason.R_NOT_AXIAL, Reason.R_PERFUSION))
PathOf = Callable[[int], Path]


@dataclass(frozen=True)
class AssessedSeries:
    """A stack with all that is to be said about it. `content_hash` is "" unless `state` is READY."""

    stack: Stack
    reasons: tuple[Reason, ...]
    warnings: tuple[Warn, ...]
    state: SeriesState
    content_hash: str


@dataclass(frozen=True)
class Assessment:
    """A series' stacks, and the files that are copies of others."""

    stacks: tuple[AssessedSeries, ...]
    copies: tuple[int, ...]


def judge_series(images: Sequence[Image], path_of: PathOf, rules: Rules) -> Assessment:
    """Decides about every image of one series. The verdict does not depend on the order or names of the files."""
    kept, copies = _without_copies(images, path_of)
    judged = [_judge(stack, path_of, rules) for stack in split(kept, rules)]
    repeats = [file for one in judged for file in one.stack.repeats]
    return Assessment(tuple(judged), (*copies, *repeats))


def _without_copies(images: Sequence[Image], path_of: PathOf) -> tuple[list[Image], list[int]]:
    by_uid: dict[str, list[Image]] = {}
    for image in images:
        by_uid.setdefault(image.header.slice_key, []).append(image)
    kept: list[Image] = []
    copies: list[int] = []
    for same in by_uid.values():
        best, *others = sorted(same, key=_damage)
        rivals = [one for one in others if _damage(one) == _damage(best) and not _same_image(best, one, path_of)]
        if rivals:
            best = replace(best, header=replace(best.header, reasons=(*best.header.reasons, Reason.Q_DUP_CONFLICT)))
        kept.append(best)
        copies.extend(one.file for one in others)
    return kept, copies


def _damage(image: Image) -> int:
    return sum(reason.name.startswith("Q_") for reason in image.header.reasons)


def _same_image(one: Image, other: Image, path_of: PathOf) -> bool:
    here, there = one.header, other.header
    if (here.position, here.orientation, here.spacing_mm) != (there.position, there.orientation, there.spacing_mm):
        return False
    try:
        if digest(path_of(one.file)) == digest(path_of(other.file)):
            return True
        # A gateway may have rewritten header or compression: what counts is the image.
        return bool(np.array_equal(read_slice(path_of(one.file)).stored, read_slice(path_of(other.file)).stored))
    except SeriesUnreadable:
        return False


def _judge(stack: Stack, path_of: PathOf, rules: Rules) -> AssessedSeries:
    reasons, warnings, hashed = stack.reasons, stack.warnings, ""
    if state_of(reasons) is not SeriesState.QUARANTINED and not _UNSEEN & set(reasons):
        try:
            seen, wrapped = _look(stack, path_of, rules)
            reasons = tuple(dict.fromkeys((*reasons, *seen)))
            warnings = (*warnings, Warn.W_WRAPPED) if wrapped else warnings
            if not reasons:
                hashed = content_hash([digest(path_of(image.file)) for image in stack.images])
        except SeriesUnreadable as error:
            reasons = (*reasons, Reason[error.code])
    return AssessedSeries(stack, reasons, warnings, state_of(reasons), hashed)


def _look(stack: Stack, path_of: PathOf, rules: Rules) -> tuple[tuple[Reason, ...], bool]:
    """Decodes the ends (a broken codec shows there as anywhere) and a sample, and asks whether this is a head."""
    last = len(stack.images) - 1
    middle = {round(fraction * last) for fraction in SAMPLED}
    slices = {index: read_slice(path_of(stack.images[index].file)) for index in sorted(middle | {0, last})}
    wrapped = have_wrapped(list(slices.values()))
    if not rules.check_content:
        return (), wrapped
    return content.judge([_measure(slices[index], wrapped) for index in sorted(middle)]), wrapped


def _measure(one: Slice, wrapped: bool) -> content.Content:
    hu = to_hu(one.stored, one.scale, wrapped and may_have_wrapped(one.scale))
    return content.measure(hu, (one.spacing_mm[0], one.spacing_mm[1]))
