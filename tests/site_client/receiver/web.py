"""A DICOMweb server on the loopback interface for tests: what a good one answers, and what a hostile one may."""

import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom.dataset import FileDataset


class WebServer(ThreadingHTTPServer):
    """Holds images, and counts what it was asked for."""

    daemon_threads = True

    def __init__(self, images: list[FileDataset], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.scheme = "http" if tls is None else "https"
        self.images = images
        self.asked: list[str] = []
        self.retrieved: list[str] = []
        self.authorization: set[str | None] = set()
        self.answer: tuple[int, dict[str, str], bytes] | None = None  # to everything, instead of the right one
        self.retrieval: bytes | None = None  # of every image, instead of its own bytes
        self.page_max = 1000
        self.hold = threading.Event()  # retrievals wait for it
        self.hold.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: a receiver was killed, or refused an answer."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.server_address[1]}/dicom-web"


@contextmanager
def serving(images: list[FileDataset], tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    with WebServer(images, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.hold.set()
            server.shutdown()
            thread.join()


def part10(data: FileDataset) -> bytes:
    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _json(data: FileDataset, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        f"{data[name].tag:08X}": {"vr": data[name].VR, "Value": [str(data[name].value)]}
        for name in names
        if name in data
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.server.asked.append(self.path)
        self.server.authorization.add(self.headers["Authorization"])
        if self.server.answer is not None:
            status, headers, body = self.server.answer
            self._send(status, headers, body)
            return
        path = re.findall(r"(studies|series|instances)(?:/([0-9.]+))?", url.path)
        known = dict(path)
        images = [
            data
            for data in self.server.images
            if known.get("studies") in ("", data.StudyInstanceUID)
            and known.get("series", "") in ("", data.SeriesInstanceUID)
            and known.get("instances", "") in ("", data.SOPInstanceUID)
        ]
        if known.get("instances"):
            self.server.hold.wait(30)
            self.server.retrieved.append(known["instances"])
            part = self.server.retrieval or part10(images[0])
            body = b"\r\n--B0\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n--B0--\r\n"
            self._send(200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=B0'}, body)
            return
        level = path[-1][0]
        names = {
            "studies": ("StudyInstanceUID", "StudyDate"),
            "series": ("SeriesInstanceUID", "Modality", "BodyPartExamined"),
            "instances": ("SOPInstanceUID", "SOPClassUID"),
        }[level]
        rows = list({str(row): row for row in (_json(data, names) for data in images)}.values())
        query = parse_qs(url.query)
        offset = int(query["offset"][0])
        rows = rows[offset : offset + min(self.server.page_max, int(query["limit"][0]))]
        self._send(
            200 if rows else 204, {"Content-Type": "application/dicom+json"}, json.dumps(rows).encode() if rows else b""
        )

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for "localhost", and the PEM file of its CA."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca, both = folder / "ca.pem", folder / "both.pem"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    both.write_bytes(
        ca.read_bytes()
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context, ca
