"""The trainer's checks: what it must be able to read, what it must not be able to write, and what it runs on."""

import grp
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from pydicom.uid import UID

from site_client.config import SiteSettings
from site_client.doctor.result import Check, CheckResult, green, grey, red
from site_client.errors import SiteError
from site_client.ingest.catalog.catalog import open_catalog
from site_client.ingest.files.decoders import has_decoder
from site_client.ingest.files.export import walk
from site_client.ingest.labels.labels import label_files
from site_client.trainer.idle import machine
from site_client.trainer.idle.processor import Processor
from site_client.trainer.idle.readings import Signals
from site_client.trainer.idle.rules import WORDS, denials
from site_client.trainer.idle.watch import SlowProbes

_GIB: Final = 1 << 30
_LOOKED_AT: Final = 2000  # files of the export that are tried; a whole one may take an hour
_INODES_MIN: Final = 10_000
_DECODERS: Final = {  # what hospitals' archives hold, and what would decode it
    "1.2.840.10008.1.2.5": ("RLE", "pydicom"),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless", "python-gdcm"),
    "1.2.840.10008.1.2.4.70": ("JPEG lossless, first order", "python-gdcm"),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS lossless", "pyjpegls"),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 lossless", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.201": ("HTJ2K lossless", "pylibjpeg and pylibjpeg-openjpeg"),
}
_SIGNAL_FIX: Final = {
    "on_battery": 'Install and enable upower; or set idle.battery = "ignore"',
    "on_ups": "Install and enable upower",
    "user_idle_s": "Enable systemd-logind and D-Bus; or set idle.user_idle_min_s = 0",
    "remote_idle_s": "Enable systemd-logind and D-Bus; or set idle.remote_idle_min_s = 0",
    "gpu": "pip install hemofed[gpu]",
    "programs": "systemctl edit hemofed-trainer: [Service] ProtectProc=default",
    "io_pressure": "Run it by its units, whose slice tells our own use apart; kernel with PSI",
    "memory_pressure": "Boot a kernel with PSI (psi=1)",
}


def checks(settings: SiteSettings) -> dict[str, Check]:
    """By name."""
    return {
        "export": lambda: check_export(settings.folders.export),
        "labels": lambda: check_labels(settings),
        "decoders": lambda: check_decoders(),
        "disk": lambda: check_disk(settings),
        "gpu": lambda: check_gpu(settings),
        "signals": lambda: check_signals(settings),
    }


def check_export(export: Path) -> Iterator[CheckResult]:
    """Readable, all of it that is looked at; and not writable. Never names a file of it."""
    try:
        seen = list(islice(walk(export), _LOOKED_AT))
    except SiteError as error:
        yield red("export", str(error), _readable_fix(export))
        return
    barred = sum(not os.access(export / one.path, os.R_OK) for one in seen)
    if barred:
        yield red("export", f"{barred} of {len(seen)} files looked at cannot be read", _readable_fix(export))
    elif not seen:
        yield red("export", "the export folder is empty", "Mount the export, or correct folders.export")
    else:
        yield green("export", f"readable ({len(seen)} files looked at)")
    folders = {export, *(parent for one in seen for parent in (export / one.path).parents if parent >= export)}
    open_ = sum(os.access(path, os.W_OK) for path in [*folders, *(export / one.path for one in seen)])
    if not open_:
        yield green("export is read-only", "nothing in it can be written from here")
    elif os.geteuid() == 0 and not _on_read_only_disk(export):
        yield red("export is read-only", "root may write there", "Mount it read-only (ro)")
    else:
        yield red("export is read-only", f"{open_} files or folders can be written", "Mount it read-only (ro)")


def check_labels(settings: SiteSettings) -> Iterator[CheckResult]:
    """The label files now, and what the last scan made of them. Scans nothing."""
    try:
        files = label_files(settings.folders.export, settings.folders.labels)
    except (OSError, SiteError):
        files = []
    if not [path for path in files if os.access(path, os.R_OK)]:
        yield red(
            "labels", "no readable label file", "Set folders.labels to a CSV file; docs/HOSPITAL.md has the shape"
        )
        return
    if not (settings.folders.trainer / "catalog.sqlite").exists():
        yield grey("labels", "the export was not scanned yet", "Run hemofed-site catalog, or start the trainer")
        return
    with closing(open_catalog(settings)) as catalog:
        report = catalog.last_report()
    found = report.labels
    for sentence in found.refused_files:
        yield red("labels", sentence, "Correct the file; then hemofed-site catalog", local=True)
    words = f"{found.studies_labelled} studies with labels, {found.studies_unlabelled} without, " \
            f"{found.studies_in_conflict} in conflict"  # fmt: skip
    if not found.studies_labelled or found.studies_unlabelled + found.studies_in_conflict > found.studies_labelled:
        yield red("labels", words, f"{found.studies_unlabelled} studies unlabelled: see hemofed-site catalog")
    else:
        yield green("labels", words)
    waiting = report.series.get("Q_NO_DECODER", 0) + report.files.get("Q_NO_DECODER", 0)
    if waiting:
        yield red("series waiting", f"{waiting} series or files wait for a decoder", "See decoders")


