"""Conversations with wrapped servers that are kept between calls: whose each is, and when it ends.

Only where the connector's file says so. Each belongs to one agent, by one connection, as both were when it was begun:
once anything of that is otherwise, or cannot be told to be the same, it ends and a new one is begun.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio

from connectors.auth import Revealing
from connectors.definition import Connector, CredentialKind
from connectors.errors import ConnectorError, CredentialRejected, DefinitionChanged, RateLimited, Unreachable
from connectors.lasting import Lasting
from connectors.lifeline import Lifeline
from server.belonging import Slot, Whose, stands, whose
from server.clock import running_s
from server.connections import Connection, Workspaces
from server.database import DatabaseProblem
from server.identity import Caller, Directory, Frozen
from server.rounds import rounds
from vault import Secret

if TYPE_CHECKING:
    from connectors.egress import Egress  # at run time these would load the HTTP library, and the protocol's
    from connectors.upstream import Upstream

log = logging.getLogger("keyleash")

MOST_KEPT = 32
"""Of one process, each perhaps a program that runs: with one more, one that nobody talks in has to go.

Of a quarter of them, calls of no single org can be under way: however long its servers take, others have room.
"""
OLDEST_S = 8 * 3600.0
"""However busy it is, after this no further call is made in it."""
LOOK_S = 1.0
"""How often it is looked whether each may go on."""
END_S = 8.0
"""How long one that was ended is waited for."""
MOST_TOLD = 1_000
"""Of how many that have ended the agents are still to be told."""

R = TypeVar("R")
Run = Callable[["Upstream", Callable[[], None]], Awaitable[R]]
"""What a call does in its conversation, and has to call at the last moment before it is sent."""


@dataclass(eq=False)
class _Kept:
    """A conversation, and its copy of the credential: wiped when it has ended."""

    whose: Whose
    secret: Secret = field(repr=False)
    begun: float
    used: float
    revision: int
    """Of the org, when it was last seen that it may go on."""
    lasting: Lasting = field(init=False, repr=False)

    def changed(self, secret: Secret, *, renewed: bool) -> bool:
        """Whether the credential is another one; a token that was `renewed` meanwhile is not, and is taken from now."""
        if _same(self.secret, secret):
            return False
        if not renewed:
            return True
        self.secret, before = _copy(secret, self.secret.fields), self.secret
        before.wipe()
        return False

    def reveal(self, field: str) -> str:
        return self.secret.reveal(field)

    @property
    def fields(self) -> tuple[str, ...]:
        return self.secret.fields


_ALL_IN_USE = "All {} conversations that are kept at once are in use. Nothing was sent. Make the call again later."
_ALL_OF_ORG_IN_USE = (
    "All {} conversations in which calls of one org may be under way are in use. Nothing was sent. Make the call again "
    "later."
)

BEGUN, ON = "begun", "went on"


@dataclass(frozen=True)
class Told:
    """For the record whether a kept conversation was begun for a call or went on; `note` is for the model."""

    kept: str | None = None
    note: str = ""


class Conversations:
    """The kept conversations of one process, and how each call has the one that is its own."""

    def __init__(
        self,
        egress: "Egress",
        directory: Directory,
        workspaces: Workspaces,
        *,
        clock: Callable[[], float] = running_s,
        most: int = MOST_KEPT,
        look_s: float = LOOK_S,
    ) -> None:
        self._egress, self._directory, self._workspaces = egress, directory, workspaces
        self._clock, self._most, self._look_s = clock, most, look_s
        self._kept: dict[Slot, _Kept] = {}
        self._going: set[_Kept] = set()  # the same, and those that are just ending
        self._why: dict[Slot, str] = {}
        self._lifeline: Lifeline | None = None

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncGenerator[None]:
        """Conversations are kept while the block runs, and none longer; outside of it, each call has its own."""
        self._lifeline = lifeline = Lifeline()
        try:
            async with rounds(self._look, every_s=self._look_s):
                yield
        finally:
            self._lifeline = None
            with anyio.CancelScope(shield=True):
                await self._end_all()
            lifeline.close()

    def alone(self, caller: Caller, connection: Connection, connector: Connector) -> str:
        """What only one call at a time is made under; empty where calls do not share a conversation."""
        return "" if not self._keeps(connector) else " ".join(whose(caller, connection, connector).slot)

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._going)

    async def talk(  # noqa: PLR0917 - what a conversation is made of
        self,
        caller: Caller,
        connection: Connection,
        connector: Connector,
        kind: CredentialKind,
        secret: Secret,
        run: Run[R],
        before: Callable[[], None],
    ) -> "tuple[R, Told]":
        """What `run` comes to, in the conversation that this call is to be made in. Raises a ConnectorError.

        `run` is handed the conversation, and what it has to call at the last moment before the call is sent.
        """
        if not self._keeps(connector):
            egress, lifeline = self._egress, self._lifeline
            return await once(egress, connection, connector, kind, secret, run, before, lifeline=lifeline)
        mine = whose(caller, connection, connector)
        while True:
            one, told = await self._one(mine, caller.revision, connection, kind, secret)
            ready: list[bool] = []

            def at_last(ready: list[bool] = ready) -> None:
                ready.append(True)
                before()

            try:
                came = await one.lasting.call(lambda upstream: run(upstream, at_last))
            except ConnectorError as error:
                final = isinstance(error, (DefinitionChanged, CredentialRejected, RateLimited))
                self._forget(one, "a call in it failed" if ready or final else "its server ended it")
                if final or ready or told.kept == BEGUN:
                    raise
                continue  # it had ended, and nothing of the call was sent: a new one is begun, once
            except BaseException:
                self._forget(one, "a call in it was cut off")
                raise
            one.used = self._clock()
            return came, told

    # -- one of them

    def _keeps(self, connector: Connector) -> bool:
        return self._lifeline is not None and connector.server is not None and connector.server.keep_s > 0

    async def _one(
        self, mine: Whose, revision: int, connection: Connection, kind: CredentialKind, secret: Secret
    ) -> "tuple[_Kept, Told]":
        """The conversation that is kept for this, or a new one."""
        self._leave_room_for_others(mine.org)
        one = self._kept.get(mine.slot)
        if one is not None:
            why = self._over(one) or self._otherwise(one, mine, kind, secret)
            if why is None:
                return one, Told(ON)
            self._forget(one, why)
        for before in [each for each in self._going if each.whose.slot == mine.slot]:
            await self._gone(before)  # what it holds, such as a folder or a lock, the new one may want
        await self._make_room(mine.org)
        if self._lifeline is None:  # all were ended meanwhile, and nobody would end this one
            raise Unreachable("Keyleash is being stopped. Nothing was sent.", maybe_sent=False)
        now = self._clock()
        one = _Kept(mine, _copy(secret, _needed(kind, secret)), now, now, revision)
        opening = partial(_opened, self._egress, connection, mine.connector, kind, one, self._lifeline)
        one.lasting = Lasting(mine.connector.title, opening)
        self._kept[mine.slot] = one
        self._going.add(one)
        one.lasting.begin()
        return one, Told(BEGUN, self._note(mine))

    def _otherwise(self, one: _Kept, mine: Whose, kind: CredentialKind, secret: Secret) -> str | None:
        if one.whose != mine:
            return CHANGED
        over_http = mine.connector.server is not None and not mine.connector.server.command
        renewed = over_http and kind.oauth is not None
        return "its credential is another one now" if one.changed(secret, renewed=renewed) else None

    def _over(self, one: _Kept) -> str | None:
        """Why no further call is made in it, by itself; None where one may be."""
        server, now = one.whose.connector.server, self._clock()
        keep_s = server.keep_s if server is not None else 0
        if not one.lasting.alive:
            return "its server ended it"
        if now - one.begun >= OLDEST_S:
            return f"it had been kept for {OLDEST_S / 3600:g} hours, which is the most"
        if now - one.used >= keep_s:
            return f"nothing was called in it for {keep_s} s"
        return None

    def _leave_room_for_others(self, org: str) -> None:
        under_way = sum(one.lasting.busy for one in self._going if one.whose.org == org)
        most = self._most - self._most // 4
        if under_way >= most:
            raise Unreachable(_ALL_OF_ORG_IN_USE.format(most), maybe_sent=False)

    async def _make_room(self, org: str) -> None:
        """End one that nobody talks in where there are too many: of the org with the most, the longest idle one."""
        while len(self._going) >= self._most:
            of = Counter([org, *(one.whose.org for one in self._going)])
            idle = [one for one in self._kept.values() if not one.lasting.busy]
            one = next((one for one in self._going if self._kept.get(one.whose.slot) is not one), None)
            if one is None and idle:
                one = min(idle, key=lambda each: (-of[each.whose.org], each.used))
                self._forget(one, "there were too many others")
            if one is not None:
                await self._gone(one)
            if one is None or one in self._going:
                raise Unreachable(_ALL_IN_USE.format(self._most), maybe_sent=False)

    def _forget(self, one: _Kept, why: str) -> None:
        """No call finds it any more, and it ends."""
        if self._kept.get(one.whose.slot) is one:
            del self._kept[one.whose.slot]
            self._why.pop(one.whose.slot, None)
            self._why[one.whose.slot] = why
            if len(self._why) > MOST_TOLD:
                self._why.pop(next(iter(self._why)))
        one.lasting.end()
        self._swept(one)

    async def _gone(self, one: _Kept) -> None:
        """Once nothing is left of it. One that does not come to its end is cut off."""
        for last in (False, True):
            with anyio.move_on_after(END_S):
                await one.lasting.ended.wait()
            if one.lasting.ended.is_set() or last:
                break
            one.lasting.cut()
        self._swept(one)

    def _swept(self, one: _Kept) -> None:
        if one.lasting.ended.is_set():
            one.secret.wipe()
            self._going.discard(one)

    def _note(self, mine: Whose) -> str:
        why = self._why.pop(mine.slot, None)
        if why is None:
            return ""
        return (
            f"A new conversation with {mine.connector.title} was begun, because {why}: what the server kept of the one "
            "before, it may have no more."
        )

    # -- all of them

    async def _look(self) -> None:
        """End those that are not to go on; of the others it is known that they may."""
        if self._lifeline is not None:
            self._lifeline.look()
        answers = True
        for one in list(self._going):
            why = None
            try:
                why = self._seen(one) if answers else None
            except DatabaseProblem:  # no call is made meanwhile either, and each ends by itself when nobody uses it
                answers = False  # to ask for each of the others would hold up everybody else for seconds
            if why is None and not one.lasting.busy:  # else it is in use, and its call says how it stands
                why = self._over(one)
            if why is not None:
                self._forget(one, why)
            self._swept(one)

    def _seen(self, one: _Kept) -> str | None:
        """Why it is not to go on: also where that cannot be seen. Raises DatabaseProblem."""
        try:
            return self._not_any_more(one)
        except DatabaseProblem:
            raise
        except Exception as error:
            log.error("it cannot be seen whether a conversation may go on: %s", type(error).__name__)
            return CHANGED

    def _not_any_more(self, one: _Kept) -> str | None:
        """Why its agent or connection is not what it was, by what the database says now. Raises DatabaseProblem."""
        mine = one.whose
        try:
            now = self._directory.by_agent(mine.org, mine.agent)
            if now is None or (now.token_mark, now.narrowing) != (mine.token_mark, mine.narrowing):
                return CHANGED
            if now.revision == one.revision:
                return None
            if not stands(self._workspaces.of(now), mine):
                return CHANGED
        except Frozen:
            return "all agents were stopped meanwhile"
        one.revision = now.revision
        return None

    async def _end_all(self) -> None:
        for one in list(self._going):
            self._forget(one, "the server was stopped")
        async with anyio.create_task_group() as group:
            for one in list(self._going):
                group.start_soon(self._gone, one)


async def once(  # noqa: PLR0917 - what a conversation is made of, and what is done in it
    egress: "Egress",
    connection: Connection,
    connector: Connector,
    kind: CredentialKind,
    secret: Revealing,
    run: Run[R],
    before: Callable[[], None],
    *,
    lifeline: Lifeline | None = None,
) -> tuple[R, Told]:
    """What `run` comes to, in a conversation of its own that ends with it. Raises a ConnectorError."""
    async with _opened(egress, connection, connector, kind, secret, lifeline) as upstream:
        return await run(upstream, before), Told()


def _opened(  # noqa: PLR0917 - what a conversation is made of
    egress: "Egress",
    connection: Connection,
    connector: Connector,
    kind: CredentialKind,
    secret: Revealing,
    lifeline: Lifeline | None = None,
) -> "AbstractAsyncContextManager[Upstream]":
    from connectors.upstream import opened  # at run time alone: it loads the protocol

    return opened(
        connector,
        base_url=connection.base_url,
        kind=kind,
        secret=secret,
        egress=egress,
        private=connection.networks,
        lifeline=lifeline,
    )


CHANGED = "its agent, its connection or its connector file is not what it was"


def _needed(kind: CredentialKind, secret: Secret) -> tuple[str, ...]:
    """The fields that a conversation needs: of an account that is signed in to by OAuth, the token alone."""
    return ("secret",) if kind.oauth is not None else secret.fields


def _copy(secret: Secret, names: tuple[str, ...]) -> Secret:
    return Secret({name: secret.reveal(name) for name in names})


def _same(kept: Secret, given: Secret) -> bool:
    return all(name in given.fields and kept.reveal(name) == given.reveal(name) for name in kept.fields)
