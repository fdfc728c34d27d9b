"""The reader process: it parses and decodes files of strangers, so that a fault in them ends nothing else.

python -m site_client.ingest.files.reader_process, with requests on standard input and answers on standard output.

The process imports all decoders once and forks a worker. When a file ends the worker, because a C library aborts or a
limit is reached, the process answers with the signal and forks the next one. That takes a few milliseconds, and a new
interpreter would take a second. Both end with their standard input.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from site_client.errors import SeriesUnreadable
from site_client.ingest.files.decoders import decodable
from site_client.ingest.files.directory import read_directory
from site_client.ingest.files.frames import LENGTHS, read_lengths, write_frame
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.header_pass import read_header, read_sop_uid
from site_client.ingest.files.pixels import read_slice
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import FILE_BYTES_MAX, Rules

MEMORY_BYTES_MAX: Final = 3 << 29  # of address space, of which the libraries take a fifth
CPU_S_MAX: Final = {
    "header": 5.0,
    "uid": 5.0,
    "directory": 60.0,
    "slice": 10.0,
}  # a file; a header takes a thousandth of a second
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

Answer = tuple[dict[str, Any], bytes]
Work = Callable[[str, int], Answer]


def main() -> None:
    """Serves until standard input ends."""
    requests, answers = os.dup(0), os.dup(1)
    # Libraries write to the standard streams as they like, and may quote a header there.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program in front, which then closes the pipe
    write_frame(answers, {"decoders": decodable()})  # imports the plugins, before the limits and the first fork
    limit_itself()
    while True:
        worker = os.fork()
        if worker == 0:
            _serve(requests, answers, os.getppid())
        _, status = os.waitpid(worker, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return
        _discard(requests)
        write_frame(answers, {"died": -os.waitstatus_to_exitcode(status)})


def _discard(requests: int) -> None:
    """Empties the pipe of what the dead worker left of its request. The other side sends no more before our answer."""
    os.set_blocking(requests, False)
    with suppress(BlockingIOError):
        while os.read(requests, 1 << 16):
            pass
    os.set_blocking(requests, True)


def limit_itself() -> None:
    """Bounds memory and descriptors; forbids files and core dumps, which would hold an image."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES_MAX),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _serve(requests: int, answers: int, parent: int) -> None:
    """Answers requests, as the worker, and ends the process."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # A parent that died before the line above sends no signal.
        while os.getppid() == parent and (request := _read_request(requests)) is not None:
            work = _WORK[request["task"]](request)
            for path, size_bytes in request["files"]:
                # By processor time: another program's load, or a pause by the idle gate, is no fault of the file.
                signal.setitimer(signal.ITIMER_PROF, CPU_S_MAX[request["task"]])
                table, data = work(path, size_bytes)
                write_frame(answers, {"id": request["id"], **table}, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
        status = 0
    finally:
        # Also after an exception: what follows the fork in `main` is the other process's.
        os._exit(status)


def _read_request(requests: int) -> dict[str, Any] | None:
    head = _read(requests, LENGTHS.size)
    if not head:
        return None
    table: dict[str, Any] = json.loads(_read(requests, read_lengths(head)[0]))
    return table


def _read(handle: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := os.read(handle, size - len(data))):
        data += part
    return data


def _header_work(request: dict[str, Any]) -> Work:
    secret, rules = SiteSecret(bytes.fromhex(request["secret"])), msgspec.convert(request["rules"], Rules)

    def work(path: str, size_bytes: int) -> Answer:
        try:
            result = read_header(Path(path), size_bytes, secret, rules)
        except (MemoryError, RecursionError):
            result = Reason.Q_DECODE_LIMIT
        except Exception:  # whatever a file makes a library raise is a fault of this file alone
            result = Reason.Q_READ
        return {"header": result.to_json()} if isinstance(result, DicomHeader) else {"code": result.name}, b""

    return work


def _slice_work(request: dict[str, Any]) -> Work:
    step = request["step"]

    def work(path: str, size_bytes: int) -> Answer:
        try:
            image = read_slice(Path(path), size_bytes, step)
            pixels = np.ascontiguousarray(image.stored, dtype="<i4")
            table = {
                "sha256": image.sha256.hex(),
                "stored": pixels.shape,
                "shape": image.shape,
                "scale": vars(image.scale),
                "spacing_mm": image.spacing_mm,
                "position": image.position,
                "orientation": image.orientation,
                "thickness_mm": image.thickness_mm,
            }
            return table, pixels.tobytes()
        except SeriesUnreadable as error:
            return {"code": error.code}, b""
        except (MemoryError, RecursionError):
            return {"code": Reason.Q_DECODE_LIMIT.name}, b""
        except Exception:  # as above
            return {"code": Reason.Q_DECODE.name}, b""

    return work


def _uid_work(request: dict[str, Any]) -> Work:
    def work(path: str, size_bytes: int) -> Answer:
        try:
            uid = read_sop_uid(Path(path), size_bytes, FILE_BYTES_MAX)
        except (MemoryError, RecursionError):
            uid = Reason.Q_DECODE_LIMIT
        except Exception:  # as above
            uid = Reason.Q_READ
        return {"code": uid.name} if isinstance(uid, Reason) else {"uid": uid}, b""

    return work


def _directory_work(request: dict[str, Any]) -> Work:
    secret = SiteSecret(bytes.fromhex(request["secret"]))

    def work(path: str, size_bytes: int) -> Answer:
        try:
            listed = read_directory(Path(path), secret)
        except (MemoryError, RecursionError):
            listed = Reason.Q_DECODE_LIMIT
        except Exception:  # as above
            listed = Reason.Q_READ
        return {"code": listed.name} if isinstance(listed, Reason) else {"listed": listed}, b""

    return work


_WORK: Final = {"header": _header_work, "slice": _slice_work, "uid": _uid_work, "directory": _directory_work}

if __name__ == "__main__":
    main()
    sys.exit(0)
