"""The attempts of a service within its confinement: python -m site_client.prove.attempts SIDE FILE.

It prints one JSON line for each attempt: whether it must be refused, and the kernel's answer (an errno's name, or null
where the attempt succeeded). It also makes attempts that must succeed: a probe that can do nothing proves nothing. It
lists folders and opens files, reads no byte of an image, and leaves no file.
"""

import ctypes
import errno
import mmap
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from site_client.config import SiteSettings, load
from site_client.logging_setup import log_to_stderr
from site_client.receiver.settings import ReceiverSettings
from site_client.receiver.settings import load as load_receiver
from site_client.typed_json import encode

_TEST_NET: Final = ("192.0.2.1", 443)  # RFC 5737: an address that no machine has


@dataclass(frozen=True)
class Attempt:
    """One attempt. `answer`: an errno's name, None when it succeeded."""

    what: str
    must_fail: bool
    answer: str | None

    @property
    def as_it_must(self) -> bool:
        """Whether the kernel's answer is the one that the wall demands."""
        return self.must_fail == (self.answer is not None)


def of_trainer(settings: SiteSettings) -> Iterator[Attempt]:
    """Make the trainer's attempts: no socket but AF_UNIX, no write to the export, no key of the agent."""
    export = settings.folders.export
    yield _try("open a socket of the Internet (AF_INET)", True, lambda: _connect(socket.AF_INET))
    yield _try("open a socket of the Internet (AF_INET6)", True, lambda: _close(socket.socket(socket.AF_INET6)))
    yield _try("open a socket to the kernel's network (AF_NETLINK)", True, lambda: _close(_raw(socket.AF_NETLINK)))
    yield _try("open a raw socket (AF_PACKET)", True, lambda: _close(_raw(socket.AF_PACKET)))
    yield _try("write into the export", True, lambda: _write(export))
    yield _try("read the agent's keys", True, lambda: _look_into(settings.folders.agent / "identity"))
    # A control: a probe without any rights would pass every attempt above.
    yield _try("read the export", False, lambda: _look_into(export))
    yield _try("open a socket on this machine (AF_UNIX)", False, lambda: _close(socket.socket(socket.AF_UNIX)))


def of_agent(settings: SiteSettings) -> Iterator[Attempt]:
    """Make the agent's attempts: no image, no file made of one, no memory that is written and run."""
    yield _try("read the export", True, lambda: _look_into(settings.folders.export))
    for number, path in enumerate(settings.folders.labels, 1):
        yield _try(f"read the labels ({number})", True, partial(_look_into, path))
    for number, path in enumerate(settings.folders.opt_outs, 1):
        yield _try(f"read the list of patients who opted out ({number})", True, partial(_look_into, path))
    yield _try("read the catalog", True, lambda: _look_into(settings.folders.trainer))
    yield _try("read the prepared images", True, lambda: _look_into(settings.folders.cache))
    yield _try("make memory that can be written and run", True, _writable_code)
    yield _try("read its own state", False, lambda: _look_into(settings.folders.agent))
    yield _try("open a socket of the Internet (AF_INET)", False, lambda: _close(socket.socket(socket.AF_INET)))


def of_receiver(settings: ReceiverSettings, aggregator: str, hidden: list[Path]) -> Iterator[Attempt]:
    """Make the receiver's attempts: no way to the coordinator, to a stranger, or to anything of the other two.

    Args:
        settings: Of the receiver.
        aggregator: The aggregator's IP address; empty where it is not known.
        hidden: What it must not see: keys, spool, catalog, prepared images, site.toml.
    """
    if aggregator:
        yield _try("send a packet to the coordinator", True, lambda: _send_packet(aggregator))
    yield _try("send a packet to a stranger", True, lambda: _send_packet(_TEST_NET[0]))
    for path in hidden:
        yield _try(f"look into {path}", True, partial(_look_into, path))
    yield _try("make memory that can be written and run", True, _writable_code)
    yield _try("write into its own folder", False, lambda: _write(settings.incoming))
    yield _try("open a socket of the Internet (AF_INET)", False, lambda: _close(socket.socket(socket.AF_INET)))


SIDES: dict[str, Callable[[SiteSettings], Iterator[Attempt]]] = {"trainer": of_trainer, "agent": of_agent}


def main() -> None:
    """Make the attempts of one side, and print them."""
    log_to_stderr(tracebacks=False)
    side, config, *rest = sys.argv[1:]
    if side == "receiver":
        aggregator, *hidden = rest
        attempts = of_receiver(load_receiver(Path(config)), aggregator, [Path(path) for path in hidden])
    else:
        attempts = SIDES[side](load(Path(config)))
    for attempt in attempts:
        print(encode(attempt).decode(), flush=True)


def _try(what: str, must_fail: bool, act: Callable[[], None]) -> Attempt:
    try:
        act()
    except OSError as error:
        return Attempt(what, must_fail, errno.errorcode.get(error.errno or 0, type(error).__name__))
    return Attempt(what, must_fail, None)


def _connect(family: socket.AddressFamily) -> None:
    with socket.socket(family) as attempted:
        attempted.settimeout(2)
        try:
            attempted.connect(_TEST_NET)
        except TimeoutError:  # packets left, and no answer came
            return


def _send_packet(address: str) -> None:
    """Send one datagram. A firewall on packets answers it at once; of a connection it drops the packets silently."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as attempted:
        attempted.sendto(b"", (address, _TEST_NET[1]))


def _raw(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_RAW)


def _close(opened: socket.socket) -> None:
    opened.close()


def _look_into(path: Path) -> None:
    """List a folder, or open a file for reading."""
    if path.is_dir():
        with os.scandir(path) as entries:
            next(entries, None)
        return
    os.close(os.open(path, os.O_RDONLY))


def _write(folder: Path) -> None:
    path = folder / f".hemofed-prove-{os.getpid()}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    path.unlink()


def _writable_code() -> None:
    """Call mmap(2) with PROT_WRITE and PROT_EXEC, past Python's own checks."""
    # Python's mmap module refuses some combinations itself; only the kernel's answer counts.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    address = libc.mmap(None, mmap.PAGESIZE, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    libc.munmap(ctypes.c_void_p(address), mmap.PAGESIZE)


if __name__ == "__main__":
    main()
