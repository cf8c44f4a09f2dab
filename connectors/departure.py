"""The last look at a request before its credential is attached: it lies below its own base URL, byte for byte."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import quote

import yarl

from connectors.addresses import Network, allowed
from connectors.errors import Unreachable, Unsendable
from connectors.request import Prepared

_ORIGIN = re.compile(r"(https?)://((?:[a-z0-9_-][a-z0-9_.-]*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?)")
_TARGET = re.compile(r"/[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]*")  # RFC 3986, with no fragment
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")  # what the C library reads as an IPv4 address
_OURS = frozenset(  # the transport's own headers, and those of one hop (RFC 9110, 7.6.1)
    (
        *("host", "content-length", "transfer-encoding", "accept-encoding", "expect"),
        *("connection", "keep-alive", "te", "trailer", "upgrade", "proxy-authorization", "proxy-connection"),
    )
)


def checked_url(prepared: Prepared, private: tuple[Network, ...] = ()) -> yarl.URL:
    """The URL to send, exactly as prepared.

    Raises Unsendable when it is not below the request's own origin and base path, and Unreachable when its host is a
    literal address that is closed: the library dials such a host without asking the resolver.
    """
    check = _check if prepared.secret_url else _checked
    return check(prepared.url, prepared.origin, prepared.base_path, private)


def _check(url: str, origin: str, base_path: str, private: tuple[Network, ...]) -> yarl.URL:
    scheme, authority = _origin(origin)
    target = url.removeprefix(origin)
    if not _TARGET.fullmatch(target):  # nor does it when the URL has another origin
        raise Unsendable(_LEAVES)
    path, _, query = target.partition("?")
    below = base_path.removesuffix("/") + "/"
    if not (path.startswith(below) or path == base_path) or _climbs(path):
        raise Unsendable(_LEAVES)
    _vet_literal(authority, private)
    return _built(scheme, authority, path, query)


# Writes go to few URLs; the library, too, works out an URL's parts once for each object.
_checked = lru_cache(maxsize=256)(_check)


def checked_headers(headers: dict[str, str]) -> set[str]:
    """The names in lower case; Unsendable, naming none of the values, for what would change the request's framing."""
    names = {name.lower() for name in headers}
    if len(names) != len(headers) or not names.isdisjoint(_OURS):
        raise Unsendable("A header is given twice, or is one that only the transport may set.")
    for name, value in headers.items():
        if not (_token(name) and value.isascii() and value.isprintable()):
            raise Unsendable("A header holds characters that may not stand there.")
    return names


def with_query(url: yarl.URL, added: Sequence[tuple[str, str]]) -> yarl.URL:
    """The URL with these pairs at the end of its query, encoded; the rest unchanged."""
    text = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in added)
    query = f"{url.raw_query_string}&{text}" if url.raw_query_string else text
    return _built(url.scheme, url.raw_authority, url.raw_path, query)


def not_public(host: str) -> str:
    """What to say about a host that leads to a closed address."""
    return (
        f"{host} leads to an address that is not public. Only the operator can open one, when "
        "connecting the account or adding the channel."
    )


_LEAVES = "The request would leave its base URL, so it was not sent."


def _built(scheme: str, authority: str, path: str, query: str) -> yarl.URL:
    """From its parts and marked as encoded: given as text, the library would normalise it and keep it in a cache."""
    return yarl.URL.build(scheme=scheme, authority=authority, path=path, query_string=query, encoded=True)


def _origin(origin: str) -> tuple[str, str]:
    found = _ORIGIN.fullmatch(origin)
    if not found:
        raise Unsendable("The base URL is not one that a request can be sent to. Set it again.")
    return found[1], found[2]


def _climbs(path: str) -> bool:
    """Whether a segment is `.` or `..`, also behind one layer of percent-encoding, or with slashes behind one."""
    plain = path.lower().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/")
    return "/." in plain and any(segment in (".", "..") for segment in plain.split("/"))


def _vet_literal(authority: str, private: tuple[Network, ...]) -> None:
    host = authority.partition("]")[0] + "]" if authority[0] == "[" else authority.partition(":")[0]
    if host[0] != "[" and not _NUMERIC.fullmatch(host):
        return
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        raise Unsendable("The base URL's host is a number but no plain IP address. Write it as 192.0.2.1.") from None
    if not allowed(address, private):
        raise Unreachable(not_public(host), maybe_sent=False)


@lru_cache(maxsize=1024)  # names that definitions give, the same ones with every call
def _token(name: str) -> bool:
    return name.isascii() and name.replace("-", "").replace("_", "").isalnum()
