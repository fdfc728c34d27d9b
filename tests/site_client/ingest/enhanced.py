"""Enhanced CT made of single images: frames of one file, with their attributes in functional groups (PS3.3 A.38)."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian

ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"
CONVERTED = "1.2.840.10008.5.1.4.1.1.2.2"
Edit = Callable[[Dataset], None]
_OF_FRAMES = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "ConvolutionKernel", "InstanceNumber", "AcquisitionNumber", "PixelData",
)  # fmt: skip


def item(**values: object) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def group(single: Dataset, names: Sequence[str]) -> Dataset:
    """The macros of one image, as far as their attributes are among `names`."""
    macros = {
        "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
        "PlanePositionSequence": ("ImagePositionPatient",),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
        "CTReconstructionSequence": ("ConvolutionKernel",),
    }
    dataset = Dataset()
    for macro, attributes in macros.items():
        values = {name: single[name].value for name in attributes if name in names and name in single}
        if values:
            setattr(dataset, macro, Items([item(**values)]))
    if "RescaleSlope" in names:
        dataset.PixelValueTransformationSequence[0].RescaleType = "HU"
    return dataset


def enhanced(
    paths: Sequence[Path],
    target: Path,
    *,
    sop_class: str = ENHANCED,
    syntax: UID = ExplicitVRLittleEndian,
    offsets: str = "none",
    fragments: int = 1,
    defined_lengths: bool = False,
    edit: Edit = lambda dataset: None,
) -> Path:
    """Writes one file of the images in the given order.

    Args:
        paths: single images of one series.
        target: the file.
        sop_class: of the file.
        syntax: compressed ones are compressed by pydicom, frame by frame.
        offsets: "none", "basic" or "extended" offset table of a compressed file.
        fragments: a frame of a compressed file.
        defined_lengths: of sequences and items.
        edit: changes the data set before it is written.
    """
    singles = [dcmread(path) for path in paths]
    dataset = dcmread(paths[0])
    for name in _OF_FRAMES:
        del dataset[name]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SeriesInstanceUID}.9999"
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.NumberOfFrames = len(singles)
    shared = ("PixelSpacing", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "ConvolutionKernel")
    dataset.SharedFunctionalGroupsSequence = Items([group(singles[0], shared)])
    per_frame = []
    for number, single in enumerate(singles, 1):
        own = group(single, ("ImagePositionPatient",))
        own.PixelMeasuresSequence = group(single, ("SliceThickness", "PixelSpacing")).PixelMeasuresSequence
        own.FrameContentSequence = Items([item(StackID="1", InStackPositionNumber=number, FrameAcquisitionNumber=1)])
        own.CTImageFrameTypeSequence = Items([item(FrameType=list(single.ImageType))])
        if sop_class == CONVERTED:
            source = item(ReferencedSOPClassUID=single.SOPClassUID, ReferencedSOPInstanceUID=single.SOPInstanceUID)
            own.ConversionSourceAttributesSequence = Items([source])
        per_frame.append(own)
    dataset.PerFrameFunctionalGroupsSequence = Items(per_frame)
    if syntax.is_compressed and syntax.is_encapsulated:
        streams = []
        for single in singles:
            single.compress(syntax, generate_instance_uid=False)
            streams.append(_stream(single.PixelData))
        if offsets == "extended":
            dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
                streams
            )
        else:
            dataset.PixelData = encapsulate(streams, fragments, has_bot=offsets == "basic")
        dataset["PixelData"].VR = "OB"
    else:
        dataset.PixelData = b"".join(single.PixelData for single in singles)
        dataset["PixelData"].VR = "OW"
    for sequence in (dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence):
        _undefine(dataset, sequence, not defined_lengths)
    edit(dataset)
    dataset.save_as(target, enforce_file_format=True)
    return target


def _stream(encapsulated: bytes) -> bytes:
    """The only fragment of encapsulated pixel data with an offset table."""
    table = struct.unpack("<I", encapsulated[4:8])[0]
    length = struct.unpack("<I", encapsulated[12 + table : 16 + table])[0]
    return encapsulated[16 + table : 16 + table + length]


def _undefine(dataset: Dataset, sequence: Items, undefined: bool) -> None:
    for inner in sequence:
        inner.is_undefined_length_sequence_item = undefined
        for element in inner:
            if element.VR == "SQ":
                element.is_undefined_length = undefined
                _undefine(inner, element.value, undefined)
    for element in dataset:
        if element.VR == "SQ" and element.value is sequence:
            element.is_undefined_length = undefined
