"""Evidence of this machine: a report of the AMD secure processor, from a virtual machine of SEV-SNP.

Linux, include/uapi/linux/sev-guest.h: the ioctl SNP_GET_REPORT of /dev/sev-guest. The certificates are the two files of
AMD's key distribution service, kdsintf.amd.com, which a person puts here: this machine reaches the aggregator alone.
"""

import ctypes
import fcntl
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from federation.v1.rounds_pb2 import SnpEvidence

from site_client.errors import EvidenceMissing
from site_client.untrusted_files import read_regular

Attest = Callable[[bytes], SnpEvidence]  # 64 bytes of report data -> evidence that holds them

_DEVICE: Final = "/dev/sev-guest"
_SNP_GET_REPORT: Final = 0xC0205300  # _IOWR('S', 0, 32 bytes)
_RESPONSE_BYTES, _HEADER_BYTES, _REPORT_BYTES = 4000, 32, 1184
_FILE_BYTES_MAX: Final = 64 * 1024


class SnpMachine:
    """Makes evidence. `certificates` is a folder with `vcek.der` and `cert_chain.pem`, as AMD's service gives them."""

    def __init__(self, certificates: Path) -> None:
        self._certificates = certificates

    def __call__(self, report_data: bytes) -> SnpEvidence:
        """Have the processor sign a report with these 64 bytes in it.

        Raises:
            EvidenceMissing: This is no such machine, or a certificate is not there.
        """
        report = _report(report_data)
        try:
            vcek = read_regular(self._certificates / "vcek.der", _FILE_BYTES_MAX)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CryptographyDeprecationWarning)
                pem = read_regular(self._certificates / "cert_chain.pem", _FILE_BYTES_MAX)
                ask, ark = (one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem))
        except (OSError, ValueError) as error:
            raise EvidenceMissing(
                f"expected vcek.der and cert_chain.pem (ASK, then ARK) in {self._certificates}, as AMD's service gives "
                f"them ({type(error).__name__}); see docs/HOSPITAL.md"
            ) from None
        return SnpEvidence(report=report, vcek=vcek, ask=ask, ark=ark)


def _report(report_data: bytes) -> bytes:
    # struct snp_report_req: user_data[64], vmpl, rsvd[28].
    request = ctypes.create_string_buffer(report_data.ljust(96, b"\x00"), 96)
    response = ctypes.create_string_buffer(_RESPONSE_BYTES)
    # struct snp_guest_request_ioctl: msg_version, req_data, resp_data, exitinfo2.
    call = bytearray(struct.pack("<B7xQQQ", 1, ctypes.addressof(request), ctypes.addressof(response), 0))
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _SNP_GET_REPORT, call)
        finally:
            os.close(device)
    except OSError as error:
        raise EvidenceMissing(
            f"the plan releases models to virtual machines of AMD SEV-SNP only, and {_DEVICE} gives no report here "
            f"({os.strerror(error.errno or 0).lower()}); see docs/HOSPITAL.md"
        ) from None
    status, size_bytes = struct.unpack_from("<II", response.raw)
    if status != 0 or size_bytes != _REPORT_BYTES:
        raise EvidenceMissing(f"the secure processor refuses a report (status {status}); restart this machine")
    return response.raw[_HEADER_BYTES : _HEADER_BYTES + _REPORT_BYTES]
