"""Public is public, and nothing dressed up as public is."""

import socket
from ipaddress import ip_address, ip_network

import pytest

from connectors.addresses import allowed, is_public, network

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "54.187.174.169",
    "2606:4700::1111",
    "2a00:1450:4001:80b::200e",
    "64:ff9b::8.8.8.8",
    "::ffff:8.8.8.8",
]

# One address from the middle of every block that is not the public internet, and each way of hiding 127.0.0.1 in IPv6.
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
    *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.0.9", "192.0.2.1"),
    *("192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1"),
    *("240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "100::1"),
    *("2001:db8::1", "3fff::1", "5f00::1", "2001:2::1", "2001:20::1", "4000::1", "1::1"),
    *("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::127.0.0.1"),
    *("64:ff9b:1::8.8.8.8", "2002:7f00:1::", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:80ff:fffe"),
    *("2606:4700::5efe:7f00:1", "2606:4700::200:5efe:7f00:1"),
]

# What a resolver makes of these is 127.0.0.1.
NOTATIONS = ["127.0.0.1", "127.1", "127.0.1", "0x7f000001", "0x7f.1", "2130706433", "017700000001", "0177.0.0.1"]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)
    assert allowed(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_no_other_address_is(address: str) -> None:
    assert not is_public(address)
    assert not allowed(address)


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.1", "0x7f000001", "2130706433", "127.0.0.1\n", "8.8.8.8 ", "08.8.8.8"]
)
def test_text_that_is_no_address_is_not_public(text: str) -> None:
    assert not is_public(text)
    assert not allowed(text, [ip_network("0.0.0.0/0"), ip_network("::/0")])


@pytest.mark.parametrize("notation", NOTATIONS)
def test_what_the_resolver_makes_of_every_notation_of_loopback_is_refused(notation: str) -> None:
    found = {entry[4][0] for entry in socket.getaddrinfo(notation, 80, type=socket.SOCK_STREAM)}
    assert found == {"127.0.0.1"}
    assert not any(is_public(str(address)) for address in found)


def test_the_operator_can_name_a_network_and_opens_nothing_else() -> None:
    networks = [ip_network("127.0.0.1/32"), ip_network("fd00::/8")]
    assert allowed("127.0.0.1", networks)
    assert allowed("::ffff:127.0.0.1", networks)
    assert allowed("fd12::1", networks)
    assert allowed("8.8.8.8", networks)
    for closed in ("127.0.0.2", "10.0.0.1", "::1", "64:ff9b::127.0.0.1", "2002:7f00:1::", "::127.0.0.1", "fe80::1"):
        assert not allowed(closed, networks)


def test_a_network_with_host_bits_is_refused() -> None:
    assert network("10.0.0.0/8") == ip_network("10.0.0.0/8")
    assert network("127.0.0.1") == ip_network("127.0.0.1/32")
    for text in ("10.1.2.3/8", "all", "10.0.0.0/40"):
        with pytest.raises(ValueError):
            network(text)
