"""What agents do in the walk: over HTTP, with tokens, names, pointers and cursors of their own and of other orgs."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from server.call import Parts
from server.http import AGENT_PATH, Door
from tests.walk.canary import never
from tests.walk.world import Org, World, wire

VERSION = "2026-07-28"


@dataclass(frozen=True)
class Heard:
    """What came back: the status, and the body as text."""

    status: int
    text: str

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text).get("result") or {} if self.status == 200 else {}
        return found


@dataclass
class Agents:
    """The door that all agents knock at, in this process; no byte of it is left out."""

    world: World
    door: Door
    parts: Parts

    async def send(
        self, token: str, method: str, params: dict[str, Any], *, asks: bool = False, address: str = "127.0.0.1"
    ) -> Heard:
        meta = {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientInfo": {"name": "walker", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}} if asks else {},
        }
        body = wire({"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}).encode()
        headers = [
            (b"host", b"127.0.0.1:8700"),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json, text/event-stream"),
            (b"mcp-protocol-version", VERSION.encode()),
            (b"mcp-method", method.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"authorization", f"Bearer {token}".encode()),
        ]
        if "name" in params:
            headers.append((b"mcp-name", str(params["name"]).encode()))
        return await _through(self.door, headers, body, address)

    async def any_agent(self, org: Org) -> tuple[str, str]:
        names = sorted(org.tokens)
        name = self.world.chance.choice(names)
        return name, org.tokens[name]

    async def call(self, org: Org, agent: str, tool: str, arguments: dict[str, Any], **more: Any) -> Heard:
        asks = bool(more.pop("asks", False))
        given = {"name": tool, "arguments": arguments, **more}
        heard = await self.send(org.tokens[agent], "tools/call", given, asks=asks)
        state = heard.result.get("requestState")
        if state is not None:
            org.states.append((agent, tool, arguments, state))
            del org.states[:-20]
        return heard

    def tool(self, org: Org, name: str) -> str | None:
        """A tool of one of the org's connections, on the wire."""
        kinds = {"post_message": "slack_", "list_entries": "ledger_", "add_entry": "ledger_"}
        kind = (kinds | dict.fromkeys(OPENAI, "openai_")).get(name, "stripe_")
        found = [each for each in self.world.connections(org) if each.startswith(kind)]
        return f"{self.world.chance.choice(found)}_{name}" if found else None

    def charge(self, org: Org) -> str:
        """One of a few charges, so that calls come again; it carries the org's canary."""
        return f"ch_cny{org.mark.letters}char{self.world.chance.choice('abcdefgh')}"


OPENAI = ("create_response", "continue_response")

Act = Callable[[Agents, Org], Awaitable[list[str]]]
"""One operation; returns everything that the org heard."""


async def reads(agents: Agents, org: Org) -> list[str]:
    tool = agents.tool(org, agents.world.chance.choice(["list_charges", "get_balance", "list_refunds"]))
    if tool is None:
        return []
    agent, _ = await agents.any_agent(org)
    return [(await agents.call(org, agent, tool, {})).text]


async def refunds(agents: Agents, org: Org) -> list[str]:
    tool = agents.tool(org, "create_refund")
    if tool is None:
        return []
    agent, _ = await agents.any_agent(org)
    asks = agents.world.chance.random() < 0.5
    return [(await agents.call(org, agent, tool, {"charge": agents.charge(org)}, asks=asks)).text]


async def posts(agents: Agents, org: Org) -> list[str]:
    tool = agents.tool(org, "post_message")
    if tool is None:
        return []
    agent, _ = await agents.any_agent(org)
    text = f"hello from {org.mark.canary()}"
    return [(await agents.call(org, agent, tool, {"channel": "C0123456789", "text": text}, asks=True)).text]


async def books(agents: Agents, org: Org) -> list[str]:
    """At the account that was signed in to."""
    name = agents.world.chance.choice(["list_entries", "list_entries", "add_entry"])
    tool = agents.tool(org, name)
    if tool is None:
        return []
    agent, _ = await agents.any_agent(org)
    given = {"text": f"entry {org.mark.canary()}"} if name == "add_entry" else {}
    return [(await agents.call(org, agent, tool, given)).text]


async def asks_a_model(agents: Agents, org: Org) -> list[str]:
    """With the operator's account or the org's own, whichever stands there; a stored answer is another org's then."""
    name = agents.world.chance.choice([OPENAI[0], OPENAI[0], *OPENAI])
    tool = agents.tool(org, name)
    if tool is None:
        return []
    agent, _ = await agents.any_agent(org)
    given = {"model": "gpt-6", "input": f"asked by {org.mark.canary()}"}
    stored = {"previous_response_id": "resp_of_another"} if name == "continue_response" else {}
    return [(await agents.call(org, agent, tool, given | stored)).text]


