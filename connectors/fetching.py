"""Fetch a document once, for a person who imports it: by https, from a public address, within bounds.

No server does this: what is served stands in files, pinned by their hashes.
"""

from urllib.parse import urlsplit

from connectors.addresses import Network
from connectors.bounded import Limits
from connectors.document import MAX_DEPTH, MAX_JSON, DocumentError
from connectors.egress import Egress
from connectors.errors import ConnectorError
from connectors.request import Prepared, base

LIMITS = Limits(total_s=120, max_body=MAX_JSON, max_values=5_000_000, max_depth=MAX_DEPTH)
"""The largest document that we know has thirteen megabytes and a million values."""

_ACCEPT = ("Accept", "application/json, application/yaml;q=0.9, */*;q=0.5")
_MEND = "Download it, and give the file."


async def fetch(egress: Egress, url: str, *, private: tuple[Network, ...] = ()) -> bytes:
    """What is at this address; raises DocumentError. Nothing secret is sent, and no redirect is followed."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.fragment:
        raise DocumentError("A document is fetched by https, without a #fragment.", _MEND, at=url)
    try:
        where = base(f"https://{parts.netloc}")
        query = f"?{parts.query}" if parts.query else ""
        prepared = Prepared("GET", f"{where.origin}{parts.path or '/'}{query}", where.origin, "", (_ACCEPT,))
        reply = await egress.send(prepared, attach=lambda headers, query: (), private=private, limits=LIMITS)
    except ConnectorError as error:
        raise DocumentError(str(error), _MEND, at=url) from None
    if reply.status != 200:
        raise DocumentError(f"It answered with HTTP {reply.status}.", _MEND, at=url)
    return reply.body
