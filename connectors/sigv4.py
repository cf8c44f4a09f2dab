"""AWS Signature Version 4: a signature over exactly the bytes that leave, good for one service and region, for minutes.

Source: "Create a signed AWS API request", AWS Identity and Access Management User Guide. Every header that is there
when it signs is part of the signature, and so is the body. The path is taken as it is sent: nothing in it climbs, and
none of its segments is empty.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote

from connectors.request import Prepared

HEADERS = ("Authorization", "X-Amz-Content-SHA256", "X-Amz-Date", "X-Amz-Security-Token")
"""What a signature may add; no connector file and no argument can set one of these."""
_ALGORITHM = "AWS4-HMAC-SHA256"
_RESERVED_BY_S3 = "/%-._~"  # what is encoded already stays as it is
_ENCODED_TWICE = "/-._~"


@dataclass(frozen=True, slots=True)
class Account:
    """Who signs, and for what the signature is good."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str
    service: str
    session_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Signed:
    """The headers to add, and every secret in them or that they were made with."""

    headers: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


def signed(request: Prepared, headers: Mapping[str, str], account: Account, *, at: float) -> Signed:
    """Sign the request as it leaves with these headers; `at` is the time, in seconds since the epoch."""
    moment = datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")
    content = hashlib.sha256(request.body or b"").hexdigest()
    added = {"X-Amz-Content-SHA256": content, "X-Amz-Date": moment}
    if account.session_token:
        added["X-Amz-Security-Token"] = account.session_token
    covered = {name.lower(): " ".join(value.split()) for name, value in {**headers, **added}.items()}
    covered["host"] = _host(request.origin)
    names = ";".join(sorted(covered))
    lines = "".join(f"{name}:{covered[name]}\n" for name in sorted(covered))
    path, _, query = request.url.removeprefix(request.origin).partition("?")
    canonical = "\n".join(
        (request.method, _path(path, account.service), _query(query), lines, names, content),
    )
    scope = f"{moment[:8]}/{account.region}/{account.service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    keys = tuple(_keys(account, moment[:8]))
    signature = hmac.digest(keys[-1], f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}".encode(), "sha256").hex()
    added["Authorization"] = (
        f"{_ALGORITHM} Credential={account.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    derived = [text for key in keys for text in _written(key)]
    token = (account.session_token,) if account.session_token else ()
    return Signed(added, (account.secret_access_key, *token, signature, *derived))


def _keys(account: Account, day: str) -> Iterator[bytes]:
    """Each is derived from the one before; the last signs. Each but the last signs for more than this."""
    key = f"AWS4{account.secret_access_key}".encode()
    for part in (day, account.region, account.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
        yield key


def _written(key: bytes) -> tuple[str, ...]:
    return key.hex(), key.hex().upper(), base64.b64encode(key).decode()


def _host(origin: str) -> str:
    """As the transport names it: without the dot at a name's end."""
    authority = origin.partition("//")[2]
    name, colon, port = authority.rpartition(":") if authority.rpartition(":")[2].isdigit() else (authority, "", "")
    return name.rstrip(".") + colon + port


def _path(path: str, service: str) -> str:
    """Encoded once more; but S3 reads the path as it is, with everything encoded that has to be."""
    return quote(path, safe=_RESERVED_BY_S3 if service == "s3" else _ENCODED_TWICE)


def _query(query: str) -> str:
    pairs = sorted((name, value) for name, _, value in (pair.partition("=") for pair in query.split("&") if pair))
    return "&".join(f"{name}={value}" for name, value in pairs)
