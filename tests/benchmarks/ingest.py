"""What it costs to take an export in, as JSON: ratios of one run, by the wall clock.

python tests/benchmarks/ingest.py [--folder FOLDER] [--header-files 4000] [--studies 24] [--rescan-files 100000]
    [--pauses 20]

headers: the header scan of a tree, against a bare loop of pydicom over the same files and tags; with one process, too.
workers: the first scan of compressed studies with two reader processes, against one. Beside it the same for a bare
loop of pydicom over the same files, in two processes against one: what the machine itself gains by a second core, and
the first as a part of it.
pause: the trainer's `suspend` during a first scan: seconds until the scan and its readers stand still, and whether the
scan, resumed, ends with the same dataset.
rescan: a scan of so many unchanged files; 0 leaves it out. In seconds, with the process's largest memory.

Where other programs want the cores, two processes gain less: run it on a calm machine.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.catalog.scan import ExportScan
from site_client.ingest.catalog.tables import CatalogTable
from site_client.ingest.files import tags
from site_client.ingest.files.export import walk
from site_client.ingest.files.reader import Reader
from site_client.ingest.files.readers import Readers, shared_readers
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.rules import Rules
from site_client.trainer.suspend import family, resume, suspend
from tests.site_client.ingest.conftest import Scanner, head
from tests.site_client.ingest.paused_scan import started

SECRET, RULES = SiteSecret(bytes(range(32))), Rules(settle_s=0)
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--header-files", type=int, default=4000)
    parser.add_argument("--studies", type=int, default=24)
    parser.add_argument("--rescan-files", type=int, default=100_000)
    parser.add_argument("--pauses", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        figures = {
            "headers": headers(folder / "headers", arguments.header_files),
            "workers": workers(folder / "workers", arguments.studies),
            "pause": pause(folder / "workers", arguments.pauses),
        }
        if arguments.rescan_files:
            figures["rescan"] = rescan(folder / "rescan", arguments.rescan_files)
    print(json.dumps(figures, indent=2))


def headers(root: Path, count: int) -> dict[str, float]:
    """The variants take turns, and find the files in the page cache. Headers have as many elements as real ones."""
    root.mkdir()
    scanner = Scanner(root)
    for study in range(count // 24):
        scanner.series(f"1.2.{study}", patient=f"P{study}", edit=with_all_that_scanners_write)
    files = [(root / file.path, file.size_bytes) for file in walk(root)]

    def bare() -> None:
        for path, _ in files:
            pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags.READ))

    batches = [files[start : start + 64] for start in range(0, len(files), 64)]

    def ours() -> None:
        for _ in shared_readers().map(lambda reader, batch: reader.headers(batch, SECRET, RULES), batches):
            pass

    with closing(Reader()) as reader:
        reader.decoders()  # its start is paid once, and not per file
        ours()
        bare_s, one_s, ours_s = in_turns(bare, lambda: reader.headers(files, SECRET, RULES), ours)
    seconds = {"bare_s": bare_s, "one_process_s": one_s, "ours_s": ours_s}
    ratios = {"one_process_ratio": round(one_s / bare_s, 2), "ratio": round(ours_s / bare_s, 2)}
    return {"files": len(files), **seconds, **ratios}


def with_all_that_scanners_write(dataset: Dataset, index: int) -> None:
    """Sixty elements that ingest does not read: dates, names of devices, doses, a private block."""
    for number in range(30):
        dataset.add_new(0x00181200 + 4 * number, "LO", f"VALUE {number}")
    block = dataset.private_block(0x0043, "VENDOR", create=True)
    for number in range(30):
        block.add_new(number, "LO", f"PRIVATE {number}")


def workers(root: Path, studies: int) -> dict[str, float]:
    """The first scan of JPEG 2000 studies of 512 x 512 pixels, with two reader processes and with one."""
    root.mkdir()
    scanner = Scanner(root)
    # 384 pixels of a head of 96 shown 4 times as fine: noise as in a real image, which decides the time of decoding.
    fine = np.kron(head(24), np.ones((1, 4, 4), np.int16))
    fine = fine + np.random.default_rng(1).integers(-6, 7, fine.shape, dtype=np.int16)

    def compressed(dataset: Dataset, index: int) -> None:
        dataset.Rows = dataset.Columns = fine.shape[1]
        dataset.PixelSpacing = ["0.6", "0.6"]
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)

    first = scanner.series("1.2.0", hu=fine, edit=compressed)
    for study in range(1, studies):
        for path in first:
            dataset = pydicom.dcmread(path)
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.{study}", f"1.2.{study}.1"
            dataset.SOPInstanceUID = f"1.2.{study}.1.{dataset.InstanceNumber}"
            scanner.write(dataset)
    pools = [Readers(1), Readers(2)]
    for pool in pools:
        pool.slices([first[0]] * 64)  # starts its processes
    files = sorted(path for path in root.rglob("*") if path.is_file())
    with multiprocessing.get_context("spawn").Pool(2) as bare:
        bare.map(decode_all, [files[:1], files[:1]])
        one_s, two_s, bare_one_s, bare_two_s = in_turns(
            *(lambda pool=pool: _first_scan(root, pool) for pool in pools),
            lambda: bare.map(decode_all, [files]),
            lambda: bare.map(decode_all, [files[::2], files[1::2]], chunksize=1),
        )
    for pool in pools:
        pool.close()
    ratio, bare_ratio = one_s / two_s, bare_one_s / bare_two_s
    figures = {"one_s": one_s, "two_s": two_s, "bare_one_s": bare_one_s, "bare_two_s": bare_two_s}
    ratios = {"ratio": ratio, "bare_ratio": bare_ratio, "of_the_machine": ratio / bare_ratio}
    return {"studies": studies, **figures, **{name: round(value, 2) for name, value in ratios.items()}}


def decode_all(paths: Sequence[Path]) -> None:
    """Decodes files in this process, and keeps nothing."""
    for path in paths:
        _ = pydicom.dcmread(path).pixel_array


def pause(root: Path, count: int) -> dict[str, object]:
    """Suspends a first scan `count` times, at moments that the seed draws."""
    rng = np.random.default_rng(2)
    files = (path for path in root.rglob("*") if path.is_file())
    studies = {pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID for path in files}
    table = root.parent / "labels.csv"
    table.write_text("StudyInstanceUID,any\n" + "".join(f"{study},1\n" for study in sorted(studies)))
    hashes: list[str] = []
    latencies: list[float] = []
    for pauses in (0, count):
        catalog = root.parent / f"paused{pauses}.sqlite"
        process = started(root, catalog, table)
        while process.poll() is None:
            time.sleep(float(rng.uniform(0.05, 0.3)))
            # The scan, and at least one reader with its worker.
            if len(latencies) < pauses and len(family(process)) >= 3 and process.poll() is None:
                latencies.append(suspend(process))
                resume(process)
        hashes.append(process.communicate()[0])
    return {
        "pauses": len(latencies),
        "median_s": round(float(np.median(latencies)), 2),
        "max_s": round(max(latencies), 2),
        "same_dataset": hashes[0] == hashes[1] != "",
    }


def _first_scan(root: Path, readers: Readers) -> None:
    database = root.with_suffix(".sqlite")
    engine = create_engine(f"sqlite:///{database}")
    CatalogTable.metadata.create_all(engine)
    with Session(engine) as session:
        ExportScan(session, root, SECRET, RULES, time.time(), readers).run()
        session.commit()
    engine.dispose()
    database.unlink()


def rescan(root: Path, count: int) -> dict[str, float]:
    """A second scan of files that have not changed: small images, of which 24 are a series."""
    export = root / "export"
    export.mkdir(parents=True)

    def small(dataset: Dataset, index: int) -> None:
        dataset.Rows = dataset.Columns = 16
        dataset.PixelSpacing, dataset.PixelData = ["14.4", "14.4"], dataset.PixelData[:512]

    templates = [path.read_bytes() for path in Scanner(root / "template").series("1.2.900000", edit=small)]
    for number in range(count // 24):
        folder = export / f"F{number}"
        folder.mkdir()
        for index, template in enumerate(templates):
            (folder / f"I{index}").write_bytes(template.replace(b"1.2.900000", b"1.2.%06d" % (100_000 + number)))
    with closing(Catalog.open(root / "catalog.sqlite", SECRET, RULES)) as catalog:
        catalog.scan(export)
        began_s = time.perf_counter()
        report = catalog.scan(export)
        seconds = time.perf_counter() - began_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"files": report.files_seen, "read": report.files_read, "s": round(seconds, 1), "peak_mib": round(peak_mib)}


def in_turns(*variants: Callable[[], object]) -> list[float]:
    """Seconds of each variant: the least of the repeats, in which they take turns."""
    least = [float("inf")] * len(variants)
    for _ in range(REPEATS):
        for place, variant in enumerate(variants):
            began_s = time.perf_counter()
            variant()
            least[place] = min(least[place], time.perf_counter() - began_s)
    return [round(seconds, 2) for seconds in least]


if __name__ == "__main__":
    main()
