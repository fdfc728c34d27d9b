"""A slow, lossy, breaking line between two network namespaces: this kernel's netem, where there is none.

Each namespace has a TUN device; one thread carries the IP packets between them: a token bucket with a short queue, a
delay, seeded loss, and cuts. TCP, TLS and gRPC on both sides are the real ones, and so are their timers.

A cut is silence for some seconds, after which the far side has another public address, as after a new dial-in: what
was connected before is never heard of again. Here `near` is the aggregator's side, `far` the hospital's.
"""

import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

NEAR = "10.77.0.1"
FAR = "10.77.0.2"  # the far side's own address
PUBLIC = IPv4Address("10.77.1.1")  # its address as the near side sees it; the next one after every cut
SOURCE, DESTINATION = slice(12, 16), slice(16, 20)  # IPv4 header, RFC 791
TCP_CHECKSUM = 16
TUN, NO_HEADER, SET_INTERFACE = 0x0001, 0x1000, 0x400454CA
LOOK_S = 0.2


@dataclass(frozen=True)
class Quality:
    """Properties of a line. Rates and losses hold for each direction."""

    bits_per_s: float = 1e6
    loss: float = 0.05
    delay_s: float = 0.04
    queue_s: float = 0.1  # the bottleneck queues for so long before it drops
    cut_every_s: float = 20.0
    cut_s: float = 4.0
    seed: int = 7


@dataclass
class Direction:
    """One direction of the line. `bytes` and `packets` count lost packets too, because they were sent and paid for."""

    quality: Quality
    chance: random.Random
    bytes: int = 0
    packets: int = 0
    lost: int = 0
    overflowed: int = 0
    free_at: float = 0.0
    under_way: list[tuple[float, int, bytearray]] = field(default_factory=list)

    def take(self, packet: bytearray, now: float) -> None:
        self.bytes += len(packet)
        self.packets += 1
        leaves_at = max(now, self.free_at) + len(packet) * 8 / self.quality.bits_per_s
        if leaves_at - now > self.quality.queue_s:
            self.overflowed += 1
            return
        self.free_at = leaves_at
        if self.chance.random() < self.quality.loss:
            self.lost += 1
        else:
            heapq.heappush(self.under_way, (leaves_at + self.quality.delay_s, self.packets, packet))

    def arrived(self, now: float) -> Iterator[bytearray]:
        while self.under_way and self.under_way[0][0] <= now:
            yield heapq.heappop(self.under_way)[2]


class Line:
    """The line while it is up. `cuts`: cuts that are over."""

    def __init__(self, quality: Quality, near: int, far: int) -> None:
        self.quality, self.cuts = quality, 0
        self.up, self.down = (Direction(quality, random.Random(quality.seed + way)) for way in (0, 1))
        self.breaking = False  # set by the test once cuts may begin
        self._near, self._far = near, far
        self._public = PUBLIC.packed
        self._next_cut = self._back_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="line", daemon=True)
        self._thread.start()

    def hang_up(self) -> None:
        self._over.set()
        self._thread.join()

    def _carry(self) -> None:
        while not self._over.is_set():
            due = [way.under_way[0][0] for way in (self.up, self.down) if way.under_way]
            wait_s = min([LOOK_S, *(max(0.0, at - time.monotonic()) for at in due)])
            ready, _, _ = select.select([self._near, self._far], [], [], wait_s)
            now = time.monotonic()
            silent = self._is_cut(now)
            for device, way in ((self._far, self.up), (self._near, self.down)):
                if device in ready:
                    packet = bytearray(os.read(device, 65_536))
                    if not silent and packet[0] >> 4 == 4:  # a fresh device also sends IPv6
                        way.take(packet, now)
            for packet in self.up.arrived(now):
                os.write(self._near, readdressed(packet, SOURCE, self._public))
            for packet in self.down.arrived(now):
                if packet[DESTINATION] == self._public:  # packets to an earlier address are lost
                    os.write(self._far, readdressed(packet, DESTINATION, IPv4Address(FAR).packed))

    def _is_cut(self, now: float) -> bool:
        if self._back_at and now >= self._back_at:
            self.cuts, self._back_at = self.cuts + 1, 0.0
            self._public = (PUBLIC + self.cuts).packed
        if self.breaking and not self._next_cut:
            self._next_cut = now + self.quality.cut_every_s
        if self._next_cut and now >= self._next_cut:
            self._next_cut, self._back_at = now + self.quality.cut_every_s, now + self.quality.cut_s
            self.up.under_way.clear()
            self.down.under_way.clear()
        return self._back_at > 0.0


def readdressed(packet: bytearray, where: slice, address: bytes) -> bytearray:
    """Exchanges one address of a packet, and corrects the checksums that cover it (RFC 1624, equation 3)."""
    before = struct.unpack("!2H", packet[where])
    after = struct.unpack("!2H", address)
    header_bytes, protocol = (packet[0] & 0x0F) * 4, packet[9]
    covered = [10] + ([header_bytes + TCP_CHECKSUM] if protocol == 6 else [])
    for at in covered:
        total = ~struct.unpack_from("!H", packet, at)[0] & 0xFFFF
        for old, new in zip(before, after, strict=True):
            total += (~old & 0xFFFF) + new
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into("!H", packet, at, ~total & 0xFFFF)
    packet[where] = address
    return packet


def missing() -> str:
    """Tells why no line can be laid here; empty when one can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "the kernel gives no network namespaces here"


@contextmanager
def line(quality: Quality) -> Iterator[tuple[Line, str, str]]:
    """Lays a line; gives the names of the namespaces at its near and its far end, for `ip netns exec`."""
    near, far = (f"hemofed-{end}-{os.getpid()}" for end in ("near", "far"))
    devices = []
    try:
        for number, (space, own, others) in enumerate(((near, NEAR, "10.77.1.0/24"), (far, FAR, NEAR))):
            devices.append(_lay(space, f"hf{os.getpid()}-{number}", own, others))
        up = Line(quality, *devices)
        try:
            yield up, near, far
        finally:
            up.hang_up()
    finally:
        for device in devices:
            os.close(device)
        for space in (near, far):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)


def _lay(space: str, name: str, own: str, others: str) -> int:
    """A TUN device in a new namespace, with a way to `others`; its other end is the file that is returned."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, SET_INTERFACE, struct.pack("16sH", name.encode(), TUN | NO_HEADER))
    _ip("netns", "add", space)
    _ip("link", "set", name, "netns", space)
    _ip("-n", space, "link", "set", "lo", "up")
    _ip("-n", space, "address", "add", own, "dev", name)
    _ip("-n", space, "link", "set", name, "up")
    _ip("-n", space, "route", "add", others, "dev", name, "congctl", "cubic")  # Debian's default
    return device


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
