"""The archive's DICOMweb server: QIDO-RS searches (PS3.18 section 10.6) and WADO-RS retrieval of one instance (10.4).

Made of the standard library: dicomweb-client follows redirects and holds whole answers in memory (decision 0023). Here
no redirect is followed, so the credential goes to the one host of `dicomweb.url`; every answer has a size and a time.
"""

import base64
import http.client
import os
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from site_client.errors import ArchiveError, ConfigRefused
from site_client.receiver.multipart import MultipartRefused, boundary_of, write_part
from site_client.receiver.settings import DicomwebSettings

_PAGE: Final = 200  # matches asked for at a time
_PAGES_MAX: Final = 500
_JSON_MAX: Final = 1 << 25
_JSON_VALUES_MAX: Final = 2_000_000  # the smallest takes one byte of JSON and fifty of memory
_JSON_S: Final = 120.0
_HEAD_S: Final = 120.0  # for the head of an answer, however slowly its lines come
_OBJECT_S: Final = 1_800.0
_READ: Final = 1 << 16
_UID: Final = re.compile(r"[0-9.]{1,64}")
_TAG: Final = re.compile(r"[0-9A-F]{8}")
_PREAMBLE: Final = 132
# As the archive holds it: without this parameter a server may transcode (PS3.18 section 8.7.3.5.2).
_ACCEPT_OBJECT: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class Pace:
    """A limit of bytes a second, over all connections."""

    def __init__(self, bytes_per_s: int) -> None:
        """Take the limit; 0: none."""
        self._bytes_per_s, self._free_at_s, self._lock = bytes_per_s, 0.0, threading.Lock()

    def spend(self, count: int) -> None:
        """Wait until so many bytes are due."""
        if not self._bytes_per_s:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at_s = max(now, self._free_at_s) + count / self._bytes_per_s
            wait_s = self._free_at_s - now
        time.sleep(max(0.0, wait_s))


class Archive:
    """One connection to the server, reused and made anew after a failure. For one thread."""

    def __init__(self, settings: DicomwebSettings, pace: Pace) -> None:
        """Take the settings; the first request connects.

        Raises:
            ConfigRefused: The CA or the credential cannot be read.
        """
        self._settings, self._pace = settings, pace
        self._url = urlsplit(settings.url)
        self._context = _tls(settings) if self._url.scheme == "https" else None
        self._headers = _authorization(settings)
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def search(self, path: str, query: dict[str, str], fields: tuple[str, ...]) -> Iterator[dict[str, list[str]]]:
        """Search, page by page.

        Args:
            path: Below the URL, such as "studies".
            query: Attribute keywords and values.
            fields: Attributes that the answer shall have besides the usual ones.

        Yields:
            For each match the values of its attributes as text, by tag in upper-case hex. Sequences and names are left
            out.

        Raises:
            ArchiveError: There is no answer, or not the one of a QIDO-RS server.
        """
        offset, before = 0, b""
        for _ in range(_PAGES_MAX):
            asked = [*query.items(), *(("includefield", name) for name in fields), ("limit", _PAGE), ("offset", offset)]
            page = self._json(f"{path}?{urlencode(asked)}")
            matches = _matches(page)
            # A short page is not the last one: a server may have a lower limit of its own, or know no pages at all.
            if not matches or page == before:
                return
            yield from matches
            offset, before = offset + len(matches), page
        raise ArchiveError("the archive's search does not end; lower dicomweb.days_back")

    def fetch(self, study: str, series: str, instance: str, file: IO[bytes], size_max: int) -> None:
        """Write one instance into a file, as the archive holds it.

        Raises:
            ArchiveError: There is no answer, or it is no DICOM file of at most `size_max` bytes.
            OSError: The file cannot be written.
        """
        path = f"studies/{quote(study)}/series/{quote(series)}/instances/{quote(instance)}"
        answer = self._ask(path, _ACCEPT_OBJECT)
        ends_at = time.monotonic() + _OBJECT_S

        def read() -> bytes:
            data = self._read(answer, ends_at)
            self._pace.spend(len(data))
            return data

        try:
            boundary = boundary_of(answer.headers.get("Content-Type", ""))
            size = write_part(read, boundary, file, size_max)
        except MultipartRefused as error:
            self.close()
            raise ArchiveError(f"the archive's answer to a retrieval cannot be used: {error}") from None
        if size <= _PREAMBLE:
            raise ArchiveError("the archive's answer to a retrieval cannot be used: it is no DICOM file")
        # The connection is free again only after the last byte; an answer that goes on costs it.
        if read() and read():
            self.close()

    def _json(self, path: str) -> bytes:
        answer = self._ask(path, "application/dicom+json")
        if answer.status == http.client.NO_CONTENT:  # no match
            answer.read()
            return b"[]"
        ends_at, body = time.monotonic() + _JSON_S, bytearray()
        while data := self._read(answer, ends_at):
            body += data
            if len(body) > _JSON_MAX:
                self.close()
                raise ArchiveError(f"the archive's answer to a search is over {_JSON_MAX >> 20} MiB")
        return bytes(body)

    def _ask(self, path: str, accept: str) -> http.client.HTTPResponse:
        target = f"{self._url.path.rstrip('/')}/{path}"
        for is_last in (False, True):
            is_reused = self._connection is not None
            try:
                self._connection = self._connection or self._connect()
                # Before the timer: the connection has a socket from here on.
                self._connection.request("GET", target, headers={**self._headers, "Accept": accept})
                with _shut_after(self._connection, _HEAD_S):
                    answer = self._connection.getresponse()
                break
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A server may close a connection between two requests; a new one gets one try.
                if is_last or not is_reused:
                    raise ArchiveError(f"the archive does not answer ({_kind(error)}); see dicomweb.url") from None
        if answer.status in (http.client.OK, http.client.NO_CONTENT):
            return answer
        self.close()
        if 300 <= answer.status < 400:
            raise ArchiveError("the archive redirects, which is not followed; set dicomweb.url to the final address")
        if answer.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            raise ArchiveError(f"the archive refuses (HTTP {answer.status}); see dicomweb.credential")
        raise ArchiveError(f"the archive answers HTTP {answer.status}; see dicomweb.url")

    def _read(self, answer: http.client.HTTPResponse, ends_at: float) -> bytes:
        if time.monotonic() > ends_at:
            self.close()
            raise ArchiveError("the archive's answer takes too long")
        try:
            # read1 and not read, which would wait for all of them, whatever the deadline.
            if not (data := answer.read1(_READ)):
                answer.close()  # read1 does not; the connection would stay taken
            return data
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ArchiveError(f"the archive's answer broke off ({_kind(error)})") from None

    def _connect(self) -> http.client.HTTPConnection:
        # The URL was checked when the settings were read.
        assert self._url.hostname is not None
        host, port, stall_s = self._url.hostname, self._url.port, self._settings.stall_s
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=stall_s)
        return http.client.HTTPSConnection(host, port, timeout=stall_s, context=self._context)


