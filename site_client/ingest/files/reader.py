"""One reader process as the rest of hemofed asks it about batches of files. `readers` holds several.

Whatever a file does to that process, its answer is a code, and a fresh worker reads the next file.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from site_client.errors import IngestError
from site_client.ingest.files.addresses import ListedMember
from site_client.ingest.files.answers import Answer, header_of, listed_of, members_of, slice_of, uid_of
from site_client.ingest.files.frames import JSON_BYTES_MAX, LENGTHS, read_lengths, write_frame
from site_client.ingest.files.header import Header
from site_client.ingest.files.slices import Slice
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import FILE_BYTES_MAX, Rules

STALL_S: Final = 60  # a file that gives no answer for so long is left, such as one on a share that hangs
START_S: Final = 120  # for the imports of a new process, on a machine that is busy
_PIPE_BYTES: Final = 1 << 20  # one image fits in: the reader process decodes the next one meanwhile
_FILES_A_REQUEST: Final = 1000  # whose paths fit into a pipe, too: no request is half sent when its worker ends

Result = TypeVar("Result")


class _Ended(Exception):
    """The worker ended while it read a file. `signal`: which signal ended it; 0: it was ended for its silence."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


class Reader:
    """One reader process, started at the first question or by `start`. For one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._decoders: tuple[str, ...] | None = None  # None: the process has not said yet that it is ready
        self._received = bytearray()
        self._poll = select.poll()
        self._requests = 0  # sent so far; the last one's number

    def decoders(self) -> tuple[str, ...]:
        """Lists the transfer syntaxes that can be decoded here.

        Raises:
            IngestError: No reader process can be started.
        """
        self._started()
        # `_started` waits for them.
        assert self._decoders is not None
        return self._decoders

    def headers(self, files: Sequence[tuple[Path, int]], secret: SiteSecret, rules: Rules) -> list[Header | Reason]:
        """Reads the headers of files, each given with its size in bytes. See `header_pass.read_header`.

        Raises:
            IngestError: No reader process can be started.
        """
        request = {"task": "header", "secret": secret.value.hex(), "rules": msgspec.to_builtins(rules)}
        # `header_of` gives nothing else; mypy does not part its union from the Reason.
        return cast(list[Header | Reason], self._ask(request, files, header_of, Reason.Q_READ))

    def slices(self, paths: Sequence[Path], step: int = 1) -> list[Slice | Reason]:
        """Decodes files, in order. See `pixels.read_slice`.

        Raises:
            IngestError: No reader process can be started.
        """
        files = [(path, FILE_BYTES_MAX) for path in paths]
        return self._ask({"task": "slice", "step": step}, files, partial(slice_of, step), Reason.Q_DECODE)

    def sop_uids(self, paths: Sequence[Path]) -> list[str | Reason]:
        """Reads the SOP instance UID of each file. See `header_pass.read_sop_uid`.

        Raises:
            IngestError: No reader process can be started.
        """
        return self._ask({"task": "uid"}, [(path, FILE_BYTES_MAX) for path in paths], uid_of, Reason.Q_READ)

    def directories(self, paths: Sequence[Path], secret: SiteSecret) -> list[dict[str, list[str]] | Reason]:
        """Lists the images of each DICOMDIR, by series. See `directory.read_directory`.

        Raises:
            IngestError: No reader process can be started.
        """
        files = [(path, FILE_BYTES_MAX) for path in paths]
        return self._ask({"task": "directory", "secret": secret.value.hex()}, files, listed_of, Reason.Q_READ)

    def archive(self, path: Path) -> list[ListedMember] | Reason:
        """Lists the members of an archive. See `archives.Archives.members`.

        Raises:
            IngestError: No reader process can be started.
        """
        files = [(path, FILE_BYTES_MAX)]
        (listed,) = self._ask({"task": "archive"}, files, members_of, Reason.Q_ARCHIVE_DAMAGED, Reason.Q_ARCHIVE_LIMIT)
        return listed

    def start(self) -> None:
        """Starts the process if there is none, and does not wait: it imports for a second, as its caller may.

        Raises:
            IngestError: No reader process can be started.
        """
        if self._process is not None:
            return
        # One thread: the process forks, and its decoders use no second one. The path: as this process found us.
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        # -P: the folder where a person types `predict` may hold files of strangers, and is no place for modules.
        command = [sys.executable, "-P", "-m", "site_client.ingest.files.reader_process"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
        except OSError:
            raise _no_process() from None
        self._received, self._poll = bytearray(), select.poll()
        self._poll.register(_handle(self._process.stdout), select.POLLIN)
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a limit of the system: a smaller pipe only is slower
                fcntl.fcntl(_handle(stream), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def close(self) -> None:
        """Ends the reader process; the next question starts another one."""
        process, self._process, self._decoders = self._process, None, None
        if process is None:
            return
        # Its worker dies with it.
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _ask(
        self,
        request: dict[str, Any],
        files: Sequence[tuple[Path, int]],
        result_of: Callable[[Answer, bytearray], Result | Reason],
        of_a_crash: Reason,
        of_a_limit: Reason = Reason.Q_DECODE_LIMIT,
    ) -> list[Result | Reason]:
        results: list[Result | Reason] = []
        tried_again = -1
        while len(results) < len(files):
            try:
                sent = files[len(results) : len(results) + _FILES_A_REQUEST]
                until = len(results) + len(sent)
                self._send(request, sent)
                while len(results) < until:
                    results.append(result_of(*self._answer(self._requests)))
            except _Ended as ended:
                # SIGKILL comes from outside, as when the machine runs out of memory: the file gets a second try.
                if ended.signal == signal.SIGKILL and tried_again != len(results):
                    tried_again = len(results)
                    continue
                limits = (0, signal.SIGKILL, signal.SIGPROF)
                results.append(of_a_limit if ended.signal in limits else of_a_crash)
            except OSError:  # the whole process was ended, likewise from outside
                self.close()
                if tried_again == len(results):
                    results.append(of_a_crash)
                tried_again = len(results)
            except (ValueError, KeyError, TypeError, msgspec.MsgspecError):  # an answer that makes no sense
                self.close()
                results.append(of_a_crash)
        return results

    def _send(self, request: dict[str, Any], files: Sequence[tuple[Path, int]]) -> None:
        requests, _ = self._started()
        self._requests += 1
        listed = [(str(path), size_bytes) for path, size_bytes in files]
        write_frame(requests, {**request, "id": self._requests, "files": listed})

    def _started(self) -> tuple[int, int]:
        """Starts the process if there is none, and waits until it is ready.

        Returns:
            The descriptors for requests and for answers.
        """
        self.start()
        if self._decoders is None:
            try:
                self._decoders = self._answer(0)[0].decoders
            except (OSError, ValueError, msgspec.MsgspecError, _Ended):
                self.close()
                raise _no_process() from None
        # `start` made it.
        assert self._process is not None
        return _handle(self._process.stdin), _handle(self._process.stdout)

    def _answer(self, request: int) -> tuple[Answer, bytearray]:
        """Waits for one frame.

        Args:
            request: Its number; 0: the first frame of a process. An answer to an earlier request, which ended too soon,
                must not pass for one to this.

        Raises:
            _Ended: The worker ended before its answer.
            ValueError: The frame is larger than any answer.
            OSError: The process ended.
        """
        patience_s = STALL_S if request else START_S
        while True:
            text_bytes, data_bytes = read_lengths(bytes(self._read(LENGTHS.size, patience_s)))
            # int32 pixels of the largest image.
            if text_bytes > JSON_BYTES_MAX or data_bytes > 4 * FILE_BYTES_MAX:
                raise ValueError("a frame beyond its limits")
            answer = msgspec.json.decode(self._read(text_bytes, patience_s), type=Answer)
            if answer.died:
                raise _Ended(answer.died)
            data = self._read(data_bytes, patience_s)
            if answer.id == request:
                return answer, data

    def _read(self, size: int, patience_s: int) -> bytearray:
        # _started set it, or this reader would have no answer to wait for.
        assert self._process is not None
        handle = _handle(self._process.stdout)
        silent_s = 0
        while len(self._received) < size:
            # Seconds are counted and not measured: while the idle gate suspends both processes, none passes.
            if not self._poll.poll(1000):
                silent_s += 1
                if silent_s >= patience_s:
                    self.close()
                    raise _Ended(0)
                continue
            # Whatever is there: several answers about headers come in one piece.
            part = os.read(handle, max(_PIPE_BYTES, size - len(self._received)))
            if not part:
                raise OSError("the reader process ended")
            self._received += part
        data = self._received[:size]
        del self._received[:size]
        return data


def _handle(stream: Any) -> int:
    return int(stream.fileno())


def _no_process() -> IngestError:
    return IngestError(
        "expected a process that reads the export, got none; see that this installation is whole and that the machine "
        "has memory left"
    )
