"""Studies without DICOM: int16 HU and geometry in one compressed file each, for training sets that are made often."""

from pathlib import Path

import numpy as np

from site_client.errors import PhantomRefused
from site_client.ingest.files.hounsfield import AIR_HU, TOP_HU
from site_client.ingest.series.volume import Volume
from site_client.phantom.dicom import StudyIdentity, WrittenSeries, digest_of
from site_client.phantom.streams import PhantomStreams
from site_client.phantom.study import Study


def volume_of(study: Study) -> Volume:
    """Makes the volume that reading the study's files would give.

    It differs outside the reconstruction circle only, where the files hold padding and this volume holds air.
    """
    return Volume(
        hu=np.clip(np.rint(study.image), AIR_HU, TOP_HU).astype(np.int16),
        spacing_mm=(study.scan.pixel_mm, study.scan.pixel_mm),
        positions_mm=study.scan.along_mm.astype(np.float64),
        thickness_mm=study.scan.thickness_mm.astype(np.float64),
    )


def write_arrays(streams: PhantomStreams, identity: StudyIdentity, study: Study, out: Path) -> WrittenSeries:
    """Writes `out`/<PatientID>/<StudyUID>.npz, under the UIDs that the DICOM files of the study would have."""
    part, volume = identity.part, volume_of(study)
    study_uid, series_uid = streams.uid("study", part), streams.uid("series", part)
    path = out / identity.patient_id / f"{study_uid}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        hu=volume.hu,
        spacing_mm=np.array(volume.spacing_mm),
        positions_mm=volume.positions_mm,
        thickness_mm=volume.thickness_mm,
    )
    sop_uids = tuple(streams.uid("image", part, str(k)) for k in range(study.scan.slices))
    return WrittenSeries(study_uid, series_uid, sop_uids, (path,), digest_of([path]))


def read_arrays(path: Path) -> Volume:
    """Reads a file that `write_arrays` wrote.

    Raises:
        PhantomRefused: Another file.
    """
    try:
        # Without pickle: loading a file must not run its code.
        with np.load(path, allow_pickle=False) as file:
            rows, columns = file["spacing_mm"].tolist()
            return Volume(file["hu"], (rows, columns), file["positions_mm"], file["thickness_mm"])
    except (KeyError, ValueError, OSError) as error:
        raise PhantomRefused("expected a study of `phantom --format npz`, got another file") from error
