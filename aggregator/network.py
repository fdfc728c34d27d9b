"""Listening sockets, networks of peers, and how many descriptors this process may have."""

import ipaddress
import os
import resource
import socket

from aggregator.errors import ConfigRefused

# Connections that the kernel holds until they are accepted; it takes net.core.somaxconn where that is less.
BACKLOG = 4096


def listen(key: str, address: str) -> socket.socket:
    """Bind and listen, so that an address that cannot be had stops the start in one sentence.

    0.0.0.0 and [::] both stand for every interface, in IPv4 and IPv6.

    Args:
        key: The key of [listen] that holds the address.
        address: host:port; port 0 lets the system choose.

    Raises:
        ConfigRefused: When the address is taken, or is not of this machine.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        if host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6():  # noqa: S104  # the coordinator wrote it
            listener = socket.create_server(
                ("::", int(port)), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
            )
        else:
            family, _, _, _, bound = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = socket.create_server(bound[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        # The text of the number alone: Python adds the address to `strerror`, and a name that is not found has none.
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigRefused(
            f"cannot listen at {address} ([listen] {key}): {why}; "
            f"stop what uses port {port} (`ss -ltnp sport = :{port}` names it) or set another address"
        ) from error
    listener.setblocking(False)
    return listener


def network_of(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or the /64 of an IPv6 address.

    A household with IPv6 has 2**64 addresses or more, so single ones bound nothing. Text that is no address is returned
    as it is.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def raise_descriptor_limit() -> int:
    """Raise the number of descriptors that this process may have to what the system allows, and return it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
