"""Predictions as the table that RSNA's challenge of 2019 takes: `ID_<image>_<label>,<probability>`."""

from collections.abc import Sequence

from federation.labels import LABELS

from site_client.bedside.folder import Prediction
from site_client.ingest.files.readers import shared_readers, whole


def submission(predictions: Sequence[Prediction]) -> str:
    """Write the CSV text: a header, then six rows an image in the order of LABELS.

    The image's ID is its (0008,0018) *SOP Instance UID*, which is `ID_` and nine digits in RSNA's files. Where thin
    slices were averaged, each of their images has the row of the averaged slice.

    Raises:
        SeriesUnreadable: A file is gone since it was predicted.
    """
    lines = ["ID,Label"]
    for prediction in predictions:
        for files, probabilities in zip(prediction.files, prediction.answer.slices, strict=True):
            for uid in whole(shared_readers().sop_uids(files)):
                image = uid if uid.startswith("ID_") else f"ID_{uid}"
                lines += [f"{image}_{label},{value:.6f}" for label, value in zip(LABELS, probabilities, strict=True)]
    return "\n".join(lines) + "\n"
