"""What an agent that wants more than it may has in its hands: tokens, real clients of both eras, and bare HTTP.

Whatever it tries goes through `Hand.tried`, and `Hand.require_in_vain` looks at what came of it. See `attempts.py`.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as t
from anyio.from_thread import start_blocking_portal
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from server.approval import Decision, State
from server.audit import select
from server.audit.reading import head
from server.identity import Narrowing, create_agent
from tests.agents import decide, record
from tests.installed import SECRET, Place, add_org, make
from tests.raw import Raw, Reply, approving, reply_of
from tests.serving import NO_TLS, serving
from tests.upstream import Upstream

CLIENTS = ("modern", "handshake", "raw")
"""Two real clients, and JSON-RPC by hand."""

KEPT = {
    "org": "id, name, preset, frozen_at, revision",
    "member": "org, id, name, os_user, roles, groups",
    "agent": "org, id, name, member, token_hash, narrowing, expires_at",
    "rule": "org, id, body",
    "call_grant": "org, id, agent, tool, bounds_hash, uses_left, revoked_at, expires_at",
    "connection": "org, id, name, base_url, credential_version, account",
}
"""What no agent may change."""
ON_RECORD = {"call.held", "call.refused", "call.replayed", "approval.opened", "approval.declined_in_client"}


@dataclass
class Scene:
    """Two orgs on one server: `acme` has Stripe and Slack and the owner alice, `globex` a Stripe of its own."""

    place: Place
    other: Place
    upstream: Upstream
    url: str
    numbers: Iterator[int] = field(default_factory=count)


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    with Upstream(SECRET) as upstream, start_blocking_portal() as portal:
        place = make(folder / "home")
        other = add_org(place.installation, "globex")
        place.connect(upstream.url)
        place.connect(upstream.url, connector="slack")
        other.connect(upstream.url, name="theirs")
        place.rule(who="everyone", tools=["slack.archive_channel"], then="approve")
        place.rule(who="everyone", tools=["slack.delete_message"], then="deny")
        with portal.wrap_async_context_manager(serving(place.installation)) as url:
            yield Scene(place, other, upstream, url)
        place.installation.close()


@dataclass(frozen=True)
class Mark:
    """What was there when the attempt began."""

    requests: int
    kept: dict[str, list[Any]]
    approvals: dict[str, tuple[str, str]]
    """State and decisions of each."""
    entries: dict[str, int]
    """How far each log went."""


class Hand:
    """One attempt's agent, at one kind of client."""

    def __init__(self, of: Scene, client: str, http: httpx2.AsyncClient) -> None:
        self.scene, self.client, self.http = of, client, http
        self.place, self.upstream = of.place, of.upstream
        self.names: set[str] = set()
        self.member = self.place.member(f"member{next(of.numbers)}", ("owner",))  # each bears only so many questions
        self.name = self.agent()
        self.count = 0
        self.ready()

    # -- preparing

    def agent(self, place: Place | None = None, *, standalone: bool = False, effects: tuple[str, ...] = ()) -> str:
        """One more agent with its token; returns its name."""
        place, name = place or self.place, f"agent{next(self.scene.numbers)}"
        place.tokens[name] = place.database.of(place.org).write_now(
            lambda rows: create_agent(
                rows,
                place.org,
                name=name,
                member=None if standalone else self.member if place is self.place else place.owner,
                by="alice",
                narrowing=Narrowing(effects=effects),
            )
        )
        self.names.add(name)
        return name

    def id_of(self, name: str) -> str:
        return self.place.installation.directory.agent(self.place.org, name).id

    async def pending(self, tool: str, arguments: dict[str, Any]) -> tuple[str, str]:
        """A call of ours that waits; its approval and the state that points to it."""
        reply = await self.raw().call(tool, arguments)
        assert reply.asks, reply.text
        assert reply.state
        newest = self.place.installation.approvals.list(self.place.org, limit=1)[0]
        return newest.id, reply.state

    async def approved(self, tool: str, arguments: dict[str, Any]) -> tuple[str, str]:
        """A call of ours that alice has approved outside, and that has not run yet."""
        approval, state = await self.pending(tool, arguments)
        decide(self.place, approval, Decision.APPROVE)
        self.ready()
        return approval, state

    async def granted(self, tool: str, arguments: dict[str, Any], uses: int | None = None) -> str:
        """A call of ours that was approved for an hour, and has run once; returns its approval."""
        approval, state = await self.pending(tool, arguments)
        decide(self.place, approval, Decision.APPROVE_HOUR)
        assert (await self.raw().call(tool, arguments, state=state)).ran
        if uses is not None:
            self.execute("UPDATE call_grant SET uses_left = ? WHERE approval = ?", uses, approval)
        self.ready()
        return approval

    def execute(self, sql: str, *values: Any) -> None:
        self.place.database.of(self.place.org).write_now(lambda rows: rows.execute(sql, values))

    def ready(self) -> None:
        """All before this was honest."""
        self.mark = self._now()

    # -- trying

    def raw(self, name: str | None = None, place: Place | None = None, *, elicits: bool = True) -> Raw:
        return Raw(self.scene.url, (place or self.place).tokens[name or self.name], self.http, elicits=elicits)

    def tried(self, reply: Reply) -> Reply:
        """It was refused, or a person is to be asked first."""
        self.count += 1
        assert reply.refused or reply.asks, reply.text
        assert "Internal error" not in reply.text, "it stumbled, where it should have refused"
        return reply

    async def call(
        self, tool: str, arguments: dict[str, Any], *, state: str | None = None, as_: str | None = None
    ) -> Reply:
        """Call as a client that cannot ask its person; a state goes with it where the client can carry one."""
        if self.client == "raw":
            return self.tried(await self.raw(as_, elicits=False).call(tool, arguments, state=state))
        async with self._connected(None, as_) as client:
            return self.tried(await _replied(client, tool, arguments, state if self.client == "modern" else None))

    async def answered(
        self, tool: str, arguments: dict[str, Any], content: Any, action: str = "accept", *, as_: str | None = None
    ) -> Reply:
        """Call, and when the client is asked, answer like this."""
        if self.client == "raw":
            raw = self.raw(as_)
            reply = await raw.call(tool, arguments)
            if reply.asks:
                answers = {"approval": {"action": action, "content": content}}
                reply = await raw.call(tool, arguments, state=reply.state, answers=answers)
            return self.tried(reply)

        async def answer(_context: Any, _params: Any) -> t.ElicitResult:
            return t.ElicitResult.model_construct(action=action, content=content)

        async with self._connected(answer, as_) as client:
            return self.tried(await _replied(client, tool, arguments, None))

    @asynccontextmanager
    async def _connected(self, answer: Any, as_: str | None) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {self.place.tokens[as_ or self.name]}"}
        era = "auto" if self.client == "modern" else "legacy"
        async with httpx2.AsyncClient(verify=NO_TLS, headers=headers, timeout=30, trust_env=False) as http:
            transport = streamable_http_client(self.scene.url, http_client=http)
            async with Client(transport, mode=era, elicitation_callback=answer) as client:
                yield client

    # -- looking

    def require_in_vain(self, *, sent: int = 0, on_record: bool) -> None:
        """Nothing was sent, nothing changed, nothing was decided; and what named a call is on record."""
        assert self.count > 0, "nothing was tried"
        before, after = self.mark, self._now()
        assert after.requests - before.requests == sent, self.upstream.requests[before.requests :]
        if sent == 0:
            assert after.kept == before.kept
        for approval, (state, decisions) in after.approvals.items():
            if approval not in before.approvals:
                assert state in (State.PENDING, State.CANCELLED), state
                assert decisions == "[]"
            elif sent == 0:
                was, agreed = before.approvals[approval]
                # What waited may have been found stale, but is never nearer to being sent than it was.
                assert state in (was, State.CANCELLED, State.EXPIRED), (was, state)
                assert decisions == agreed
        if on_record:
            assert self._on_record(), "it is not on record"

    def _on_record(self) -> bool:
        database = self.place.database
        since = [
            entry.body
            for org, seq in self.mark.entries.items()
            for entry in select(database.of(org), org, newest_first=True, limit=head(database.of(org), org).seq - seq)  # type: ignore[union-attr]
        ]
        return any(body["event"] in ON_RECORD and body.get("agent") in self.names for body in since)

    def _now(self) -> Mark:
        database, orgs = self.place.database, [each.org for each in self._orgs()]
        kept = {
            f"{table} {org}": sorted(
                map(repr, database.of(org).read(f"SELECT {columns} FROM {table} WHERE {_key(table)} = ?", (org,)))
            )
            for table, columns in KEPT.items()
            for org in orgs
        }
        approvals = {
            row[0]: (row[1], row[2])
            for org in orgs
            for row in database.of(org).read("SELECT id, state, decisions FROM approval WHERE org = ?", (org,))
        }
        entries = {org: head(database.of(org), org).seq for org in orgs}  # type: ignore[union-attr]
        return Mark(len(self.upstream.requests), kept, approvals, entries)

    def _orgs(self) -> tuple[Place, Place]:
        return self.scene.other, self.place

    def state_of(self, approval: str) -> State:
        return record(self.place, approval).state


