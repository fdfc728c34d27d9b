"""The demo's hospitals: their folders, their site.toml, and the DICOM that they train on."""

import csv
import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom

from site_client.config import load
from site_client.ingest.pseudonym import load_secret

NAMES = ("north", "south", "east", "west", "harbor", "hill", "lake", "valley")
PROFILES = ("T", "S", "N", "C", "R")  # of the phantom, by turns; U is never federated
LABELS_FOLDER = "labels"  # of a hospital's data
SLICES_MIN = 8
SUBTYPE_SEPARATOR = "_"  # in <SOPInstanceUID>_<label>

SITE_TOML = """\
name = "{name}"

[aggregator]
address = "{address}"
enrolment_address = "{enrolment_address}"

[folders]
state = "state"
spool = "spool"
cache = "cache"
export = "{export}"
labels = [{labels}]

[policy]
plan_approval = "automatic"  # a demo hospital has no officer who reads the plan
roster_approval = "wait"  # and none who knows the others
roster_wait_days = 0
cohort_min = 3
studies_min = 4

[ingest]
settle_s = 0  # this export is complete
slices_min = {slices_min}

[idle]  # what a laptop in use satisfies; `hemofed-site pause` still stops it
foreign_cpu_max = 1.0
memory_pressure_max = 1.0
io_pressure_max = 1.0
memory_free_min_gib = 0.2
disk_free_min_gib = 0.2
user_idle_min_s = 0
remote_idle_min_s = 0
gpu_others = "ignore"
battery = "ignore"
start_delay_s = 0
calm_s = 2

[training]
threads = 1
validation_fraction = {validation_fraction}

[agent]
poll_min_s = 0.1
poll_max_s = 2.0
"""


class BadDataFolder(ValueError):
    """The folder of --data lacks a table or images; the message says which."""


@dataclass(frozen=True)
class Hospital:
    """One hospital. `profile`: of the phantom."""

    name: str
    folder: Path
    profile: str

    @property
    def config(self) -> Path:
        """Its site.toml."""
        return self.folder / "site.toml"

    @property
    def data(self) -> Path:
        """The folder of its export and label tables."""
        return self.folder / "data"


def hospitals(folder: Path, count: int) -> list[Hospital]:
    """Names the demo's hospitals, and gives each a scanner profile by turns."""
    names = [NAMES[index] if index < len(NAMES) else f"site-{index + 1}" for index in range(count)]
    return [
        Hospital(name, folder / "sites" / name, PROFILES[index % len(PROFILES)]) for index, name in enumerate(names)
    ]


def write_config(
    hospital: Hospital,
    address: str,
    enrolment_address: str,
    labels: Sequence[str],
    export: str,
    validation_fraction: float,
) -> None:
    """Writes the hospital's site.toml. `labels`, `export`: paths relative to its folder."""
    hospital.folder.mkdir(parents=True, exist_ok=True)
    hospital.config.write_text(
        SITE_TOML.format(
            name=hospital.name,
            address=address,
            enrolment_address=enrolment_address,
            export=export,
            validation_fraction=validation_fraction,
            slices_min=SLICES_MIN,
            labels=", ".join(f'"{path}"' for path in labels),
        )
    )


def fix_held_out(hospital: Hospital, seed: int) -> None:
    """Lets the seed decide which synthetic patients are held out, because the split follows the site's secret.

    Never use this for real patients: a secret that can be computed hides no pseudonym.
    """
    key = hashlib.sha256(f"hemofed demo|{seed}|{hospital.name}".encode()).digest()
    load_secret(load(hospital.config).folders.trainer / "pseudonym.key", lambda count: key[:count])


def is_rsna_layout(source: Path) -> bool:
    """Tells whether a folder is one of the RSNA challenge: one table at its top, of ID and Label."""
    tables = sorted(source.glob("*.csv"))
    if len(tables) != 1:
        return False
    with tables[0].open(encoding="utf-8-sig", errors="replace") as file:
        return [cell.strip().lower() for cell in file.readline().split(",")] == ["id", "label"]


def split_rsna(source: Path, sites: Sequence[Hospital], studies_max: int) -> None:
    """Deals an RSNA-layout folder (*.dcm anywhere, one *.csv of ID,Label rows) to the sites, patient by patient.

    Each site gets DIR/dicom with hard links (copies across file systems) and DIR/labels/labels_slices.csv. A patient's
    studies all go to one site, because no patient may be both in training and in another site's validation.

    Args:
        source: The folder.
        sites: The hospitals.
        studies_max: A hospital gets at most so many studies.

    Raises:
        BadDataFolder: Not exactly one table, no image, or a table that does not belong to the images.
    """
    # The table lies at the top, the images anywhere below it: that is how the archive unpacks.
    tables = sorted(source.glob("*.csv"))
    files = sorted(source.rglob("*.dcm"))
    if len(tables) != 1 or not files:
        raise BadDataFolder(
            f"expected one .csv and .dcm files below --data, got {len(tables)} and {len(files)}; "
            "point it at an unpacked RSNA 2019 folder with its label table"
        )
    owner = _deal(files, sites, studies_max)
    for path, (hospital, identifier) in owner.items():
        link(path, hospital.data / "dicom" / f"{identifier}.dcm")
    site_of_identifier = {identifier: hospital.name for hospital, identifier in owner.values()}
    _split_labels(tables[0], sites, site_of_identifier)


def _deal(files: Sequence[Path], sites: Sequence[Hospital], studies_max: int) -> dict[Path, tuple[Hospital, str]]:
    studies: dict[str, set[str]] = defaultdict(set)
    owner: dict[Path, tuple[Hospital, str]] = {}
    for path in files:
        header = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=["PatientID", "StudyInstanceUID", "SOPInstanceUID"]
        )
        patient = hashlib.sha256(str(header.get("PatientID", "")).encode()).digest()
        # By hash: the order of the files, which may be sorted by finding, decides nothing.
        hospital = sites[int.from_bytes(patient[:8], "big") % len(sites)]
        study = str(header.get("StudyInstanceUID", ""))
        if study not in studies[hospital.name] and len(studies[hospital.name]) >= studies_max:
            continue
        studies[hospital.name].add(study)
        owner[path] = (hospital, str(header.get("SOPInstanceUID", path.stem)))
    return owner


def link(source: Path, target: Path) -> None:
    """Links a file, or copies it where it cannot be linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that has no links
        shutil.copyfile(source, target)


def _split_labels(table: Path, sites: Sequence[Hospital], site_of_identifier: dict[str, str]) -> None:
    rows: dict[str, list[list[str]]] = defaultdict(list)
    for row in _label_rows(table):
        site = site_of_identifier.get(row[0].rpartition(SUBTYPE_SEPARATOR)[0])
        if site is not None:
            rows[site].append(row)
    if not rows:
        raise BadDataFolder(
            f"expected rows like <SOPInstanceUID>_any in {table.name}, got none that names one of the "
            f"{len(site_of_identifier)} images; check that table and images belong together"
        )
    for hospital in sites:
        (hospital.data / LABELS_FOLDER).mkdir(parents=True, exist_ok=True)
        # Also for a hospital without a row: its site.toml names the file.
        with (hospital.data / LABELS_FOLDER / "labels_slices.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["ID", "Label"], *rows[hospital.name]])


def _label_rows(table: Path) -> Iterator[list[str]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if [cell.strip().lower() for cell in header] != ["id", "label"]:
            raise BadDataFolder(f"expected the columns ID,Label in {table.name}, got {len(header)} other columns")
        yield from reader
