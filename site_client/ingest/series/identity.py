"""Identity: an image belongs to one series, a series to one study, and a study to one patient. Pure functions.

UIDs are unique by the standard (PS3.5 section 9) and are not in archives: anonymizers and gateways give one UID to two
patients. Their images would become one volume, with the labels of one of them; and a label by the UID of an image would
count for both of two images.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from site_client.ingest.files.header import DicomHeader
from site_client.ingest.reasons import Reason, Warn
from site_client.ingest.records import PatientKey, StudyKey
from site_client.ingest.series.stacks import Image


def stated_patient(header: DicomHeader) -> PatientKey | None:
    """Gives the patient that the file names; None if it names none and counts as a patient of its own."""
    return None if Warn.W_NO_PATIENT in header.warnings else header.patient_key


def with_one_parent(
    images: Sequence[Image], patients: Mapping[str, Set[str]], claimed: Set[str] = frozenset()
) -> list[Image]:
    """Gives the images of a series with the patient of their study, or with Q_UID_CLASH if that is in doubt.

    Args:
        images: All images with one series UID.
        patients: For each study, all patients that its files name, in whatever series.
        claimed: The images whose UID another series has, too, for another image.
    """
    studies = {image.header.study_key for image in images}
    clash = (
        len(studies) > 1
        or any(len(patients.get(study, ())) > 1 for study in studies)
        or any(image.header.slice_key in claimed for image in images)
    )
    return [replace(image, header=_settled(image.header, patients, clash)) for image in images]


def _settled(header: DicomHeader, patients: Mapping[str, Set[str]], clash: bool) -> DicomHeader:
    if clash:
        return replace(header, reasons=(*header.reasons, Reason.Q_UID_CLASH))
    # A file without a patient ID, in a study whose other files have one.
    named = patients.get(StudyKey(header.study_key), ())
    return replace(header, patient_key=PatientKey(next(iter(named)))) if named else header
