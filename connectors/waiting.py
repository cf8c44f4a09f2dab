"""How long an upstream that asks for fewer calls wants to be left alone, in whichever of the usual ways it says so."""

import email.utils
import re
from collections.abc import Mapping
from datetime import datetime
from time import time
from typing import Any, cast

LONGEST_S = 86_400.0

_EPOCH_S = 1_000_000_000  # from here on a number is a time, not a span
_EPOCH_MS = 1_000_000_000_000
# The first that is there. A number is seconds from now, or the time; some write an ISO 8601 time.
RESETS = (
    "x-ratelimit-reset-after",  # Discord
    "ratelimit-reset",  # PagerDuty, Zendesk, drafts of the IETF
    "x-ratelimit-reset",  # GitHub, SendGrid, Jira
    "x-sentry-rate-limit-reset",
    "x-ratelimit-requests-reset",  # Linear, in milliseconds
)
QUOTA = "ratelimit"  # Cloudflare, RFC draft: "default";r=0;t=30
HEADERS = ("retry-after", *RESETS, QUOTA)

_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?")
_QUOTA = re.compile(r";\s*t=([0-9]{1,9})(?:\s*[;,]|\s*$)")
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from now, at least 0, that a Retry-After header asks for (RFC 9110, 10.2.3: seconds or a date)."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text[:12])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def seconds_to_wait(headers: Mapping[str, str], body: Any) -> float | None:
    """What an answer that asks for fewer calls says of how long; None where it says nothing that can be believed."""
    found = retry_after(headers)
    left = headers.get("x-ratelimit-remaining", "0").strip()
    for name in RESETS if left == "0" else ():  # with calls left it is another limit, and this is not its end
        if found is None and name in headers:
            found = _from_now(headers[name].strip())
    if found is None and (quota := _QUOTA.search(headers.get(QUOTA, ""))):
        found = float(quota[1])
    found = _in_body(body) if found is None else found
    return found if found is not None and 0 <= found <= LONGEST_S else None


def _from_now(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number >= _EPOCH_S:
            return max(0.0, number / (1000 if number >= _EPOCH_MS else 1) - time())
        return number
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def _in_body(body: Any) -> float | None:
    """Discord's `retry_after`; Google's RetryInfo, "34s", among the details of an error."""
    if not isinstance(body, dict):
        return None
    fields = cast("dict[str, Any]", body)
    wait = fields.get("retry_after")
    if isinstance(wait, (int, float)) and not isinstance(wait, bool):
        return float(wait)
    error = fields.get("error")
    details = cast("dict[str, Any]", error).get("details") if isinstance(error, dict) else None
    for detail in cast("list[Any]", details) if isinstance(details, list) else ():
        delay = cast("dict[str, Any]", detail).get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and (said := _SECONDS.fullmatch(delay)):
            return float(said[1])
    return None
