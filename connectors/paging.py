"""Find the cursor of the next page where an upstream names only that page's URL, in its answer or a Link header."""

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

MAX_CURSOR = 2048  # characters

_LINK = re.compile(r"<([^<>]*)>((?:\s*;\s*[A-Za-z0-9_*-]+\s*=\s*(?:\"[^\"]*\"|[^\s\";,]+))*)")
_PARAMETER = re.compile(r";\s*([A-Za-z0-9_*-]+)\s*=\s*(?:\"([^\"]*)\"|([^\s\";,]+))")


def cursor_in_link(header: str, name: str) -> str | None:
    """The query parameter `name` of the link to the next page (RFC 8288); None where there is nothing more to come.

    Sentry always gives such a link, and says by results="false" that the page behind it is empty.
    Source: https://docs.sentry.io/api/pagination/
    """
    for found in _LINK.finditer(header):
        parameters = {key.lower(): quoted or bare for key, quoted, bare in _PARAMETER.findall(found[2])}
        if "next" in parameters.get("rel", "").lower().split() and parameters.get("results") != "false":
            return cursor_in_url(found[1], name)
    return None


def cursor_in_url(url: Any, name: str) -> str | None:
    """The query parameter `name` of this URL; None without one, or where this is no URL."""
    try:
        found = dict(parse_qsl(urlsplit(url).query)) if isinstance(url, str) else {}
    except ValueError:
        return None
    cursor = found.get(name, "")
    return cursor if 0 < len(cursor) <= MAX_CURSOR else None
