"""The trainer's checks: files that it must read, files that it must not write, and the machine it runs on."""

import grp
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from federation.vocabulary import StateReason
from pydicom.uid import UID

from site_client.check_result import Check, CheckResult, green, grey, red
from site_client.config import SiteSettings
from site_client.errors import SiteError
from site_client.ingest.catalog.catalog import open_catalog
from site_client.ingest.files.decoders import has_decoder
from site_client.ingest.files.export import walk
from site_client.ingest.labels.files import label_files
from site_client.trainer.idle import machine
from site_client.trainer.idle.processor import Processor
from site_client.trainer.idle.readings import Signals
from site_client.trainer.idle.rules import WORDS, denials, needs_of_others
from site_client.trainer.idle.watch import SlowProbes

_GIB: Final = 1 << 30
_SAMPLE: Final = 2000  # files of the export that are tried; all of them may take an hour
_INODES_MIN: Final = 10_000
_DECODERS: Final = {  # compressions in hospitals' archives (DICOM PS3.5 A.4), and the package that decodes each
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
    "gpu": 'Set training.device = "cpu": training then uses no card, and need not know who else does',
    "programs": "systemctl edit hemofed-trainer: [Service] ProtectProc=default",
    "io_pressure": "Run it by its units, whose slice tells our own use apart; kernel with PSI",
    "memory_pressure": "Boot a kernel with PSI (psi=1)",
}
_OF_PEOPLE: Final = (StateReason.USER_ACTIVE, StateReason.REMOTE_SESSION)


def checks(settings: SiteSettings) -> dict[str, Check]:
    """Return the checks, by name."""
    return {
        "export": lambda: check_export(settings.folders.export),
        "labels": lambda: check_labels(settings),
        "decoders": lambda: check_decoders(),
        "disk": lambda: check_disk(settings),
        "signals": lambda: check_signals(settings),
    }


def check_export(export: Path) -> Iterator[CheckResult]:
    """Check that the export can be read and not written. No result names a file of it."""
    try:
        # From the front: a full walk over a network share takes an hour.
        sample = list(islice(walk(export), _SAMPLE))
    except SiteError as error:
        yield red("export", str(error), _readable_fix(export))
        return
    unreadable = sum(not os.access(export / file.path, os.R_OK) for file in sample)
    if unreadable:
        yield red("export", f"{unreadable} of {len(sample)} files looked at cannot be read", _readable_fix(export))
    elif not sample:
        yield red("export", "the export folder is empty", "Mount the export, or correct folders.export")
    else:
        yield green("export", f"readable ({len(sample)} files looked at)")
    folders = {export, *(parent for file in sample for parent in (export / file.path).parents if parent >= export)}
    writable = sum(os.access(path, os.W_OK) for path in [*folders, *(export / file.path for file in sample)])
    if not writable:
        yield green("export is read-only", "nothing in it can be written from here")
    elif os.geteuid() == 0 and not os.statvfs(export).f_flag & os.ST_RDONLY:
        # Root passes every permission, so only a read-only mount counts for it.
        yield red("export is read-only", "root may write there", "Mount it read-only (ro)")
    else:
        yield red("export is read-only", f"{writable} files or folders can be written", "Mount it read-only (ro)")


def check_labels(settings: SiteSettings) -> Iterator[CheckResult]:
    """Check the label files, and the last scan's counts of them. Scans nothing."""
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
    # The last scan's report, not a scan: the trainer may be scanning now.
    with closing(open_catalog(settings)) as catalog:
        report = catalog.last_report()
    labels = report.labels
    for sentence in labels.refused_files:
        yield red(
            "labels", sentence, "Correct the file, which hemofed-site catalog labels names; then hemofed-site catalog"
        )
    if labels.held is not None:
        yield red(
            "labels",
            f"{labels.held.withdrawn} known labels are missing in the files; the known ones stay in force",
            "Correct the files; or hemofed-site catalog confirm labels",
        )
    if report.opt_outs.missing:
        yield red(
            "opt-outs",
            f"{report.opt_outs.missing} entries are no longer in the opt-out lists; they stay in force",
            "Correct the lists; or hemofed-site catalog confirm opt-outs",
        )
    words = (
        f"{labels.studies_labelled} studies with labels, {labels.studies_unlabelled} without, "
        f"{labels.studies_in_conflict} in conflict"
    )
    if not labels.studies_labelled or labels.studies_unlabelled + labels.studies_in_conflict > labels.studies_labelled:
        yield red("labels", words, f"{labels.studies_unlabelled} studies unlabelled: see hemofed-site catalog")
    else:
        yield green("labels", words)
    waiting = report.series.get("Q_NO_DECODER", 0) + report.files.get("Q_NO_DECODER", 0)
    if waiting:
        yield red("series waiting", f"{waiting} series or files wait for a decoder", "See decoders")


def check_decoders() -> Iterator[CheckResult]:
    """Check which compressions of an archive can be decoded here."""
    lacking = {name: package for syntax, (name, package) in _DECODERS.items() if not has_decoder(UID(syntax))}
    for name, package in lacking.items():
        yield red("decoders", f"{name} cannot be decoded", f"Install {package}; series in it wait until then")
    if not lacking:
        yield green("decoders", f"{len(_DECODERS)} compressions can be decoded")


def check_disk(settings: SiteSettings) -> Iterator[CheckResult]:
    """Check that the disks have room for the full cache, and inodes."""
    for name, folder in (("cache", settings.folders.cache), ("state", settings.folders.trainer)):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        figures = os.statvfs(nearest)
        free_gib = figures.f_bavail * figures.f_frsize / _GIB
        growth_gib = 0.0
        if name == "cache":  # it may still grow to its limit; the rest of the disk is for others
            used_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            growth_gib = settings.training.cache_max_gib - used_bytes / _GIB
        needs_gib = max(0.0, growth_gib) + settings.idle.disk_free_min_gib
        if free_gib < needs_gib:
            lower = "or lower training.cache_max_gib" if name == "cache" else "on that disk"
            fix = f"Free {needs_gib - free_gib:.1f} GiB {lower}"
            yield red("disk", f"{name}: {free_gib:.1f} GiB free, {needs_gib:.1f} wanted", fix)
        elif figures.f_files and figures.f_favail < _INODES_MIN:
            yield red("disk", f"{name}: {figures.f_favail} inodes left", "Free inodes: remove small files on that disk")
        else:
            yield green("disk", f"{name}: {free_gib:.0f} GiB free")


def check_signals(settings: SiteSettings, signals: Signals | None = None) -> Iterator[CheckResult]:
    """Check every signal of the idle gate; one that cannot be read is red where the policy then denies training."""
    signals = _read_signals(settings) if signals is None else signals
    denied = " ".join(finding.words for finding in denials(signals, settings.idle))
    for name, why in signals.unknown().items():
        if name == "gpu" and settings.training.device == "cpu":
            continue
        words, fix = f"{WORDS[name]} cannot be told: {why.why}", _SIGNAL_FIX.get(name, "")
        if WORDS[name] in denied:
            yield red("signals", f"{words}; so the site does not train", fix or "See hemofed-site status")
        else:
            yield grey("signals", f"{words}; it is left out", fix)
    people = [finding for finding in needs_of_others(signals, settings.idle) if finding.reason in _OF_PEOPLE]
    for finding in people:
        yield grey("people", f"{finding.words}; training waits meanwhile", "loginctl lists the sessions")
    known = len(WORDS) - len(signals.unknown())
    yield green("signals", f"{known} of {len(WORDS)} signals are read")


def _read_signals(settings: SiteSettings) -> Signals:
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
