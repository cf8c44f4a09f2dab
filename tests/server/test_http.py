"""The HTTP door: strangers, strange hosts and strange origins get nowhere, and no token goes further than the door."""

import json
import socket
from dataclasses import replace

import httpx2
import pytest

from server.http import BindProblem, allowed, not_reached, parse_bind
from server.identity import set_frozen
from tests.commandline import CommandLine, with_environment
from tests.installed import Place
from tests.serving import NO_TLS, serving
from tests.upstream import Upstream

pytestmark = pytest.mark.anyio

LIST = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/list",
    "params": {
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    },
}
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/list",
}


async def post(url: str, token: str | None, **headers: str) -> httpx2.Response:
    given = {**HEADERS, **headers}
    if token is not None:
        given["Authorization"] = f"Bearer {token}"
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        return await client.post(url, json=LIST, headers=given)


async def test_an_agents_token_opens_the_door(place: Place) -> None:
    async with serving(place.installation) as url:
        reply = await post(url, place.tokens["reconciler"])
    assert reply.status_code == 200
    assert reply.json()["result"]["tools"]


@pytest.mark.parametrize(
    "change", [lambda t: None, lambda t: "x", lambda t: t[:-1] + ("A" if t[-1] != "A" else "E"), lambda t: t.upper()]
)
async def test_without_a_valid_token_there_is_nothing_and_no_discovery(place: Place, change: object) -> None:
    token = change(place.tokens["reconciler"])  # type: ignore[operator]
    async with serving(place.installation) as url:
        reply = await post(url, token)
        async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
            other = await client.get(url.replace("/agent/mcp", "/.well-known/oauth-protected-resource"))
    assert reply.status_code == 401
    assert "resource_metadata" not in reply.headers["www-authenticate"]
    assert other.status_code == 404


async def test_a_removed_agents_token_stops_at_the_next_request(place: Place) -> None:
    from server.identity import remove_agent

    token = place.tokens["reconciler"]
    agent = place.installation.directory.agent(place.org, "reconciler")
    async with serving(place.installation) as url:
        assert (await post(url, token)).status_code == 200
        place.database.write_now(lambda rows: remove_agent(rows, place.org, agent, by="alice"))
        assert (await post(url, token)).status_code == 401


async def test_an_expired_token_is_no_token(place: Place) -> None:
    from server.identity import create_agent

    token = place.database.write_now(
        lambda rows: create_agent(rows, place.org, name="old", member=place.owner, by="alice", expires_at=1)
    )
    async with serving(place.installation) as url:
        assert (await post(url, token)).status_code == 401


async def test_a_frozen_org_stops_all_its_agents(place: Place) -> None:
    place.database.write_now(lambda rows: set_frozen(rows, place.org, frozen=True, by="alice"))
    async with serving(place.installation) as url:
        reply = await post(url, place.tokens["reconciler"])
    assert reply.status_code == 403
    assert reply.json()["error"] == "frozen"


@pytest.mark.parametrize(
    ("name", "value"),
    [("Host", "evil.example"), ("Host", "127.0.0.1.evil.example:80"), ("Origin", "https://evil.example")],
)
@pytest.mark.parametrize("version", ["2026-07-28", "2025-06-18"])
async def test_a_strange_host_or_origin_is_refused_in_both_eras(
    place: Place, upstream: Upstream, name: str, value: str, version: str
) -> None:
    async with serving(place.installation) as url:
        reply = await post(url, place.tokens["reconciler"], **{name: value, "MCP-Protocol-Version": version})
    assert reply.status_code in (403, 421)
    assert "stripe" not in reply.text


async def test_one_agent_cannot_use_up_the_sessions_of_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.protocol.SESSIONS_PER_AGENT", 2)
    place.agent("other")
    opening = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
    }
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:

        async def opened(agent: str) -> int:
            headers = {"Accept": HEADERS["Accept"], "Authorization": f"Bearer {place.tokens[agent]}"}
            return (await client.post(url, json=opening, headers=headers)).status_code

        assert [await opened("reconciler") for _ in range(3)] == [200, 200, 429]
        assert await opened("other") == 200


async def test_a_strange_host_gets_nothing_at_all(place: Place) -> None:
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        for path in ("/health", "/agent/mcp", "/elsewhere"):
            reply = await client.get(url.replace("/agent/mcp", path), headers={"Host": "evil.example"})
            assert reply.status_code == 421
            assert "Its operator adds it to KEYLEASH_ALLOWED_HOSTS" in reply.text


async def test_health_says_only_that_it_is_up(place: Place) -> None:
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        reply = await client.get(url.replace("/agent/mcp", "/health"))
    assert json.loads(reply.text) == {"status": "ok"}


def test_a_bind_that_others_reach_needs_the_names_it_is_reached_by() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "keyleash.example.com"):
        with pytest.raises(BindProblem, match="KEYLEASH_ALLOWED_HOSTS"):
            allowed(host, ())
    hosts, origins = allowed("0.0.0.0", ("keyleash.example.com",))
    assert "keyleash.example.com" in hosts
    assert "127.0.0.1" not in hosts
    assert "https://keyleash.example.com" in origins
    assert "localhost:*" in allowed("127.0.0.1", ())[0]


async def test_what_else_a_loopback_server_is_called_takes_none_of_its_own_names(place: Place) -> None:
    settings = replace(place.installation.settings, allowed_hosts=("keyleash.example.com",))
    async with serving(replace(place.installation, settings=settings)) as url:
        for host in ("127.0.0.1:8700", "localhost:8700", "[::1]:8700", "keyleash.example.com"):
            assert (await post(url, place.tokens["reconciler"], Host=host)).status_code == 200
        assert (await post(url, place.tokens["reconciler"], Host="evil.example")).status_code == 421


def test_a_refused_bind_is_not_announced_and_a_link_that_leads_nowhere_is_named(owner: CommandLine) -> None:
    line = with_environment(owner, {"KEYLEASH_PUBLIC_URL": "https://keyleash.example.com"})
    refused = line.alone("serve", "--http", "0.0.0.0:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = line.alone("serve", "--http", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (refused.code, in_use.code) == (1, 1)
    assert "KEYLEASH_ALLOWED_HOSTS=keyleash.example.com" in refused.err
    assert "Nothing can listen" in in_use.err
    assert "agents connect at" not in refused.err + in_use.err
    assert "leads to keyleash.example.com, and this server does not answer to that name" in in_use.err


def test_the_host_of_a_link_is_looked_for_among_those_that_are_served() -> None:
    hosts, _ = allowed("127.0.0.1", ("Keyleash.example.com", "other.example.com:8443"))
    assert not_reached("", hosts) is None
    assert not_reached("https://keyleash.example.com/under", hosts) is None
    assert not_reached("https://other.example.com:8443", hosts) is None
    assert not_reached("http://localhost:8700", hosts) is None
    assert not_reached("https://other.example.com", hosts) == "other.example.com"


@pytest.mark.parametrize("text", ["8700", "127.0.0.1", "127.0.0.1:", ":8700", "127.0.0.1:x", "127.0.0.1:99999"])
def test_a_bind_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BindProblem, match=r"127\.0\.0\.1:8700"):
        parse_bind(text)
    assert parse_bind("[::1]:8700") == ("::1", 8700)
