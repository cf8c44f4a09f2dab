"""Read one field of a secret that a Vault or OpenBao keeps in a key-value engine, version 2.

The address and the token are the operator's own, so this goes out by itself; it follows no redirect, takes nothing from
the environment, and what comes back is bounded and taken apart strictly.
Source: the API of KV version 2, "Read secret version": GET /v1/MOUNT/data/PATH.
"""

import ipaddress
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import quote, urlsplit

from vault.errors import CannotResolve
from vault.secret import Secret

if TYPE_CHECKING:
    import ssl

MOST_ANSWER = 1024 * 1024
"""Bytes; Vault keeps no larger entry by default."""

_SAID = {
    400: "refuses the request: the path may be no KV version 2 engine's",
    403: "refuses the token: give it a policy that may read this path, or renew it",
    404: "has nothing there: check mount and path, that it is KV version 2, and that its newest version is not deleted",
    429: "takes no more requests just now",
    473: "is a standby that answers no reads: name the active node, or what stands before all of them",
    503: "is sealed, or under maintenance",
}


def trust(ca_file: Path | None) -> "ssl.SSLContext":
    """Whose certificates are believed: the usual authorities, or those of this file alone. Raises CannotResolve."""
    import ssl

    import httpx2

    if ca_file is None:
        return httpx2.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError):
        raise CannotResolve(
            "The file that KEYLEASH_KV_CA_FILE names cannot be read, or holds no certificates."
        ) from None


def kv_field(
    address: str, token: Secret, mount: str, path: Sequence[str], field: str, *, tls: "ssl.SSLContext", seconds: float
) -> str:
    """The field's text, of the newest version. Raises CannotResolve.

    `seconds` bound each step of the exchange and the reading of the answer as a whole.
    """
    url = "/".join((_base(address), "v1", quote(mount, safe=""), "data", *(quote(part, safe="") for part in path)))
    body = _answer(url, token, tls, seconds)
    found = _field(body, field)
    del body  # so that a traceback that prints locals has none of it to print
    if found is None:
        raise CannotResolve(
            "What the key-value engine has there holds no such field, or one that is not a text. Write the name of a "
            "field after the `#`."
        )
    return found


def _base(address: str) -> str:
    if not _is_protected(address):
        raise CannotResolve(
            "KEYLEASH_KV_ADDR must be https://HOST:PORT and nothing more; http only for this machine itself."
        )
    return address.rstrip("/")


def _is_protected(address: str) -> bool:
    """Whether it is an address and nothing else, and whoever listens on the way learns nothing."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return False
    if not parts.hostname or port == 0 or parts.username or parts.password or parts.query or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_this_machine(parts.hostname))


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _answer(url: str, token: Secret, tls: "ssl.SSLContext", seconds: float) -> bytes:
    problem = ""
    try:
        status, body = _exchange(url, token, tls, seconds)
    except TimeoutError:
        problem = f"The key-value engine did not answer within {seconds:g} seconds. Try again later."
    except Exception:  # it may quote the request, and the request carries the token
        problem = (
            "The key-value engine could not be reached, or did not prove its identity. Check KEYLEASH_KV_ADDR, and "
            "KEYLEASH_KV_CA_FILE where its certificate comes from an authority of your own."
        )
    else:
        if len(body) > MOST_ANSWER:
            problem = f"The key-value engine sent more than {MOST_ANSWER} bytes, which no secret is."
        elif status != 200:
            problem = f"The key-value engine {_said(status)} (HTTP {status})."
        else:
            return body
    raise CannotResolve(problem)


def _exchange(url: str, token: Secret, tls: "ssl.SSLContext", seconds: float) -> tuple[int, bytes]:
    """The status, and the body of a 200: at most `MOST_ANSWER` bytes and one piece. Raises TimeoutError."""
    import httpx2

    deadline = time.monotonic() + seconds
    headers = {"X-Vault-Token": token.reveal(), "X-Vault-Request": "true", "Accept-Encoding": "identity"}
    body = bytearray()
    try:
        with (
            httpx2.Client(verify=tls, trust_env=False, follow_redirects=False, timeout=seconds) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            for piece in answer.iter_raw() if answer.status_code == 200 else ():
                body += piece
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(body) > MOST_ANSWER:
                    break
    except httpx2.TimeoutException:
        raise TimeoutError from None
    return answer.status_code, bytes(body)


def _said(status: int) -> str:
    if 300 <= status < 400:
        return "sends elsewhere, which is not followed: name the active node, or what stands before all of them"
    return _SAID.get(status, "does not give it")


def _field(body: bytes, name: str) -> str | None:
    """The field in {"data": {"data": {…}}}; None where there is no such text."""
    try:
        whole: object = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return None
    for key in ("data", "data", name):
        whole = cast("dict[str, object]", whole).get(key) if isinstance(whole, dict) else None
    return whole if isinstance(whole, str) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_json(_constant: str) -> NoReturn:
    raise ValueError("NaN and the infinities are no JSON")
