"""A synthetic export in which every value that could name a person is a canary.

python -m site_client.prove.canaries FOLDER writes it, and prints the canaries, one on each line. Canaries are every
element of VR LO LT PN SH ST UC UN UT, the date of birth, the UIDs, two private elements, folder and file names, and the
cells of the label table. Some files are broken, so that a reader fails while it holds canaries.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from site_client.logging_setup import log_to_stderr
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes

STUDIES: Final = 8
_TEXT: Final = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UN", "UT"))
_KEPT: Final = frozenset(  # elements that decide whether a series is used; a canary there would change the round
    ("ConvolutionKernel", "BodyPartExamined", "Modality", "SpecificCharacterSet", "PatientPosition", "RescaleType")
)
_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_ADDED: Final = (  # elements that hospitals write and the phantom does not
    *("OtherPatientNames", "PatientAddress", "PatientTelephoneNumbers", "PatientComments", "ReferringPhysicianName"),
    *("PerformingPhysicianName", "OperatorsName", "InstitutionName", "InstitutionAddress", "StationName"),
    *(
        "AccessionNumber",
        "RequestingService",
        "ProtocolName",
        "DeviceSerialNumber",
        "AdditionalPatientHistory",
        "ImageComments",
    ),
)
_BREAKS: Final = (
    ("Kanari_Datum", "StudyDate", b"KANARIDATUM"),
    ("Kanari_Zahl", "SliceThickness", b"KANARIZAHL"),
    ("Kanari_Ort", "ImagePositionPatient", b"KANARIORT\\1\\2"),
    ("Kanari_Uid", "StudyInstanceUID", b"KANARIUID"),
)


def main() -> None:
    """Write FOLDER/export, FOLDER/labels and a list of patients who opted out."""
    log_to_stderr(tracebacks=False)
    folder = Path(sys.argv[1])
    plain = folder / "plain"
    make_set(Order("S", STUDIES, 7, Wishes(64, 10.0, "balanced", 0.5), None, False), plain, 1)
    for canary in sorted(set(_plant(plain, folder))):
        print(canary)


def _plant(plain: Path, folder: Path) -> Iterator[str]:
    paths = sorted(path for path in (plain / "dicom").rglob("*") if path.is_file())
    for number, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        yield from _plant_texts(ds, number)
        yield from (str(ds[name].value) for name in _UIDS if name in ds)
        target = folder / "export" / f"KANARI^ORDNER{number // 20:03d}" / f"Kanari_Datei{number:05d}"
        yield from (target.name, target.parent.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(target)
    yield from _break_some(folder / "export")
    yield from _labels(plain / "labels_slices.csv", folder / "labels" / "KANARI-TABELLE.csv")
    (folder / "labels" / "slice_map.csv").write_bytes((plain / "slice_map.csv").read_bytes())
    # A table that is refused: its quote is never closed.
    refused = folder / "labels" / "KANARI^ZITAT.csv"
    refused.write_text('AccessionNumber,any,remark\nKANARINUMMER,1,"KANARIREDE\nKANARIOFFEN,0,x\n')
    yield from (refused.stem, "KANARINUMMER", "KANARIREDE", "KANARIOFFEN")
    (folder / "KANARI-ABLEHNUNG.txt").write_text("PatientID\nKANARIABGELEHNT\n")
    yield from ("KANARI-ABLEHNUNG", "KANARIABGELEHNT")


def _plant_texts(ds: Dataset, number: int) -> Iterator[str]:
    for name in _ADDED:
        setattr(ds, name, "x")
    block = ds.private_block(0x0011, "KANARI PRIVAT", create=True)
    block.add_new(0x01, "LO", "x")
    block.add_new(0x02, "UN", b"x")
    patient = f"{_patient(ds)}"
    for element in ds.iterall():
        if element.VR in _TEXT and element.keyword not in _KEPT and not element.tag.is_private_creator:
            canary = f"KANARI{element.tag:08X}Z{patient}"[: 16 if element.VR == "SH" else 64]
            element.value = canary.encode() if element.VR == "UN" else canary
            yield canary
    ds.PatientID = f"KANARIPID{patient}"
    ds.PatientName = f"KANARIÄÖÜ{patient}^ANNA"
    ds.PatientBirthDate = f"18{int(patient, 16) % 90 + 10:02d}0{int(patient, 16) % 9 + 1}1{int(patient, 16) % 10}"
    yield from (ds.PatientID, str(ds.PatientName), ds.PatientBirthDate)


def _patient(ds: Dataset) -> str:
    """Return eight hex digits, the same for all images of a patient."""
    return hashlib.sha256(str(ds.PatientID).encode()).hexdigest()[:8].upper()


def _break_some(export: Path) -> Iterator[str]:
    """Add files that make readers fail: cut short, with a malformed date or number, without pixels."""
    paths = sorted(path for path in export.rglob("*") if path.is_file())
    folder = export / "KANARI^KAPUTT"
    folder.mkdir()
    for number, (name, attribute, value) in enumerate(_BREAKS):
        ds = pydicom.dcmread(paths[number])
        ds.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{9_041_317 + number}"  # a copy would be skipped
        raw = ds.get_item(attribute)
        if isinstance(raw, RawDataElement):
            value += b" " * (len(value) % 2)
            # pydicom would refuse to set such a value; a broken file on disk holds it all the same.
            ds._dict[raw.tag] = raw._replace(value=value, length=len(value))
        ds.save_as(folder / name)
        yield from (name, value.decode().strip().split("\\")[0])
    (folder / "Kanari_Halb").write_bytes((folder / "Kanari_Datum").read_bytes()[:3000])
    yield from ("Kanari_Halb", "KANARI^KAPUTT")


def _labels(plain: Path, target: Path) -> Iterator[str]:
    """Write the slice labels with a column of remarks, and rows that cannot be understood."""
    lines = plain.read_text().splitlines()
    target.parent.mkdir()
    planted = [f"{lines[0]},Remark", *(f"{line},KANARIBEFUND{n:06d}" for n, line in enumerate(lines[1:]))]
    planted += ["ID_KANARIZEILE_any,KANARIZELLE,KANARIREST"]
    target.write_text("\n".join(planted) + "\n")
    yield from ("KANARI-TABELLE", "KANARIZEILE", "KANARIZELLE", "KANARIREST", "KANARIBEFUND000000")
    yield from (line.split(",")[0] for line in lines[1:4])


if __name__ == "__main__":
    main()
