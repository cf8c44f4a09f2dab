"""A working day of one member's agent: 200 calls over four connections, and the person who is asked at the client.

A call that needs a person is put to them by MCP elicitation; where the question offers an hour, they give it. Between
two hours the clock moves: what was granted for one has ended by the next.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mcp_types as t

from tests.agents import connected, execute
from tests.installed import Place
from tests.upstream import Answer, Received, Upstream

CONNECTIONS = ("stripe", "github", "anthropic", "gmail")
HOUR_MS = 3_600_000
SHOP = {"owner": "acme", "repo": "shop"}

Call = tuple[str, dict[str, Any]]


def reads(hour: int, many: int) -> Iterator[Call]:
    """What an agent looks up all day: yesterday's money, open issues, code."""
    for number in range(many):
        yield (
            ("stripe_list_charges", {"limit": 10 + hour}),
            ("github_list_issues", {**SHOP, "page": number + 1}),
            ("stripe_get_charge", {"charge": f"ch_{hour}_{number}"}),
            ("github_read_file", {**SHOP, "path": f"src/page_{number}.py"}),
            ("stripe_get_balance", {}),
            ("github_get_issue", {**SHOP, "issue_number": 100 + number}),
        )[number % 6]


def thoughts(hour: int, many: int) -> Iterator[Call]:
    """What it asks a model."""
    for number in range(many):
        message = {"role": "user", "content": f"Sort this one, {hour}/{number}."}
        yield "anthropic_create_message", {"model": "claude", "max_tokens": 100, "messages": [message]}


def comments(many: int) -> Iterator[Call]:
    for number in range(many):
        yield "github_comment_on_issue", {**SHOP, "issue_number": 100 + number, "body": f"Seen, it is number {number}."}


def tickets(many: int) -> Iterator[Call]:
    for number in range(many):
        yield "github_create_issue", {**SHOP, "title": f"Page {number} is slow", "body": "As measured today."}


def mails(many: int) -> Iterator[Call]:
    for number in range(many):
        mail = {"to": ["finance@acme.example"], "subject": f"Report {number}", "text": "All charges are reconciled."}
        yield "gmail_send_message", mail


def refund(number: int) -> Iterator[Call]:
    yield "stripe_create_refund", {"charge": f"ch_double_{number}", "amount": 1200}


def day() -> list[list[Call]]:
    """Eight hours, 200 calls."""
    customer = {"to": ["ann@customer.example"], "subject": "Your refund", "text": "It is on its way."}
    return [
        [*reads(9, 24), *thoughts(9, 4)],
        [*reads(10, 8), *thoughts(10, 9), *comments(18)],
        [*reads(11, 20), *thoughts(11, 7), *refund(1), *refund(2)],
        [*reads(12, 10), *thoughts(12, 6)],
        [*reads(13, 8), *thoughts(13, 6), *tickets(8)],
        [*reads(14, 14), *thoughts(14, 9), *refund(3), ("gmail_send_message", customer)],
        [*reads(15, 6), *thoughts(15, 6), *mails(10)],
        [*reads(16, 13), *thoughts(16, 9), ("gmail_trash_message", {"message": "18c0ffee"})],
    ]


@dataclass
class Lived:
    """What the day came to: every question that was put, with the tool it was about, and what was refused."""

    calls: Counter[str] = field(default_factory=Counter[str])
    questions: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    failed: list[str] = field(default_factory=list[str])

    @property
    def asked(self) -> Counter[str]:
        return Counter(tool for tool, _ in self.questions)


def equip(place: Place, upstream: Upstream) -> None:
    """Connect what the day needs, under the preset that the org has."""
    upstream.answer = _answer
    for connector in CONNECTIONS:
        place.connect(upstream.url, connector=connector)
    place.agent()


async def live(place: Place, era: str) -> Lived:
    """Let the agent work through the day at a real client of this era."""
    lived, now = Lived(), {"tool": ""}

    async def person(_context: Any, params: t.ElicitRequestParams) -> t.ElicitResult:
        assert isinstance(params, t.ElicitRequestFormParams)
        lived.questions.append((now["tool"], params.message))
        offered = params.requested_schema["properties"]["decision"]["enum"]
        decision = "approve_for_one_hour" if "approve_for_one_hour" in offered else "approve"
        return t.ElicitResult(action="accept", content={"decision": decision})

    async with connected(place, "memory", era, person) as client:
        for hour in day():
            for name, arguments in hour:
                now["tool"] = name
                result = await client.call_tool(name, arguments)
                lived.calls[name] += 1
                if result.is_error:
                    lived.failed.append(f"{name}: {result.content}")
            an_hour_passes(place)
    return lived


def an_hour_passes(place: Place) -> None:
    """Every moment that is on the rows of approvals and grants lies an hour further back."""
    for table, columns in {
        "approval": ("created_at", "changed_at", "expires_at"),
        "call_grant": ("created_at", "expires_at"),
    }.items():
        execute(place, f"UPDATE {table} SET {', '.join(f'{name} = {name} - {HOUR_MS}' for name in columns)}")


def _answer(request: Received) -> Answer:
    return Answer({"id": "x", "ok": True, "object": "list", "data": [], "labelIds": ["TRASH"], "content": []})
