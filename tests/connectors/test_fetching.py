"""A document is fetched by https from a public address, once, with nothing secret, and within bounds."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from connectors.document import DocumentError, read_document
from connectors.egress import Egress
from connectors.fetching import fetch
from tests.connectors.test_egress import Script, Upstream, certificate, resolving, says, upstream

__all__ = ["certificate"]  # a fixture

pytestmark = pytest.mark.anyio
LOOPBACK = (ip_network("127.0.0.0/8"),)
TEXT = b'{"openapi": "3.0.3", "info": {"title": "T"}, "paths": {}}'


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def serving(certificate: Path, *scripts: Script) -> AsyncIterator[tuple[Egress, Upstream, str]]:
    """A server that proves to be api.example, an egress that trusts it, and its address."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with upstream(*scripts, tls=tls) as server, Egress(resolve=resolving("127.0.0.1"), tls=trusting) as egress:
        yield egress, server, f"https://api.example:{server.port}"


async def test_a_document_is_fetched_once_and_nothing_secret_is_sent(certificate: Path) -> None:
    async with serving(certificate, says(TEXT)) as (egress, server, origin):
        content = await fetch(egress, f"{origin}/v1/openapi.json?raw=1", private=LOOPBACK)
    assert read_document(content, "x").title == "T"
    (request,) = server.requests
    assert request.startswith(b"GET /v1/openapi.json?raw=1 HTTP/1.1\r\n")
    assert b"authorization" not in request.lower()
    assert b"cookie" not in request.lower()


@pytest.mark.parametrize(
    ("script", "says_so"),
    [
        (says(b"{}", "302 Found", "Location: https://other.example/"), "redirects are not followed"),
        (says(b"{}", "404 Not Found"), "HTTP 404"),
        (says(b"[" * 101 + b"]" * 101), "nested more than"),
        (says(b'["' + b"," * 5_000_001 + b'"]'), "values"),
    ],
)
async def test_what_is_no_document_is_refused_and_says_what_to_do(
    certificate: Path, script: Script, says_so: str
) -> None:
    async with serving(certificate, script) as (egress, server, origin):
        with pytest.raises(DocumentError, match=says_so) as error:
            await fetch(egress, f"{origin}/x", private=LOOPBACK)
    assert "Download it, and give the file." in str(error.value)
    assert len(server.requests) == 1


async def test_an_address_that_is_not_public_is_not_dialled(certificate: Path) -> None:
    async with serving(certificate) as (egress, server, origin):
        with pytest.raises(DocumentError, match="not public"):
            await fetch(egress, f"{origin}/x")
    assert server.connections == 0
