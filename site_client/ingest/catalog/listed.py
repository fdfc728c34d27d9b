"""The images that DICOMDIRs list, held against those that are here."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from site_client.ingest.catalog.tables import ListedRow
from site_client.ingest.series.stacks import Image


def expecting_listed(session: Session, series_key: str, images: Sequence[Image]) -> list[Image]:
    """Gives the images as if each said how many there are together with those that DICOMDIRs list.

    That is (0020,1209) *Number of Series Related Instances*. A list of as many other images does not say that all are
    here.

    Args:
        session: Of the catalog.
        series_key: Of the images.
        images: All images of the series.
    """
    listed = set(session.scalars(select(ListedRow.slice_key).where(ListedRow.series_key == series_key)))
    if not listed:
        return list(images)
    present = {image.header.slice_key for image in images}
    # A list names multi-frame files, whose frames have UIDs of their own: there its length has to do.
    is_single = all(image.header.frames == 1 for image in images)
    number = len(listed | present) if is_single else len(listed)
    return [
        replace(image, header=replace(image.header, expected=max(image.header.expected, number))) for image in images
    ]
