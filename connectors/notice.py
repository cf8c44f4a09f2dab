"""Notices to a place that a tenant named, such as a chat tool's webhook: made for the one door, like any other request.

Such an URL is a secret itself: whoever has it can post there. It is shown as its origin only, and kept in no cache.
"""

import re

from connectors.addresses import Network
from connectors.departure import checked_url
from connectors.errors import Unsendable
from connectors.request import MAX_URL, Prepared, base

_URL = re.compile(r"(?P<origin>https?://[^/?#]+)(?P<target>[/?][^#]*)?")


def prepare_notice(url: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> Prepared:
    """The request that posts `body`, JSON, to this URL; raises Unsendable, which does not quote it."""
    match = _URL.fullmatch(url)
    if not match or len(url) > MAX_URL:
        raise Unsendable(
            f"A webhook's URL is https://host/path, of {MAX_URL} bytes at most, without user name or fragment."
        )
    origin = base(match["origin"]).origin
    target = match["target"] or "/"
    target = target if target.startswith("/") else f"/{target}"
    return Prepared(
        method="POST",
        url=origin + target,
        origin=origin,
        base_path="",
        headers=(("Content-Type", "application/json"), *headers),
        body=body,
        secret_url=True,
    )


def check_notice(url: str, private: tuple[Network, ...]) -> str:
    """The origin of this URL. Raises Unsendable or Unreachable where nothing would ever be sent there."""
    prepared = prepare_notice(url, b"{}")
    checked_url(prepared, private)
    return prepared.origin