def _key(table: str) -> str:
    return "id" if table == "org" else "org"


async def _replied(client: Client, tool: str, arguments: dict[str, Any], state: str | None) -> Reply:
    try:
        if state is None:
            result: Any = await client.call_tool(tool, arguments)
        else:
            result = await client.session.call_tool(tool, arguments, request_state=state, allow_input_required=True)
    except MCPError as error:
        return Reply(200, str(error), {"error": {"code": error.error.code, "message": error.error.message}})
    wire = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return Reply(200, json.dumps(wire), {"result": {"resultType": "complete", **wire}})


class Session:
    """A handshake session by hand."""

    def __init__(self, hand: Hand, name: str | None = None, place: Place | None = None) -> None:
        self._hand = hand
        self.token = (place or hand.place).tokens[name or hand.name]
        self.id = ""

    def headers(self, **more: str) -> dict[str, str]:
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "MCP-Protocol-Version": "2025-11-25",
            "Mcp-Session-Id": self.id,
        }
        return {name: value for name, value in {**headers, **more}.items() if value}

    async def open(self) -> "Session":
        params = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"elicitation": {}},
            "clientInfo": {"name": "raw", "version": "0"},
        }
        body = {"jsonrpc": "2.0", "id": "open", "method": "initialize", "params": params}
        reply = await self.post(body)
        assert reply.result, reply.text
        self.id = reply.headers["mcp-session-id"]
        await self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    async def post(self, body: Any, **headers: str) -> Reply:
        sent = await self._hand.http.post(
            self._hand.scene.url, content=json.dumps(body).encode(), headers=self.headers(**headers)
        )
        return reply_of(sent.status_code, sent.text, sent.headers)

    async def answer(self, question: Any, content: Any, action: str = "accept", **headers: str) -> Reply:
        result = {"action": action, "content": content}
        return await self.post({"jsonrpc": "2.0", "id": question, "result": result}, **headers)

    @asynccontextmanager
    async def calling(self, tool: str, arguments: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """A call that is under way: the messages that come of it, the question first."""
        params = {"name": tool, "arguments": arguments}
        body = {"jsonrpc": "2.0", "id": "call", "method": "tools/call", "params": params}
        stream = self._hand.http.stream(
            "POST", self._hand.scene.url, content=json.dumps(body).encode(), headers=self.headers()
        )
        async with stream as response:
            yield _messages(response)


async def _messages(response: Any) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data:") and line.removeprefix("data:").strip():
            yield json.loads(line.removeprefix("data:"))


__all__ = ["CLIENTS", "Hand", "Reply", "Scene", "Session", "approving", "scene"]
