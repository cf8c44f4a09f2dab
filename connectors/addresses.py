"""Tell the public internet from everything that only looks like it.

Vet the address that will be dialled, never the text of a host: `127.1`, `0x7f000001` and `2130706433` are all 127.0.0.1
to a resolver. `ipaddress.is_global` alone is not enough: it lets NAT64, 6to4, site-local and multicast through, and its
answer changes between patch releases of Python.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Not the public internet, whatever this Python's `is_global` says. Source: the IANA special-purpose registries.
_CLOSED_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT, and one cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # one cloud's host agent: a public number that is answered inside the machine
        "169.254.0.0/16",  # link-local, and most clouds' metadata service
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved and broadcast
    )
)
_OPEN_V6 = IPv6Network("2000::/3")  # the only block that is handed out as global unicast
_CLOSED_V6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the gateway dials the IPv4 address in the last 32 bits


def is_public(address: str | Address) -> bool:
    """True for an address on the public internet; False for every other, and for text that is no address.

    An IPv4 address inside an IPv6 one is vetted as what it leads to. The well-known NAT64 prefix is therefore public
    where the address behind it is, since IPv6-only networks reach all of IPv4 that way; every other transition form
    (6to4, Teredo, ISATAP, local NAT64, IPv4-compatible, IPv4-translated) is closed.
    """
    ip = _parsed(address)
    if ip is None:
        return False
    if isinstance(ip, IPv6Address) and ip in _NAT64:
        ip = IPv4Address(int(ip) & 0xFFFFFFFF)
    if isinstance(ip, IPv4Address):
        return ip.is_global and not any(ip in network for network in _CLOSED_V4)
    return ip.is_global and ip in _OPEN_V6 and not _isatap(ip) and not any(ip in network for network in _CLOSED_V6)


def allowed(address: str | Address, networks: Sequence[Network] = ()) -> bool:
    """True for a public address, and for one in a network that the operator has named.

    An IPv4-mapped address (`::ffff:127.0.0.1`) is the IPv4 address that the kernel will dial. No other embedded form
    is covered by an IPv4 network.
    """
    ip = _parsed(address)
    if ip is None:
        return False
    return any(ip in network for network in networks) or is_public(ip)


def network(text: str) -> Network:
    """The network that an operator wrote: `10.1.0.0/16`, `127.0.0.1/32`, `fd00::/8`; ValueError otherwise.

    Strict: host bits beside the prefix are refused, so that `10.1.2.3/8` is not taken for one address.
    """
    return ip_network(text, strict=True)


def _parsed(address: str | Address) -> Address | None:
    try:
        ip = ip_address(address.partition("%")[0]) if isinstance(address, str) else address
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip


def _isatap(ip: IPv6Address) -> bool:
    """RFC 5214: an interface identifier of 00-00-5E-FE or 02-00-5E-FE, then an IPv4 address."""
    return (int(ip) >> 32) & 0xFDFFFFFF == 0x00005EFE
