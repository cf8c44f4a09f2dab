"""What a hostile agent, upstream, file or database tries, through a real client and a real server: all in vain.

What an agent tries against the people and the rules is a list of its own: `attempts.py`.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from typing import Any
from urllib.parse import quote, unquote

import httpx2
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from server.app import running
from server.call import call
from tests.agents import ERAS, Nobody, connected, with_connector
from tests.installed import SECRET, Place, add_org
from tests.probe import PROBE
from tests.samples import sample
from tests.serving import NO_TLS, serving
from tests.upstream import Answer, Received, Upstream

pytestmark = pytest.mark.anyio

BASE = "/base/v1"
REFUND = {"charge": "ch_1", "amount": 1200}

CLIMBS = [
    "..",
    ".",
    "",
    "../secrets",
    "../../../../admin",
    "..%2fsecrets",
    "%2e%2e",
    "%2e%2e/secrets",
    "%2E%2E%2Fsecrets",
    ".%2e",
    "%252e%252e",
    "%25252e%25252e%25252fsecrets",
    "..\\secrets",
    "..%5csecrets",
    "..;/secrets",
    "a/../../b",
    "a/./b",
    "/",
    "//evil.example",
    "//evil.example/path",
    "/\\evil.example",
    "https://evil.example/",
    "http:evil.example",
    "@evil.example",
    "user:pass@evil.example",
    ":80@evil.example",
    "?admin=1",
    "a?admin=1#x",
    "#fragment",
    "a&b=c",
    "a;b=c",
    "a b",
    "a+b",
    "\u2025/secrets",
    "\uff0e\uff0e/secrets",
    "\uff0f\uff0fevil.example",
    "a\u0000b",
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "a\r\nHost: evil.example",
    "a HTTP/1.1\r\nX-Api-Key: x\r\n\r\nGET /admin",
    "*",
    "$" * 20,
    "x" * 600,
    "x" * 5_000,
    "x" * 100_000,
    "\u00e9" * 3_000,
]


@pytest.fixture
def wide(place: Place, open_upstream: Upstream) -> Place:
    """The place with everything allowed, and every shipped connector connected below a base path of one upstream."""
    with_connector(place, "probe", PROBE)
    for connector in place.installation.catalogue.connectors:
        place.connect(f"{open_upstream.url}{BASE}", connector=connector, name=f"my_{connector}")
    place.rule(who="everyone", tools=["*"], then="allow")
    return place


@asynccontextmanager
async def agent(place: Place, *, era: str = "auto", name: str = "reconciler") -> AsyncIterator[Client]:
    """A real client over HTTP."""
    async with connected(place, "http", era, agent=name) as client:
        yield client


def assert_below(request: Received, fixed: list[str]) -> None:
    """The request is for the base path, and has the tool's own segments, however often a server decodes it."""
    path = request.target.partition("?")[0]
    assert request.target.isascii()
    assert request.target.isprintable()
    assert path.startswith(f"{BASE}/")
    segments = path.split("/")
    last = -1 if fixed[-1:] == [""] else None  # some paths of Sentry's end in a slash
    assert not {"", ".", ".."} & set(segments[1:last]), request.target
    assert [segment for segment in segments[1:] if segment in fixed] == fixed, request.target
    for segment in segments:
        for _ in range(4):
            segment = unquote(segment)  # noqa: PLW2901
            assert segment not in (".", ".."), request.target
            assert "/" not in segment, request.target
            assert "\\" not in segment, request.target
    assert request.headers["host"].startswith("127.0.0.1:")
    assert "secrets" not in path.split("/")[:4]


# -- arguments


