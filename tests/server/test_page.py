"""The page behind a notice's link: it says how to decide, is the same for every id, and decides nothing."""

import base64
import hashlib
import re

import httpx2
import pytest

from server.settings import SettingsProblem, read_settings
from tests.agents import record
from tests.installed import Place
from tests.serving import NO_TLS, serving
from tests.telling import held

pytestmark = pytest.mark.anyio

NOBODYS = "apr_0000000000000000"


async def test_the_page_is_the_same_whether_there_is_such_a_call_or_not(place: Place) -> None:
    approval = await held(place)
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        pages = [await client.get(url.replace("/agent/mcp", f"/approvals/{one}")) for one in (approval, NOBODYS)]
    there, nowhere = pages
    assert there.status_code == nowhere.status_code == 200
    assert there.content == nowhere.content
    same = [{name: value for name, value in page.headers.items() if name != "date"} for page in pages]
    assert same[0] == same[1]
    assert "set-cookie" not in there.headers
    assert "keyleash approvals show ID" in there.text
    for word in (approval, "stripe", "reconciler", "acme", "<script", "<form", "<a ", "http"):
        assert word not in there.text


async def test_its_policy_lets_in_its_own_style_and_nothing_else(place: Place) -> None:
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        page = await client.get(url.replace("/agent/mcp", f"/approvals/{NOBODYS}"))
    (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["style-src"] == f"'sha256-{digest}'"
    assert " style=" not in page.text
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"


async def test_nothing_can_be_decided_there(place: Place) -> None:
    approval = await held(place)
    before = record(place, approval)
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        at = url.replace("/agent/mcp", f"/approvals/{approval}")
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            assert (await client.request(method, at, content=b"decision=approve")).status_code == 405
        head = await client.head(at)
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 500
        await client.get(f"{at}?decision=approve")
    assert record(place, approval) == before


@pytest.mark.parametrize(
    "path", ["", "apr_short", "apr_0000000000000000/x", "APR_0000000000000000", "../health", "%61"]
)
async def test_what_can_be_no_id_is_not_found(place: Place, path: str) -> None:
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        reply = await client.get(url.replace("/agent/mcp", f"/approvals/{path}"))
    assert reply.status_code == (200 if path == "../health" else 404)


async def test_a_strange_host_gets_no_page(place: Place) -> None:
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        at = url.replace("/agent/mcp", f"/approvals/{NOBODYS}")
        assert (await client.get(at, headers={"Host": "evil.example"})).status_code == 421


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("", ""),
        ("https://keyleash.example.com", "https://keyleash.example.com"),
        ("https://example.com:8443/keyleash/", "https://example.com:8443/keyleash"),
        ("http://127.0.0.1:8700", "http://127.0.0.1:8700"),
    ],
)
async def test_the_public_address_is_read(monkeypatch: pytest.MonkeyPatch, given: str, read: str) -> None:
    monkeypatch.setenv("KEYLEASH_PUBLIC_URL", given)
    assert read_settings().public_url == read


@pytest.mark.parametrize(
    "given",
    ["keyleash.example.com", "http://keyleash.example.com", "https://a@b.example", "https://x/?y", "javascript:0"],
)
async def test_one_that_no_person_should_follow_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("KEYLEASH_PUBLIC_URL", given)
    with pytest.raises(SettingsProblem, match="KEYLEASH_PUBLIC_URL"):
        read_settings()
