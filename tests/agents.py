"""Agents and the people beside them: at a real client, or straight at the path of a call."""

from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import httpx2
import mcp_types as t
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from connectors.catalogue import Catalogue
from connectors.definition import Connector
from connectors.loading import parse
from server.app import open_installation, protocol_server, running
from server.approval import Approval, Decision, State
from server.connections import Workspaces
from server.errors import Question
from server.identity import Actor, Member
from tests.installed import Place
from tests.serving import NO_TLS, serving

ERAS = ("auto", "legacy")
Answering = Callable[[Any, t.ElicitRequestParams], Awaitable[t.ElicitResult]]


class Person:
    """Someone at a client that can ask: `answers` are given in order, `questions` kept."""

    can_be_asked = True
    answers_later = False
    outside = None

    def __init__(self, *answers: Decision | None) -> None:
        self.answers = list(answers)
        self.questions: list[Question] = []

    async def ask(self, question: Question) -> Decision | None:
        self.questions.append(question)
        return self.answers.pop(0)


class Nobody(Person):
    """A client that cannot ask."""

    can_be_asked = False


def answering(action: str, content: dict[str, Any] | None = None) -> tuple[Answering, list[t.ElicitRequestParams]]:
    """A client's person who always answers the same, and the questions they were asked."""
    asked: list[t.ElicitRequestParams] = []

    async def answer(_context: Any, params: t.ElicitRequestParams) -> t.ElicitResult:
        asked.append(params)
        return t.ElicitResult(action=action, content=content)  # pyright: ignore[reportArgumentType]

    return answer, asked


@asynccontextmanager
async def connected(
    place: Place, transport: str, era: str, answer: Answering | None = None, *, agent: str = "reconciler"
) -> AsyncIterator[Client]:
    """A client of this era over `memory` or `http`, as `agent`."""
    if transport == "memory":
        async with running(place.installation) as parts:
            server = protocol_server(
                place.installation, parts, lambda _ctx: replace(place.caller(agent), transport="memory")
            )
            async with Client(server, mode=era, elicitation_callback=answer) as client:  # pyright: ignore[reportArgumentType]
                yield client
        return
    async with serving(place.installation) as url:
        token = place.tokens[agent]
        http = httpx2.AsyncClient(
            verify=NO_TLS, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False
        )
        async with (
            http,
            Client(streamable_http_client(url, http_client=http), mode=era, elicitation_callback=answer) as client,  # pyright: ignore[reportArgumentType]
        ):
            yield client


def with_connector(place: Place, identifier: str, text: str) -> Place:
    """The same place with an operator's own connector file, read as at a restart; the others are not read again."""
    installation = place.installation
    folder = installation.settings.connectors
    folder.mkdir(exist_ok=True, mode=0o700)
    file = folder / f"{identifier}.yaml"
    file.write_text(text, encoding="utf-8")
    others = installation.catalogue.connectors
    catalogue = Catalogue(ChainMap({identifier: replace(_read(identifier, text), file=str(file))}, others))
    workspaces = Workspaces(installation.database, catalogue)
    place.installation = replace(installation, catalogue=catalogue, workspaces=workspaces)
    return place


@cache
def _read(identifier: str, text: str) -> Connector:
    """Read once for a process: hundreds of tests write the same file."""
    return parse(text, f"{identifier}.yaml")


def reopened(place: Place) -> Place:
    """The same place, as after a restart."""
    settings = place.installation.settings
    place.installation.close()
    place.installation = open_installation(settings)
    assert place.installation.catalogue.problems_in(settings.connectors) == ()
    return place


def record(place: Place, approval: str) -> Approval:
    """The record as its row says now."""
    found = place.installation.approvals.find(place.org, approval)
    assert found is not None
    return found


def decide(place: Place, approval: str, decision: Decision, who: Member | Actor | None = None) -> State:
    """What a person decides outside the client; returns the state that it led to."""
    actor = who if isinstance(who, Actor) else place.actor(who)
    found = record(place, approval)
    return place.database.write_now(lambda rows: place.installation.approvals.decide(rows, found, decision, actor))


def execute(place: Place, sql: str, *parameters: Any) -> int:
    """Change rows behind Keyleash's back, as a clock or an intruder would; returns how many."""
    return place.database.write_now(lambda rows: rows.execute(sql, parameters).rowcount)
