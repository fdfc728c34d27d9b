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
from site_client.ingest.files.addresses import parse_address
from site_client.ingest.files.decoders import decodable
from site_client.ingest.files.directory import read_directory
from site_client.ingest.files.frames import LENGTHS, read_lengths, write_frame
from site_client.ingest.files.header import MultiframeHeader
from site_client.ingest.files.header_pass import read_header, read_sop_uid
from site_client.ingest.files.pixels import read_slice
from site_client.ingest.files.sources import ARCHIVES
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import FILE_BYTES_MAX, Rules

MEMORY_BYTES_MAX: Final = 3 << 29  # of address space, of which the libraries take a fifth
CPU_S_MAX: Final = {
    "header": 10.0,
    "uid": 5.0,
    "directory": 60.0,
    "archive": 60.0,
    "slice": 10.0,
}  # a file; a header takes a thousandth of a second, one of 500 frames a second
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

Answer = tuple[dict[str, Any], bytes]
Read = Callable[[Path, int], Answer]  # of a file and its size in bytes


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
            reader_of, of_a_fault = _TASKS[request["task"]]
            read = reader_of(request)
            for path, size_bytes in request["files"]:
                # By processor time: another program's load, or a pause by the idle gate, is no fault of the file.
                signal.setitimer(signal.ITIMER_PROF, CPU_S_MAX[request["task"]])
                table, data = _answer(read, of_a_fault, path, size_bytes)
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


def _answer(read: Read, of_a_fault: Reason, path: str, size_bytes: int) -> Answer:
    """Reads one file; whatever it makes a library raise is a fault of this file alone."""
    try:
        return read(Path(path), size_bytes)
    except SeriesUnreadable as error:
        return {"code": error.code}, b""
    except (MemoryError, RecursionError):
        return {"code": Reason.Q_DECODE_LIMIT.name}, b""
    except Exception:
        return {"code": of_a_fault.name}, b""


def _header_reader(request: dict[str, Any]) -> Read:
    secret, rules = SiteSecret(bytes.fromhex(request["secret"])), msgspec.convert(request["rules"], Rules)

    def read(path: Path, size_bytes: int) -> Answer:
        header = read_header(path, size_bytes, secret, rules)
        if isinstance(header, MultiframeHeader):
            # As bytes: the headers of many frames are longer than an answer's JSON may be.
            return {"frames": True}, "\n".join(frame.to_json() for frame in header.frames).encode()
        return {"code": header.name} if isinstance(header, Reason) else {"header": header.to_json()}, b""

    return read


def _slice_reader(request: dict[str, Any]) -> Read:
    step = request["step"]

    def read(path: Path, size_bytes: int) -> Answer:
        image = read_slice(path, size_bytes, step)
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

    return read


def _uid_reader(_request: dict[str, Any]) -> Read:
    def read(path: Path, size_bytes: int) -> Answer:
        uid = read_sop_uid(path, size_bytes, FILE_BYTES_MAX)
        return {"code": uid.name} if isinstance(uid, Reason) else {"uid": uid}, b""

    return read


def _directory_reader(request: dict[str, Any]) -> Read:
    secret = SiteSecret(bytes.fromhex(request["secret"]))

    def read(path: Path, _size_bytes: int) -> Answer:
        listed = read_directory(path, secret)
        # As bytes: a list of many images is longer than an answer's JSON may be.
        return ({"code": listed.name}, b"") if isinstance(listed, Reason) else ({}, msgspec.json.encode(listed))

    return read


def _archive_reader(_request: dict[str, Any]) -> Read:
    def read(path: Path, _size_bytes: int) -> Answer:
        return {}, msgspec.json.encode(ARCHIVES.members(parse_address(path)))

    return read


# By task: what reads a file, and the code of a file that makes it fail.
_TASKS: Final[dict[str, tuple[Callable[[dict[str, Any]], Read], Reason]]] = {
    "header": (_header_reader, Reason.Q_READ),
    "slice": (_slice_reader, Reason.Q_DECODE),
    "uid": (_uid_reader, Reason.Q_READ),
    "directory": (_directory_reader, Reason.Q_READ),
    "archive": (_archive_reader, Reason.Q_ARCHIVE_DAMAGED),
}

if __name__ == "__main__":
    main()
    sys.exit(0)
