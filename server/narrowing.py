"""What an agent may reach at most, and from where; rules come after, and can widen none of it.

A narrowing is kept as JSON beside its agent. A part that a row does not have narrows nothing, as in rows of earlier
releases.
"""

import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Narrowing:
    """Globs over `connection.tool`, effects, names of connections, and ranges of addresses. Empty narrows nothing."""

    tools: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def admits(self, connection: str, tool: str, effect: str) -> bool:
        """Whether the leash is long enough for this tool at all; rules come after."""
        if self.effects and effect not in self.effects:
            return False
        if self.connections and connection not in self.connections:
            return False
        return not self.tools or any(fnmatchcase(f"{connection}.{tool}", glob) for glob in self.tools)

    def admits_from(self, address: str | None) -> bool:
        """Whether a request from this address may use the agent; None is no address, and lies in no range."""
        if not self.addresses:
            return True
        known = None if address is None else address_of(address)
        return known is not None and any(known in _network(each) for each in self.addresses)

    def shown(self) -> dict[str, list[str]]:
        """As it is listed and written down: every part by name, also the empty ones."""
        return {name: list(values) for name, values in asdict(self).items()}


def dump(narrowing: Narrowing) -> str:
    """The narrowing as its row keeps it."""
    return json.dumps(narrowing.shown())


@lru_cache(maxsize=1024)
def load(text: str) -> Narrowing:
    """What `dump` wrote, in this release or an earlier one."""
    stored: Mapping[str, Any] = json.loads(text)
    return Narrowing(**{part: tuple(stored.get(part) or ()) for part in Narrowing.__dataclass_fields__})


LONGEST_ADDRESS = 45
"""Characters of the longest address there is: ffff:…:255.255.255.255. Longer texts are not looked at, nor kept."""


def address_of(text: str) -> Address | None:
    """An address from its text, an IPv4 one also where it is written as IPv6; None for anything else."""
    return _address(text) if len(text) <= LONGEST_ADDRESS else None


@lru_cache(maxsize=4096)
def _address(text: str) -> Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        return None if found.scope_id else found.ipv4_mapped or found
    return found


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Whether one of the ranges holds the address."""
    return any(address in network for network in networks)


def network(text: str) -> Network:
    """A range of addresses, or one address. Raises ValueError, with what to write."""
    try:
        found = ipaddress.ip_network(text.strip())
    except ValueError:
        found = None
    mapped = isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped is not None
    if found is None or mapped or "%" in text:
        raise ValueError(
            f"{text!r} is not a range of addresses. Write one like 10.1.2.0/24, 192.0.2.7 or 2001:db8::/32."
        )
    return found


@lru_cache(maxsize=1024)
def _network(text: str) -> Network:
    return ipaddress.ip_network(text)
