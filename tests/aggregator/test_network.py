"""Which addresses count as one, and listeners that cannot be had."""

import socket

import pytest

from aggregator.errors import ConfigRefused
from aggregator.network import listen, network_of


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_one_address_is_an_ipv4_address_or_a_64_of_ipv6(host: str, network: str) -> None:
    assert network_of(host) == network


def test_every_interface_means_both_families() -> None:
    with listen("sites", "0.0.0.0:0") as listener:
        port = listener.getsockname()[1]
        hosts = ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
        for host in hosts:
            socket.create_connection((host, port), 5).close()


def test_an_address_of_another_machine_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigRefused, match=r"cannot listen at 192\.0\.2\.1:8443 \(\[listen\] sites\): "):
        listen("sites", "192.0.2.1:8443")
