"""Predictions as the table that RSNA's challenge of 2019 takes: `ID_<image>_<label>,<probability>`."""

from collections.abc import Sequence

import pydicom
from federation.labels import LABELS

from site_client.inference.predict import Prediction


def submission(predictions: Sequence[Prediction]) -> str:
    """Write the CSV text: a header, then six rows an image in the order of LABELS.

    The image's ID is its (0008,0018) *SOP Instance UID*, which is `ID_` and nine digits in RSNA's files. Where thin
    slices were averaged, each of their images has the row of the averaged slice.
    """
    lines = ["ID,Label"]
    for prediction in predictions:
        for files, probabilities in zip(prediction.files, prediction.slices, strict=True):
            for file in files:
                uid = str(
                    pydicom.dcmread(
                        file, stop_before_pixels=True, specific_tags=["SOPInstanceUID"], force=True
                    ).SOPInstanceUID
                )
                image = uid if uid.startswith("ID_") else f"ID_{uid}"
                lines += [f"{image}_{label},{value:.6f}" for label, value in zip(LABELS, probabilities, strict=True)]
    return "\n".join(lines) + "\n"
