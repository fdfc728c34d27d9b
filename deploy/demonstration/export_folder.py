"""An export of any kind, dealt to the demo's hospitals: archives, files of many frames, junk and label tables mixed."""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from deploy.demonstration.hospitals import LABELS_FOLDER, SLICES_MIN, BadDataFolder, Hospital, link
from site_client.errors import SiteError
from site_client.ingest.catalog.catalog import Catalog, FileContents
from site_client.ingest.labels.files import label_files
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules


def deal_export(source: Path, sites: Sequence[Hospital], studies_max: int) -> None:
    """Deals a folder to the sites, patient by patient. A file goes to one site with all patients whose images it holds.

    A site gets hard links (copies across file systems) under the same names in DIR/dicom. Files without an image of a
    patient go to every site, and so do the label tables at the folder's top, in DIR/labels.

    Args:
        source: The folder. It is only read.
        sites: The hospitals.
        studies_max: A hospital gets no further patient once it has so many studies with labels.

    Raises:
        BadDataFolder: It has no label table, or too few patients for the hospitals.
    """
    tables = label_files(source, [])
    contents, labelled, counts = _scanned(source)
    owner_of = _dealt(_groups(contents), labelled, sites, studies_max)
    if not tables or set(owner_of.values()) < set(sites):
        raise BadDataFolder(
            f"expected label tables at the top of --data and patients with usable, labelled studies for {len(sites)} "
            f"hospitals, got {len(tables)} tables and {len(labelled)} such studies; patients who share an archive stay "
            f"together. What was found:\n{counts}"
        )
    for content in contents:
        path = source / content.file
        if path.is_symlink() or not path.is_file() or path in tables:
            continue
        shared = not content.patients
        for site in sites if shared else [owner_of[content.file]] if content.file in owner_of else []:
            link(path, site.data / "dicom" / content.file)
    for site in sites:
        for table in tables:
            link(table, site.data / LABELS_FOLDER / table.name)


def _scanned(source: Path) -> tuple[Sequence[FileContents], set[str], str]:
    """Scans the folder as a hospital would.

    Returns:
        The contents of its files, the keys of the studies that a hospital would train on, and the counts in words.
    """
    with tempfile.TemporaryDirectory(prefix="hemofed-demo-") as temporary:
        rules = Rules(settle_s=0, slices_min=SLICES_MIN)
        # For this call only: no pseudonym of the folder's patients outlives it.
        with closing(Catalog.open(Path(temporary) / "catalog.sqlite", SiteSecret(os.urandom(32)), rules)) as catalog:
            try:
                report = catalog.scan(source)
            except SiteError as error:
                raise BadDataFolder(str(error)) from None
            return catalog.contents(), {study.study_key for study in catalog.dataset().studies}, report.as_text()


def _groups(contents: Iterable[FileContents]) -> list[list[FileContents]]:
    """Joins files that share a patient or a study, so that no patient is at two hospitals."""
    groups: dict[int, list[FileContents]] = {}
    group_of: dict[str, int] = {}
    for number, content in enumerate(contents):
        keys = {*content.patients, *content.studies}
        joined = sorted({group_of[key] for key in keys if key in group_of})
        groups[number] = [content, *(file for group in joined for file in groups.pop(group))]
        for file in groups[number]:
            group_of |= dict.fromkeys((*file.patients, *file.studies), number)
    return [group for group in groups.values() if group[0].patients]


def _dealt(
    groups: Iterable[Sequence[FileContents]], labelled: set[str], sites: Sequence[Hospital], studies_max: int
) -> dict[Path, Hospital]:
    studies = Counter({site.name: 0 for site in sites})
    owner_of: dict[Path, Hospital] = {}

    def order(group: Sequence[FileContents]) -> bytes:
        # By hash: the names of the files, which may be sorted by finding, decide nothing.
        return hashlib.sha256("|".join(sorted(str(content.file) for content in group)).encode()).digest()

    for group in sorted(groups, key=order):
        usable = len(labelled & {study for content in group for study in content.studies})
        site = min(sites, key=lambda site: studies[site.name])
        if studies[site.name] < studies_max:
            studies[site.name] += usable
            owner_of |= {content.file: site for content in group}
    # A hospital without a study to train on has no part in the demo.
    return {file: site for file, site in owner_of.items() if studies[site.name]}
