"""A hospital of the demo: its folder, its site.toml, and the DICOM it trains on."""

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
PROFILES = ("T", "S", "N", "C", "R")  # site profiles of the phantom, by turns
SUBTYPE_SEPARATOR = "_"

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
plan_approval = "automatic"  # nobody sits at a demo hospital to read the plan
cohort_min = 3
studies_min = 4

[ingest]
settle_s = 0  # nobody is still writing this export
slices_min = 8

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

[agent]
poll_min_s = 0.1
poll_max_s = 2.0
"""


class BadDataFolder(ValueError):
    """--data does not hold what it must; one sentence says what."""


@dataclass(frozen=True)
class Hospital:
    name: str
    folder: Path
    profile: str

    @property
    def config(self) -> Path:
        return self.folder / "site.toml"

    @property
    def data(self) -> Path:
        return self.folder / "data"


def hospitals(folder: Path, count: int) -> list[Hospital]:
    """The demo's hospitals, named and given a scanner profile by turns."""
    names = [NAMES[index] if index < len(NAMES) else f"site-{index + 1}" for index in range(count)]
    return [
        Hospital(name, folder / "sites" / name, PROFILES[index % len(PROFILES)]) for index, name in enumerate(names)
    ]


def write_config(hospital: Hospital, address: str, enrolment_address: str, labels: Sequence[str], export: str) -> None:
    hospital.folder.mkdir(parents=True, exist_ok=True)
    hospital.config.write_text(
        SITE_TOML.format(
            name=hospital.name,
            address=address,
            enrolment_address=enrolment_address,
            export=export,
            labels=", ".join(f'"{path}"' for path in labels),
        )
    )


def fix_held_out(hospital: Hospital, seed: int) -> None:
    """Let the seed decide which synthetic patients are held out: the split follows the site's secret of pseudonyms.

    Never for patients who exist: a secret that anybody can compute hides nobody.
    """
    key = hashlib.sha256(f"hemofed demo|{seed}|{hospital.name}".encode()).digest()
    load_secret(load(hospital.config).folders.trainer / "pseudonym.key", lambda count: key[:count])


def split_rsna(source: Path, sites: Sequence[Hospital], studies_max: int) -> None:
    """Deal an RSNA-layout folder (*.dcm anywhere, one *.csv of ID,Label rows) to the sites, patient by patient.

    Each site gets DIR/dicom with hard links (copies across file systems) and DIR/labels_slices.csv. A patient's studies
    all go to one site. Errors: BadDataFolder.
    """
    tables = sorted(source.glob("*.csv"))
    files = sorted(source.rglob("*.dcm"))
    if len(tables) != 1 or not files:
        raise BadDataFolder(
            f"expected one .csv and .dcm files below --data, got {len(tables)} and {len(files)}; "
            "point it at an unpacked RSNA 2019 folder with its label table"
        )
    owner = _deal(files, sites, studies_max)
    for path, (hospital, identifier) in owner.items():
        _link(path, hospital.data / "dicom" / f"{identifier}.dcm")
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
        hospital = sites[int.from_bytes(patient[:8], "big") % len(sites)]
        study = str(header.get("StudyInstanceUID", ""))
        if study not in studies[hospital.name] and len(studies[hospital.name]) >= studies_max:
            continue
        studies[hospital.name].add(study)
        owner[path] = (hospital, str(header.get("SOPInstanceUID", path.stem)))
    return owner


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
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
        hospital.data.mkdir(parents=True, exist_ok=True)
        with (hospital.data / "labels_slices.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["ID", "Label"], *rows[hospital.name]])


def _label_rows(table: Path) -> Iterator[list[str]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if [cell.strip().lower() for cell in header] != ["id", "label"]:
            raise BadDataFolder(f"expected the columns ID,Label in {table.name}, got {len(header)} other columns")
        yield from reader
