"""The assessment of one series: copies dropped, stacks split, pixels decoded where the headers allow hope."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from site_client.errors import IngestError, SeriesUnreadable
from site_client.ingest.files.addresses import parse_address
from site_client.ingest.files.hounsfield import may_have_wrapped, to_hu
from site_client.ingest.files.readers import SliceSource, shared_readers, whole
from site_client.ingest.files.slices import COARSE_STEP, Slice, digest
from site_client.ingest.reasons import Reason, SeriesState, Warn, state_of
from site_client.ingest.rules import Rules
from site_client.ingest.series import content
from site_client.ingest.series.stacks import Image, Stack, split
from site_client.ingest.series.volume import content_hash, have_wrapped, joint_reason

SAMPLED = (0.35, 0.5, 0.6, 0.7, 0.8)  # of the stack from its caudal end: above the face, below the vertex

# Series that are never decoded: their fault needs no pixel, and burned-in text must not be looked at.
NEVER_DECODED = frozenset(
    (Reason.R_LOCALIZER, Reason.R_DERIVED, Reason.R_BURNED_IN, Reason.R_NOT_AXIAL, Reason.R_PERFUSION)
)
LACKING_SLICES = frozenset((Reason.Q_GAP, Reason.Q_INCOMPLETE))
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

    @property
    def lacks_slices(self) -> bool:
        """Whether a stack has a hole that more files may fill."""
        return any(LACKING_SLICES & set(assessed.reasons) for assessed in self.stacks)


def assess_series(
    images: Sequence[Image], path_of: PathOf, rules: Rules, source: SliceSource | None = None
) -> Assessment:
    """Assesses every image of one series.

    Args:
        images: All images with this series key.
        path_of: The path of a file by its number.
        rules: The thresholds.
        source: Decodes the files; None: the readers of this process.

    Returns:
        The assessment. It depends neither on the order of the images nor on the names of their files.

    Raises:
        IngestError: No reader process can be started. Whatever else goes wrong is a reason code of this series.
    """
    source = source or shared_readers()

    def assess() -> Assessment:
        unique, copies = _without_copies(images, path_of, source)
        stacks = tuple(_assess_stack(stack, path_of, rules, source) for stack in split(unique, rules))
        repeats = [file for assessed in stacks for file in assessed.stack.repeats]
        return Assessment(stacks, (*copies, *repeats))

    return _guarded(images, assess)


def await_series(images: Sequence[Image], rules: Rules) -> Assessment:
    """Gives the stacks of a series that is still arriving, as WAITING. It opens no file.

    Args:
        images: All images with this series key that have come so far.
        rules: The thresholds.
    """

    def assess() -> Assessment:
        first = {image.header.slice_key: image for image in reversed(images)}
        stacks = split(list(first.values()), rules)
        return Assessment(
            tuple(AssessedSeries(stack, stack.reasons, stack.warnings, SeriesState.WAITING, "") for stack in stacks), ()
        )

    return _guarded(images, assess)


def _guarded(images: Sequence[Image], assess: Callable[[], Assessment]) -> Assessment:
    try:
        return assess()
    except IngestError:  # no fault of the series: nothing can be read
        raise
    except Exception:  # headers that no rule foresees end the assessment of their own series only
        reasons = (Reason.Q_GEOMETRY,)
        stack = Stack(tuple(images), (), (), reasons, (), ())
        return Assessment((AssessedSeries(stack, reasons, (), state_of(reasons), ""),), ())


def _without_copies(images: Sequence[Image], path_of: PathOf, source: SliceSource) -> tuple[list[Image], list[int]]:
    by_uid: dict[str, list[Image]] = {}
    for image in images:
        by_uid.setdefault(image.header.slice_key, []).append(image)
    unique: list[Image] = []
    copies: list[int] = []
    for same_uid in by_uid.values():
        best, *others = sorted(same_uid, key=_faults)
        # A damaged copy is no rival: a transfer that broke off and was repeated leaves one.
        rivals = [
            image
            for image in others
            if _faults(image) == _faults(best) and not _same_image(best, image, path_of, source)
        ]
        if rivals:
            best = replace(best, header=replace(best.header, reasons=(*best.header.reasons, Reason.Q_DUP_CONFLICT)))
        unique.append(best)
        copies.extend(image.file for image in others)
    return unique, copies


def _faults(image: Image) -> int:
    return sum(reason.name.startswith("Q_") for reason in image.header.reasons)


def _same_image(image: Image, other: Image, path_of: PathOf, source: SliceSource) -> bool:
    head, rival = image.header, other.header
    if (head.position, head.orientation, head.spacing_mm) != (rival.position, rival.orientation, rival.spacing_mm):
        return False
    paths = [path_of(image.file), path_of(other.file)]
    try:
        # Digests first: most copies are copies byte for byte, and need no decoding.
        if all(parse_address(path).is_file for path in paths) and digest(paths[0]) == digest(paths[1]):
            return True
        # A gateway may have rewritten header or compression: the pixels decide.
        first, second = whole(source.slices(paths))
    except SeriesUnreadable:
        return False
    # In HU and not as stored: a copy with another intercept is another image.
    return bool(np.array_equal(to_hu(first.stored, first.scale), to_hu(second.stored, second.scale)))


def _assess_stack(stack: Stack, path_of: PathOf, rules: Rules, source: SliceSource) -> AssessedSeries:
    reasons, warnings, hashed = stack.reasons, stack.warnings, ""
    # Of a series that lacks slices the others still show what it is: a series that is no head need not be sent again.
    whole_files = state_of(tuple(set(reasons) - LACKING_SLICES)) is not SeriesState.QUARANTINED
    if whole_files and not NEVER_DECODED & set(reasons):
        try:
            content_reasons, wrapped, hashed = _assess_content(stack, path_of, rules, source)
            # Pictures that differ and state one position: one of them lies elsewhere.
            if not reasons and not all(_same_image(*tie, path_of, source) for tie in stack.ties):
                content_reasons, hashed = (*content_reasons, Reason.Q_SAME_POSITION), ""
            reasons = tuple(dict.fromkeys((*reasons, *content_reasons)))
            warnings = (*warnings, Warn.W_WRAPPED) if wrapped else warnings
        except SeriesUnreadable as error:
            reasons = (*reasons, Reason[error.code])
        except IngestError:
            raise
        except Exception:  # values that no rule foresees; the other stacks of the series go on
            reasons = (*reasons, Reason.Q_DECODE)
    return AssessedSeries(stack, reasons, warnings, state_of(reasons), hashed)


def _assess_content(
    stack: Stack, path_of: PathOf, rules: Rules, source: SliceSource
) -> tuple[tuple[Reason, ...], bool, str]:
    """Decodes a sample, which is measured; then, if nothing speaks against the stack, all its other slices.

    Returns:
        The reasons against the content, whether 12-bit values wrapped, and the content hash if there is no reason.

    Raises:
        SeriesUnreadable: A slice cannot be decoded.
    """
    paths = [path_of(image.file) for image in stack.images]
    last = len(paths) - 1
    middle = sorted({round(fraction * last) for fraction in SAMPLED})
    # Both ends belong to the sample: a broken codec shows there as anywhere.
    sampled = sorted({0, *middle, last})
    slices = dict(zip(sampled, whole(source.slices([paths[index] for index in sampled])), strict=True))
    measured = [slices[index] for index in middle]
    wrapped = have_wrapped(list(slices.values()))
    reasons = _content_reasons(measured, wrapped, rules)
    if stack.reasons or reasons:
        return reasons, wrapped, ""
    # READY is a promise about every slice.
    others = [index for index in range(len(paths)) if index not in slices]
    decoded = whole(source.slices([paths[index] for index in others], COARSE_STEP))
    slices.update(zip(others, decoded, strict=True))
    ordered = [slices[index] for index in range(len(paths))]
    joint = joint_reason(ordered)
    if joint is not None:
        return (joint,), wrapped, ""
    # The sample may have shown too little air; `read_volume` decides by all slices, too.
    if have_wrapped(ordered) != wrapped:
        wrapped = not wrapped
        reasons = _content_reasons(measured, wrapped, rules)
    return reasons, wrapped, "" if reasons else content_hash([image.sha256 for image in ordered])


def _content_reasons(slices: Sequence[Slice], wrapped: bool, rules: Rules) -> tuple[Reason, ...]:
    if not rules.check_content:
        return ()
    measured = []
    for image in slices:
        hu = to_hu(image.stored, image.scale, wrapped and may_have_wrapped(image.scale))
        measured.append(content.measure(hu, (image.spacing_mm[0], image.spacing_mm[1])))
    return content.assess(measured)
