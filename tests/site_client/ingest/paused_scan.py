"""A scan in a process of its own, as the trainer's worker runs it, for a test and a benchmark that suspend it.

python -m tests.site_client.ingest.paused_scan EXPORT CATALOG LABELS prints the hash of the dataset.
"""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from site_client.trainer.suspend import PauseSignal, family

SECRET, RULES = SiteSecret(bytes(range(32))), Rules(settle_s=0)


def started(export: Path, catalog: Path, labels: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.site_client.ingest.paused_scan", *map(str, (export, catalog, labels))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def processor_s(process: "subprocess.Popen[str]") -> float:
    """Seconds of processor time of the scan and of the readers that it started."""
    total = 0.0
    for process_id in family(process):
        times = psutil.Process(process_id).cpu_times()
        total += times.user + times.system
    return total


def main() -> None:
    PauseSignal()  # the trainer asks by SIGUSR1 first
    export, path, labels = map(Path, sys.argv[1:])
    with closing(Catalog.open(path, SECRET, RULES)) as catalog:
        catalog.scan(export, [labels])
        print(catalog.dataset().hash)


if __name__ == "__main__":
    main()