@contextmanager
def _shut_after(connection: http.client.HTTPConnection, wait_s: float) -> Iterator[None]:
    """Shut a connection that is not done in time: `http.client` reads lines, each with a time of its own."""

    def shut() -> None:
        with suppress(OSError):  # it was closed meanwhile
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(wait_s, shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _matches(body: bytes) -> list[dict[str, list[str]]]:
    """Read DICOM JSON, PS3.18 annex F."""
    if sum(map(body.count, (b",", b"[", b"{"))) > _JSON_VALUES_MAX:
        raise ArchiveError(f"the archive's answer to a search has over {_JSON_VALUES_MAX} values")
    try:
        table = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        raise ArchiveError("the archive's answer to a search is not JSON; see dicomweb.url") from None
    if not isinstance(table, list):
        raise ArchiveError("the archive's answer to a search is no list; see dicomweb.url")
    matches = []
    for item in table:
        values = {}
        for tag, attribute in item.items() if isinstance(item, dict) else ():
            found = attribute.get("Value") if isinstance(attribute, dict) else None
            if _TAG.fullmatch(tag) and isinstance(found, list):
                values[tag] = [str(value) for value in found if isinstance(value, str | int)]
        matches.append(values)
    return matches


def uid_of(match: dict[str, list[str]], tag: str) -> str:
    """Return a UID of a match; empty where it has none that may stand in a path."""
    (uid, *_) = match.get(tag) or [""]
    return uid if _UID.fullmatch(uid) and uid.strip(".") else ""


def _kind(error: Exception) -> str:
    """Say what failed without the text of an exception, which may quote an answer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not of ca_file"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return "it took too long" if isinstance(error, TimeoutError) else type(error).__name__


def _tls(settings: DicomwebSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except OSError:
        raise ConfigRefused("receiver.toml: dicomweb.ca_file is a PEM file that the receiver can read") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _authorization(settings: DicomwebSettings) -> dict[str, str]:
    if settings.credential == "none":
        return {}
    path = Path(settings.credential_file)
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text, mode = "", 0
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigRefused("receiver.toml: dicomweb.credential_file is readable by everybody; chmod 0640 it")
    wanted = "user:password" if settings.credential == "basic" else "a token"
    if not text.isprintable() or not text or (settings.credential == "basic" and ":" not in text):
        raise ConfigRefused(f"receiver.toml: dicomweb.credential_file holds one line, {wanted}, and can be read")
    if settings.credential == "bearer":
        return {"Authorization": f"Bearer {text}"}
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}
