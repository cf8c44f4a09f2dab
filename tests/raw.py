"""MCP by hand, as curl would speak it: every header and every byte is the caller's own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

MODERN = "2026-07-28"
FORMS = {"elicitation": {"form": {}}}


@dataclass(frozen=True)
class Reply:
    """What came back: `message` is the JSON-RPC answer, where there was one."""

    status: int
    text: str
    message: dict[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def result(self) -> dict[str, Any]:
        return self.message.get("result") or {}

    @property
    def asks(self) -> bool:
        """Whether a person is to be asked before anything happens."""
        return self.result.get("resultType") == "input_required"

    @property
    def held(self) -> str | None:
        """The approval that the call waits for outside the client."""
        approval = (self.result.get("structuredContent") or {}).get("approval") or {}
        return approval.get("id") if approval.get("status") == "pending" else None

    @property
    def status_of_approval(self) -> str | None:
        return ((self.result.get("structuredContent") or {}).get("approval") or {}).get("status")

    @property
    def refused(self) -> bool:
        """Whether it did not run: an error in any of its three forms."""
        return self.status >= 400 or "error" in self.message or self.result.get("isError") is True

    @property
    def ran(self) -> bool:
        return self.status == 200 and self.result.get("resultType") == "complete" and not self.refused

    @property
    def state(self) -> str | None:
        return self.result.get("requestState")


def approving(decision: Any = "approve", action: str = "accept") -> dict[str, Any]:
    """The answer of a person at the client, as a modern client sends it along."""
    return {"approval": {"action": action, "content": {"decision": decision}}}


class Raw:
    """One agent with its token at one server."""

    def __init__(self, url: str, token: str, http: httpx2.AsyncClient, *, elicits: bool = True) -> None:
        self.url, self.token, self._http = url, token, http
        self.capabilities: dict[str, Any] = dict(FORMS) if elicits else {}

    def meta(self) -> dict[str, Any]:
        return {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "0"},
            "io.modelcontextprotocol/clientCapabilities": self.capabilities,
        }

    def headers(self, method: str, name: str | None) -> dict[str, str]:
        named = {} if name is None else {"Mcp-Name": name}
        return {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "MCP-Protocol-Version": MODERN,
            "Mcp-Method": method,
            **named,
        }

    def body(self, tool: str, arguments: Any, *, state: str | None = None, answers: Any = None) -> dict[str, Any]:
        params: dict[str, Any] = {"name": tool, "arguments": arguments, "_meta": self.meta()}
        if state is not None:
            params["requestState"] = state
        if answers is not None:
            params["inputResponses"] = answers
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}

    async def call(self, tool: str, arguments: Any, *, state: str | None = None, answers: Any = None) -> Reply:
        body = self.body(tool, arguments, state=state, answers=answers)
        return await self.post(body, self.headers("tools/call", tool))

    async def request(self, method: str, params: dict[str, Any] | None = None, *, name: str | None = None) -> Reply:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**(params or {}), "_meta": self.meta()}}
        return await self.post(body, self.headers(method, name))

    async def post(self, body: Any, headers: Mapping[str, str]) -> Reply:
        """Send it as it is: bytes as bytes, everything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self._http.post(self.url, content=content, headers=dict(headers))
        return reply_of(answer.status_code, answer.text, answer.headers)


def reply_of(status: int, text: str, headers: Mapping[str, str]) -> Reply:
    """JSON as it stands, or the last message of an event stream."""
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    for whole in [text, *reversed(lines)]:
        try:
            found = json.loads(whole)
        except ValueError:
            continue
        if isinstance(found, dict) and ("result" in found or "error" in found):
            return Reply(status, text, found, headers)
    return Reply(status, text, {}, headers)