async def answers(agents: Agents, org: Org) -> list[str]:
    """A person at the client answers the form that an earlier call brought."""
    if not org.states:
        return []
    agent, tool, arguments, state = agents.world.chance.choice(org.states)
    if agent not in org.tokens:
        return []
    decision = agents.world.chance.choice(["approve", "approve_for_one_hour", "deny"])
    response = {"approval": {"action": "accept", "content": {"decision": decision}}}
    more = {"inputResponses": response, "requestState": state}
    return [(await agents.call(org, agent, tool, arguments, asks=True, **more)).text]


async def answers_for_another(agents: Agents, org: Org) -> list[str]:
    """Another org's pointer, with one's own call and with theirs: the words for one that was never sealed."""
    other = agents.world.other(org)
    tool = agents.tool(org, "create_refund")
    if not other.states or tool is None:
        return []
    agent, _ = await agents.any_agent(org)
    state = agents.world.chance.choice(other.states)[3]
    garbage = state[:-12] + "AAAAAAAAAAAA"
    response = {"approval": {"action": "accept", "content": {"decision": "approve"}}}
    heard = [
        (
            await agents.call(
                org,
                agent,
                tool,
                {"charge": agents.charge(org)},
                asks=True,
                inputResponses=response,
                requestState=each,
            )
        ).text
        for each in (state, garbage)
    ]
    same(org, heard, (state, garbage))
    return heard


async def lists(agents: Agents, org: Org) -> list[str]:
    _, token = await agents.any_agent(org)
    heard = await agents.send(token, "tools/list", {})
    cursor = heard.result.get("nextCursor")
    if cursor is not None:
        org.cursors = [*org.cursors[-4:], cursor]
    return [heard.text]


async def pages(agents: Agents, org: Org) -> list[str]:
    """Another org's cursor is one that never was."""
    _, token = await agents.any_agent(org)
    other = agents.world.other(org)
    theirs = agents.world.chance.choice(other.cursors) if other.cursors else "A" * 27
    garbage = ("B" if theirs[0] != "B" else "C") + theirs[1:]
    heard = [(await agents.send(token, "tools/list", {"cursor": each})).text for each in (theirs, garbage)]
    same(org, heard, (theirs, garbage))
    own = [(await agents.send(token, "tools/list", {"cursor": each})).text for each in org.cursors[-1:]]
    return [*heard, *own]


async def searches(agents: Agents, org: Org) -> list[str]:
    agent, _ = await agents.any_agent(org)
    chance = agents.world.chance
    words = chance.choice(["refund", "list charges", "message", f"cny{agents.world.other(org).mark.letters}"])
    return [(await agents.call(org, agent, "search_tools", {"query": words})).text]


async def names_anothers_tool(agents: Agents, org: Org) -> list[str]:
    """Called, described and searched by name: another org's tool is one that never existed."""
    other = agents.world.other(org)
    tool = agents.tool(other, "create_refund")
    if tool is None:
        return []
    fiction = never(tool, agents.world.chance)
    org.mark.said.add(tool)
    agent, _ = await agents.any_agent(org)
    heard: list[str] = []
    for wrap in (
        lambda name: (name, {"charge": "ch_1"}),
        lambda name: ("call_tool", {"name": name, "arguments": {}}),
        lambda name: ("describe_tool", {"name": name}),
    ):
        pair = [(await agents.call(org, agent, *wrap(name))).text for name in (tool, fiction)]
        same(org, pair, (tool, fiction))
        heard += pair
    return heard


async def forges_a_token(agents: Agents, org: Org) -> list[str]:
    """Another org's id with one's own secret: the words for a token that never was."""
    other = agents.world.other(org)
    _, mine = await agents.any_agent(org)
    secret = mine[21:]
    forged = f"kla_{other.id.removeprefix('org_')}_{secret}"
    fiction = f"kla_{never(other.id, agents.world.chance).removeprefix('org_')}_{secret}"
    heard = [await agents.send(each, "tools/list", {}) for each in (forged, fiction)]
    assert {each.status for each in heard} == {401}, heard
    same(org, [each.text for each in heard], (forged, fiction))
    return [each.text for each in heard]


ACTS: dict[Act, int] = {
    reads: 30,
    refunds: 14,
    posts: 4,
    books: 6,
    asks_a_model: 6,
    answers: 8,
    answers_for_another: 4,
    lists: 6,
    pages: 3,
    searches: 4,
    names_anothers_tool: 3,
    forges_a_token: 3,
}
"""What agents do, and how often."""


def same(org: Org, heard: list[str], given: tuple[str, str]) -> None:
    """Raise where the two answers differ in anything but what was asked for."""
    one, two = (text.replace(name, "…") for text, name in zip(heard, given, strict=True))
    assert one == two, f"{org.name} can tell another org's from one that never existed: {one!r} and {two!r}"


async def _through(door: Door, headers: list[tuple[bytes, bytes]], body: bytes, address: str) -> Heard:
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": AGENT_PATH,
        "raw_path": AGENT_PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": (address, 50000),
        "server": ("127.0.0.1", 8700),
    }
    arriving = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return arriving.pop() if arriving else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await door(scope, receive, send)
    status = next(message["status"] for message in sent if message["type"] == "http.response.start")
    whole = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return Heard(status, whole.decode())
