"""The idle gate suspends a scan with its readers at any moment; resumed, it ends as if nothing had happened."""

import subprocess
import sys
import time
from pathlib import Path

from site_client.ingest.catalog.catalog import Catalog
from site_client.trainer.suspend import family, is_suspended, resume, suspend
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.paused_scan import RULES, SECRET, processor_s, started
from tests.site_client.ingest.test_ingest_catalog import label

READERS = 3  # processes: the scan, and at least one reader with its worker


def test_a_scan_stands_still_within_a_second_and_goes_on(scanner: Scanner, tmp_path: Path) -> None:
    studies = [f"1.2.{number}" for number in range(3, 9)]
    for number, study in enumerate(studies):
        scanner.series(study, patient=f"P{number}")
    labels = label(tmp_path, *studies)
    catalog = Catalog.open(tmp_path / "plain.sqlite", SECRET, RULES)
    catalog.scan(scanner.root, [labels])
    plain = catalog.dataset().hash
    catalog.close()
    process = started(scanner.root, tmp_path / "paused.sqlite", labels)
    pauses = 0
    while process.poll() is None:
        if len(family(process)) >= READERS and pauses < 5:
            took_s = suspend(process)
            if process.poll() is not None:
                break
            assert took_s < 1.0
            assert is_suspended(process)
            before_s = processor_s(process)
            for _ in range(4):
                time.sleep(0.05)
                assert processor_s(process) == before_s
            resume(process)
            pauses += 1
    told, _ = process.communicate(timeout=60)
    assert (process.returncode, told.strip()) == (0, plain)
    assert pauses > 0


def test_a_process_that_ends_while_the_others_are_listed_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert family(process) == [process.pid]


def test_a_request_that_comes_while_python_ends_kills_no_worker() -> None:
    program = (
        "import os, signal; from site_client.trainer.suspend import PauseSignal\n"
        "class Late:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGUSR1)\n"
        "late = Late(); PauseSignal()"
    )
    for end in ("", "; import sys; sys.late = late; del late"):  # some objects end after the handlers
        assert subprocess.run([sys.executable, "-c", program + end], check=False).returncode == 0