async def test_no_path_argument_of_any_tool_leads_out_of_its_place(
    wide: Place, open_upstream: Upstream, elsewhere: Upstream
) -> None:
    tools = [  # all; the values that climb are tried on each, the many others on the first of each connector
        offered
        for offered in wide.installation.workspaces.of(wide.caller()).offer.tools
        if offered.name.startswith("my_")
        and any(each.place == "path" and each.schema.get("type") == "string" for each in offered.tool.arguments)
    ]
    assert len({offered.connector.id for offered in tools}) >= 5
    values = [*CLIMBS, f"//127.0.0.1:{elsewhere.url.rpartition(':')[2]}/", elsewhere.url]
    sent = refused = 0
    first = {offered.connector.id: offered for offered in reversed(tools)}
    async with running(wide.installation) as parts:
        for offered in tools:
            fixed = ["base", "v1", *(part for part in offered.tool.path.split("/")[1:] if "{" not in part)]
            for attacked in offered.tool.arguments:
                if attacked.place != "path" or attacked.schema.get("type") != "string":
                    continue
                for value in values if first[offered.connector.id] is offered or attacked.slashes else CLIMBS[:12]:
                    open_upstream.requests.clear()
                    arguments = {**_fitting(offered.tool.arguments), attacked.name: value}
                    try:
                        await call(parts, wide.caller(), offered.name, arguments, Nobody())
                    except Exception as refusal:
                        assert type(refusal).__name__ == "BadArguments", (offered.name, value, refusal)
                        assert open_upstream.requests == []
                        refused += 1
                        continue
                    assert len(open_upstream.requests) == 1, (offered.name, value)
                    assert_below(open_upstream.requests[0], fixed)
                    sent += 1
    assert sent > 100
    assert refused > 100


def _fitting(arguments: Any) -> dict[str, Any]:
    """Something harmless for every required argument."""
    return {argument.name: sample(dict(argument.schema)) for argument in arguments if argument.required}


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_gets_a_mendable_refusal_for_what_cannot_stand_in_a_path(
    wide: Place, open_upstream: Upstream, elsewhere: Upstream, era: str
) -> None:
    async with agent(wide, era=era) as client:
        for tool, name in (("one", "thing"), ("many", "path")):
            for value in CLIMBS:
                open_upstream.requests.clear()
                result = await client.call_tool(f"my_probe_{tool}", {name: value})
                if not result.is_error:
                    assert_below(open_upstream.requests[0], ["base", "v1", "things", "parts"] if tool == "one" else [])
                    continue
                assert open_upstream.requests == []
                assert result.structured_content is None
                assert name in result.content[0].text  # type: ignore[union-attr]


async def test_a_query_argument_is_one_value_of_one_name(
    wide: Place, open_upstream: Upstream, elsewhere: Upstream
) -> None:
    async with agent(wide) as client:
        for value in CLIMBS:
            open_upstream.requests.clear()
            result = await client.call_tool("my_probe_query", {"words": value})
            if result.is_error:
                assert open_upstream.requests == []
                assert len(quote(value)) > 4096 or not value.isprintable(), value
                continue
            target = open_upstream.requests[0].target
            path, _, query = target.partition("?")
            assert path == f"{BASE}/search"
            name, _, text = query.partition("=")
            assert name == "words"
            assert not set(text) & set("&#;=+ "), target
            assert unquote(text, errors="strict") == value
        for tags in (["a,b"], ["a", "b,c"], ["a\nb"]):
            open_upstream.requests.clear()
            assert (await client.call_tool("my_probe_query", {"tags": tags})).is_error
            assert open_upstream.requests == []


async def test_a_header_argument_is_one_line_of_one_header(
    wide: Place, open_upstream: Upstream, elsewhere: Upstream
) -> None:
    async with agent(wide) as client:
        for value in [*CLIMBS, " a", "a ", "x\r\nX-Api-Key: mine", "x\nX-Fixed: mine", "caf\u00e9", "x" * 1_025]:
            open_upstream.requests.clear()
            result = await client.call_tool("my_probe_header", {"mark": value})
            if result.is_error:
                assert open_upstream.requests == []
                continue
            headers = open_upstream.requests[0].headers
            assert headers["x-mark"] == value
            assert headers["x-api-key"] == SECRET
            assert headers["x-fixed"] == "probe"
            assert open_upstream.requests[0].target == f"{BASE}/headed"
            assert len(value) <= 1024