def check_decoders() -> Iterator[CheckResult]:
    """Which compressions of an archive can be opened here."""
    lacking = {name: package for syntax, (name, package) in _DECODERS.items() if not has_decoder(UID(syntax))}
    for name, package in lacking.items():
        yield red("decoders", f"{name} cannot be opened", f"Install {package}; series in it wait until then")
    if not lacking:
        yield green("decoders", f"{len(_DECODERS)} compressions can be opened")


def check_disk(settings: SiteSettings) -> Iterator[CheckResult]:
    """Room for what the cache may grow to, and inodes."""
    for name, folder in (("cache", settings.folders.cache), ("state", settings.folders.trainer)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        figures = os.statvfs(there)
        free_gib = figures.f_bavail * figures.f_frsize / _GIB
        held_gib = _size(folder) / _GIB if name == "cache" else 0.0
        rest = settings.training.cache_max_gib - held_gib if name == "cache" else 0.0
        needs_gib = max(0.0, rest) + settings.idle.disk_free_min_gib
        if free_gib < needs_gib:
            lower = "or lower training.cache_max_gib" if name == "cache" else "on that disk"
            yield red("disk", f"{name}: {free_gib:.1f} GiB free, {needs_gib:.1f} wanted",
                      f"Free {needs_gib - free_gib:.1f} GiB {lower}")  # fmt: skip
        elif figures.f_files and figures.f_favail < _INODES_MIN:
            yield red("disk", f"{name}: {figures.f_favail} inodes left", "Free inodes: remove small files on that disk")
        else:
            yield green("disk", f"{name}: {free_gib:.0f} GiB free")


def check_gpu(
    settings: SiteSettings, proc: Path = Path("/proc"), devices: Path = Path("/dev")
) -> Iterator[CheckResult]:
    """The driver's parts that a confined service cannot load by itself."""
    if settings.training.device == "cpu":
        yield grey("gpu", 'training.device is "cpu"')
    elif not (proc / "driver" / "nvidia" / "version").exists():
        if settings.training.device == "cuda":
            yield red(
                "gpu", 'training.device is "cuda" and there is no NVIDIA driver', "Install the driver, or set cpu"
            )
        else:
            yield grey("gpu", "no NVIDIA driver: training uses the CPU")
    elif not (devices / "nvidia-uvm").exists():
        yield red("gpu", "nvidia_uvm is not loaded", "Load nvidia_uvm at boot: echo nvidia_uvm > "
                  "/etc/modules-load.d/nvidia-uvm.conf")  # fmt: skip
    else:
        yield green("gpu", "NVIDIA driver and nvidia_uvm are there")


def check_signals(settings: SiteSettings, signals: Signals | None = None) -> Iterator[CheckResult]:
    """Every signal of the idle gate that cannot be read; red where the policy then denies training."""
    signals = _look(settings) if signals is None else signals
    denied = " ".join(finding.words for finding in denials(signals, settings.idle))
    for name, why in signals.unknown().items():
        if name == "gpu" and settings.training.device == "cpu":
            continue
        words, fix = f"{WORDS[name]} cannot be told: {why.why}", _SIGNAL_FIX.get(name, "")
        if WORDS[name] in denied:
            yield red("signals", f"{words}; so the site does not train", fix or "See hemofed-site status")
        else:
            yield grey("signals", f"{words}; it is left out", fix)
    known = len(WORDS) - len(signals.unknown())
    yield green("signals", f"{known} of {len(WORDS)} signals are read")


def _look(settings: SiteSettings) -> Signals:
    processor = Processor()
    processor.sample(time.monotonic(), [os.getpid()])
    signals = SlowProbes(settings).read()
    time.sleep(0.5)  # counters are differences
    load = processor.sample(time.monotonic(), [os.getpid()])
    return replace(
        signals,
        foreign_cpu=load.foreign_cpu,
        memory_pressure=load.memory_pressure,
        io_pressure=load.io_pressure,
        memory_free_gib=machine.memory_free_gib(),
    )


def _readable_fix(export: Path) -> str:
    try:
        group = grp.getgrgid(export.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "Mount the export; let hemofed-trainer read it"
    return (
        f"Add hemofed-trainer to group {group}: systemctl edit hemofed-trainer, [Service] SupplementaryGroups={group}"
    )


def _on_read_only_disk(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
