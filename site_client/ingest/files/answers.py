"""The answers of a reader process, turned into records. The process may be in the hands of the file that it reads."""

import msgspec
import numpy as np

from site_client.ingest.files.addresses import ListedMember, name_inside
from site_client.ingest.files.header import DicomHeader, Header, MultiframeHeader
from site_client.ingest.files.hounsfield import Scale
from site_client.ingest.files.slices import Slice
from site_client.ingest.reasons import Reason


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of a frame. A reader process may be in the hands of the file it reads: its words are checked."""

    id: int = 0
    code: str = ""
    header: str = ""
    uid: str = ""
    frames: bool = False
    died: int = 0
    decoders: tuple[str, ...] = ()
    sha256: str = ""
    stored: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)
    scale: Scale | None = None
    spacing_mm: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    thickness_mm: float = 0.0


def header_of(answer: Answer, data: bytearray) -> Header | Reason:
    """Gives the header of an image, or those of all frames of a file."""
    if answer.frames:
        return MultiframeHeader(tuple(DicomHeader.from_json(frame) for frame in data.decode("ascii").split("\n")))
    return Reason[answer.code] if answer.code else DicomHeader.from_json(answer.header)


def uid_of(answer: Answer, _: bytearray) -> str | Reason:
    """Gives a SOP instance UID."""
    return Reason[answer.code] if answer.code else answer.uid


def listed_of(answer: Answer, data: bytearray) -> dict[str, list[str]] | Reason:
    """Gives how many images a DICOMDIR lists, by series."""
    return Reason[answer.code] if answer.code else msgspec.json.decode(data, type=dict[str, list[str]])


def members_of(answer: Answer, data: bytearray) -> list[ListedMember] | Reason:
    """Gives the members of an archive."""
    if answer.code:
        return Reason[answer.code]
    members = msgspec.json.decode(data, type=list[ListedMember])
    for member in members:
        # A code is one of the list; a member without one may be read, so its name has to stay inside.
        sound = member.code in Reason.__members__ if member.code else name_inside(member.name) == member.name
        if not sound:
            raise ValueError("a member outside its archive")
    return members


def slice_of(step: int, answer: Answer, data: bytearray) -> Slice | Reason:
    """Gives a decoded image."""
    if answer.code:
        return Reason[answer.code]
    if answer.scale is None:
        raise ValueError("a slice without a scale")
    return Slice(
        sha256=bytes.fromhex(answer.sha256),
        stored=np.frombuffer(data, dtype="<i4").reshape(answer.stored).astype(np.int32, copy=False),
        shape=answer.shape,
        step=step,
        scale=answer.scale,
        spacing_mm=answer.spacing_mm,
        position=answer.position,
        orientation=answer.orientation,
        thickness_mm=answer.thickness_mm,
    )