@pytest.mark.parametrize("era", ERAS)
async def test_an_argument_that_is_not_declared_is_refused_and_nothing_is_sent(
    wide: Place, open_upstream: Upstream, era: str
) -> None:
    async with agent(wide, era=era) as client:
        for more in (
            {"Authorization": "Bearer mine"},
            {"base_url": "https://evil.example"},
            {"headers": {"Host": "evil.example"}},
            {"charge ": "ch_2"},
            {"CHARGE": "ch_2"},
            {"__proto__": {}},
            {"": "x"},
            {"charge\u200b": "ch_2"},
        ):
            result = await client.call_tool("my_stripe_create_refund", {**REFUND, **more})
            assert result.is_error
            assert "Allowed arguments" in result.content[0].text  # type: ignore[union-attr]
        for wrong in ({"charge": ["ch_1"]}, {"charge": {"a": 1}}, {"charge": "ch_1", "amount": "12"}, {"amount": -1}):
            assert (await client.call_tool("my_stripe_create_refund", wrong)).is_error
    assert open_upstream.requests == []


async def test_half_a_character_is_refused_before_anything_is_made_of_it(wide: Place, open_upstream: Upstream) -> None:
    """A client cannot write half of a surrogate pair, but a program that speaks to the server can."""
    async with serving(wide.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
        for arguments in ('{"charge": "ch_\\ud800"}', '{"ch\\udfffarge": "x"}', '{"charge": "x", "charge\\u0000": 1}'):
            reply = await http.post(
                url,
                headers={
                    "Authorization": f"Bearer {wide.tokens['reconciler']}",
                    "Accept": "application/json, text/event-stream",
                    "Content-Type": "application/json",
                    "MCP-Protocol-Version": "2026-07-28",
                    "Mcp-Method": "tools/call",
                    "Mcp-Name": "my_stripe_create_refund",
                },
                content=_raw_call("my_stripe_create_refund", arguments),
            )
            said = reply.text
            assert "internal" not in said.lower(), said
            assert '"isError":true' in said.replace(" ", "") or '"error"' in said
    assert open_upstream.requests == []


def _raw_call(tool: str, arguments: str) -> bytes:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "0"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return (
        '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": '
        f'{{"name": "{tool}", "arguments": {arguments}, "_meta": {json.dumps(meta)}}}}}'
    ).encode()


# -- upstreams that send the credential on


async def test_a_redirect_takes_the_credential_nowhere(place: Place, elsewhere: Upstream) -> None:
    place.rule(who="everyone", tools=["*"], then="allow")
    with Upstream() as sly:
        place.connect(sly.url, name="sly")
        targets = (f"{elsewhere.url}/v1/a", elsewhere.url.removeprefix("http:"), "/v1/other", "//127.0.0.1")
        async with agent(place) as client:
            for status, target in product((300, 301, 302, 303, 305, 307, 308), targets):
                sly.requests.clear()
                headers = {"Location": target, "Refresh": f"0; url={target}", "Set-Cookie": "a=b"}
                sly.answer = partial(_always, Answer({"see": target}, status, headers))
                for name, arguments in (("sly_list_charges", {}), ("sly_create_refund", REFUND)):
                    result = await client.call_tool(name, arguments)
                    assert result.is_error
                    assert "redirect" in result.content[0].text  # type: ignore[union-attr]
                assert [request.method for request in sly.requests] == ["GET", "POST"]
                assert all("cookie" not in request.headers for request in sly.requests)


def _always(answer: Answer, _: Received) -> Answer:
    return answer


# -- orgs and agents


@pytest.mark.parametrize("era", ERAS)
async def test_another_orgs_tool_is_an_unknown_tool(place: Place, upstream: Upstream, era: str) -> None:
    place.rule(who="everyone", tools=["*"], then="allow")
    other = add_org(place.installation, "globex")
    other.connect(upstream.url, name="theirs")
    other.rule(who="everyone", tools=["*"], then="allow")
    async with agent(place, era=era) as client:
        assert {tool.name.split("_")[0] for tool in (await client.list_tools()).tools} == {"stripe", "read"}
        with pytest.raises(MCPError) as foreign:
            await client.call_tool("theirs_list_charges", {})
        with pytest.raises(MCPError) as unknown:
            await client.call_tool("nobody_list_charges", {})
    assert str(foreign.value).replace("theirs", "nobody") == str(unknown.value)
    assert foreign.value.error.code == unknown.value.error.code
    assert upstream.requests == []
