"""A tool's request as it leaves through our own way out, beside the one that a vendor's library has sent."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from connectors.auth import attaching
from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Connector
from connectors.egress import Egress
from connectors.request import prepare
from tests.upstream import Answer, Received, Upstream

CATALOGUE = Catalogue.load(shipped_folder())
OFFER = CATALOGUE.offer({name: name for name in CATALOGUE.connectors})
LOOPBACK = (ip_network("127.0.0.1/32"),)


class Key:
    """A credential of one field."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self, field: str) -> str:
        return self._value


def base_below(connector: Connector, origin: str) -> str:
    """The connector's base URL, at another origin."""
    return origin + urlsplit(connector.example_url or connector.base_url).path


def sent(connector: str, tool: str, arguments: Mapping[str, Any], *, key: str, kind: str = "") -> Received:
    """The request that arrives when this tool is called with this credential."""
    definition = CATALOGUE.connectors[connector]
    way = definition.kind(kind) if kind else definition.credentials[0]
    call = OFFER.bind(f"{connector}_{tool}", arguments)

    async def send(url: str) -> None:
        prepared = prepare(call, base_url=base_below(definition, url), idempotency_key="one-key")
        async with Egress() as egress:
            await egress.send(prepared, attach=attaching(way, Key(key)), private=LOOPBACK)

    with Upstream() as upstream:
        asyncio.run(send(upstream.url))
    (request,) = upstream.requests
    return request


def same(
    theirs: Received,
    connector: str,
    tool: str,
    arguments: Mapping[str, Any],
    *,
    key: str,
    kind: str = "",
    headers: tuple[str, ...] = (),
) -> None:
    """Fails unless the library's request is the one that ours is: method, path, query, body, what the body is written
    in, how it is signed, and the `headers` named.
    """
    ours = sent(connector, tool, arguments, key=key, kind=kind)
    assert ours.method == theirs.method
    assert path(ours) == path(theirs)
    assert query(ours) == query(theirs)
    assert content(ours) == content(theirs)
    if ours.body:
        assert media_type(ours) == media_type(theirs)
    for name in ("authorization", *headers):
        assert ours.headers.get(name) == theirs.headers.get(name), name


def path(request: Received) -> str:
    return unquote(urlsplit(request.target).path)


def query(request: Received) -> list[tuple[str, str]]:
    return sorted(parse_qsl(urlsplit(request.target).query, keep_blank_values=True))


def media_type(request: Received) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def content(request: Received) -> Any:
    """What the body says, however it is written; no body and an empty object say the same."""
    if not request.body:
        return None
    if media_type(request) == "application/x-www-form-urlencoded":
        return sorted(parse_qsl(request.body.decode(), keep_blank_values=True)) or None
    return json.loads(request.body) or None


def without(request: Received, *names: str) -> Received:
    """The same without these names in its query and JSON body: what a library writes out though it is the default."""
    target = urlsplit(request.target)
    kept = "&".join(pair for pair in target.query.split("&") if unquote(pair.partition("=")[0]) not in names)
    body = request.body
    if body and media_type(request) == "application/json":
        body = json.dumps({name: value for name, value in json.loads(body).items() if name not in names}).encode()
    return replace(request, target=f"{target.path}?{kept}" if kept else target.path, body=body)


@contextmanager
def answering(content: Any, headers: Mapping[str, str] | None = None) -> Iterator[Upstream]:
    """An upstream that answers everything with this."""
    with Upstream() as upstream:
        upstream.answer = lambda _: Answer(content, headers=dict(headers or {}))
        yield upstream
