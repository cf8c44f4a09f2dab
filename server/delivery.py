"""Deliver what is in the outbox, while a server runs: at least once, by one server at a time, and beside the calls.

A notice is leased to one server before it is sent. What a server does not finish, because it was killed or the answer
was lost, is sent again with the same id when its lease has run out. Nobody waits for a webhook: each has two requests
under way at most, bounded in time and size, over connections and name look-ups that calls do not share.
"""

import asyncio
import contextlib
import json
import logging
import random
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from connectors.errors import ConnectorError, UpstreamError
from server.audit import AuditError, Event, append
from server.clock import now_ms
from server.database import Database, DatabaseProblem, Rows
from server.keys import Keys
from server.rounds import rounds
from server.webhooks import Hook, Message, hook_in, message, request_of, take_target
from vault import CannotOpen, Secret, Vault, VaultError

if TYPE_CHECKING:
    from connectors.egress import Egress  # at run time it would load the HTTP library

log = logging.getLogger("keyleash")

LOOK_S = 1.0
"""How often a server looks whether something is to be delivered."""
AT_ONCE = 2
"""Requests to one webhook under way at once, for each server."""
HESITATE_MS = 5_000
"""How long a server that knows no public address leaves something to one that does, whose notice carries a link."""
LEASE_MS = 60_000
"""Longer than a delivery can take."""
DAY_MS = 24 * 60 * 60 * 1000
"""How long a notice is tried for."""
WAITS_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400)
"""After each failure; the last one again and again, until the day is over."""
PATIENCE_S = 2.0
"""How long a server that stops waits for what is under way."""


@dataclass(frozen=True)
class Failed:
    """Why a notice was not taken. `gone`: nothing more is wanted there; `again_in_s`: for so long, nothing is."""

    why: str
    gone: bool = False
    again_in_s: float | None = None


@dataclass
class Delivery:
    """What a server delivers with."""

    database: Database
    vault: Vault
    keys: Keys
    egress: "Egress"
    public_url: str = ""
    hesitate_ms: int = 0
    clock: Callable[[], int] = now_ms
    under_way: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    tasks: set["asyncio.Task[None]"] = field(default_factory=set[Any])
    ending: bool = False
    """Whether nothing more is begun."""

    def look(self) -> None:
        """Begin what is due, as far as each webhook has room. Raises DatabaseProblem."""
        self.begin(self.due())

    def begin(self, found: Iterable[tuple[str, str]]) -> None:
        """Begin what is due for these webhooks, each named by its org and id. Raises DatabaseProblem."""
        now = self.clock()
        for org, channel in found:
            going = self.under_way[org, channel]
            room = AT_ONCE - len(going)
            due = self._next(org, channel, now, most=room + len(going)) if room > 0 else []
            for notice in [one for one in due if one not in going][:room]:
                going.add(notice)
                task = asyncio.create_task(self._one(org, channel, notice))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            if not going:
                del self.under_way[org, channel]

    async def settled(self) -> None:
        """Return once nothing is under way."""
        while self.tasks:
            await asyncio.wait(set(self.tasks))

    def due(self) -> list[tuple[str, str]]:
        """The webhooks, of every org, for which something is due, or has waited for too long. Raises DatabaseProblem.

        Asks for one org after another, so beside the calls, on a thread, where there may be many.
        """
        now = self.clock()
        return [
            (org, str(channel))
            for org in self.database.orgs()
            for (channel,) in self.database.of(org).read(
                "SELECT DISTINCT n.channel FROM notice n JOIN channel c ON c.org = n.org AND c.id = n.channel "
                f"WHERE n.org = ? AND {_DUE}",
                (org, now, now - self.hesitate_ms, now, now, now - DAY_MS),
            )
        ]

    def _next(self, org: str, channel: str, now: int, *, most: int) -> list[str]:
        rows = self.database.of(org).read(
            "SELECT n.id FROM notice n JOIN channel c ON c.org = n.org AND c.id = n.channel "
            f"WHERE n.org = ? AND n.channel = ? AND {_DUE} ORDER BY n.turn, n.due_at, n.id LIMIT ?",
            (org, channel, now, now - self.hesitate_ms, now, now, now - DAY_MS, most),
        )
        return [str(row[0]) for row in rows]

    async def _one(self, org: str, channel: str, notice: str) -> None:
        went = False
        try:
            await self._deliver(org, notice)
            went = True
        except (DatabaseProblem, AuditError, VaultError) as problem:
            log.warning("a notice could not be delivered: %s", problem)
        except Exception as error:
            log.error("a delivery failed inside Keyleash: %s", type(error).__name__)
        finally:
            going = self.under_way[org, channel]
            going.discard(notice)
            if not going:
                del self.under_way[org, channel]
            if went and not self.ending:  # the next one need not wait for the next look
                with contextlib.suppress(DatabaseProblem):
                    self.begin([(org, channel)])

    async def _deliver(self, org: str, notice: str) -> None:
        await self.keys.at_hand(org)
        lease = secrets.token_hex(8)
        leased = await self.database.of(org).write(lambda rows: self._lease(rows, org, notice, lease))
        if leased is None:
            return
        failed = await send(self.egress, leased.hook, leased.taken, leased.note)
        await self.database.of(org).write(lambda rows: self._settle(rows, leased, lease, failed))

    def _lease(self, rows: Rows, org: str, notice: str, lease: str) -> "_Leased | None":
        """Take a notice for this server; None where another has it, or where it is not due any more."""
        now = self.clock()
        taken = rows.execute(
            "UPDATE notice SET lease = ?, leased_until = ?, tries = tries + 1 WHERE org = ? AND id = ? "
            "AND leased_until <= ? AND (due_at <= ? OR created_at <= ?)",
            (lease, now + LEASE_MS, org, notice, now, now, now - DAY_MS),
        )
        if taken.rowcount != 1:
            return None
        channel, facts, created_at, tries = rows.execute(
            "SELECT channel, facts, created_at, tries FROM notice WHERE org = ? AND id = ?", (org, notice)
        ).fetchone()
        hook = hook_in(rows, org, channel)
        if hook is None:
            rows.execute("DELETE FROM notice WHERE org = ? AND id = ?", (org, notice))
            return None
        if created_at + DAY_MS <= now:
            _give_up(
                rows, hook, notice, hook.disabled_why or hook.failure or "no server was running to deliver it", now
            )
            return None
        if hook.disabled_at is not None:
            return None
        note = message(notice, json.loads(facts), self.public_url)
        return _Leased(hook, note, take_target(rows, self.vault, hook), created_at, tries)

    def _settle(self, rows: Rows, leased: "_Leased", lease: str, failed: Failed | None) -> None:
        """Write down what came of it, unless the lease has gone to another."""
        org, notice, now = leased.hook.org, leased.note.id, self.clock()
        mine = (org, notice, lease)
        if not rows.execute("SELECT 1 FROM notice WHERE org = ? AND id = ? AND lease = ?", mine).fetchone():
            return
        if failed is None:
            rows.execute("DELETE FROM notice WHERE org = ? AND id = ? AND lease = ?", mine)
            rows.execute("UPDATE channel SET delivered_at = ? WHERE org = ? AND id = ?", (now, org, leased.hook.id))
            return
        asked = 0 if failed.again_in_s is None else round(min(failed.again_in_s, WAITS_S[-1]) * 1000)
        rows.execute(
            "UPDATE channel SET failed_at = ?, failure = ? WHERE org = ? AND id = ?",
            (now, failed.why, org, leased.hook.id),
        )
        if asked:
            rows.execute(
                "UPDATE channel SET resume_at = ? WHERE org = ? AND id = ?", (now + asked, org, leased.hook.id)
            )
        due = now + max(asked, wait_ms(leased.tries))
        if failed.gone:
            _disable(rows, leased.hook, failed.why, now)
        elif due > leased.created_at + DAY_MS:
            _give_up(rows, leased.hook, notice, failed.why, now)
            return
        rows.execute(
            "UPDATE notice SET due_at = ?, lease = NULL, leased_until = 0 WHERE org = ? AND id = ? AND lease = ?",
            (due, *mine),
        )


_DUE = (
    "n.leased_until <= ? AND n.created_at <= ? AND "
    "((n.due_at <= ? AND c.resume_at <= ? AND c.disabled_at IS NULL) OR n.created_at <= ?)"
)


@dataclass(frozen=True)
class _Leased:
    """A notice that is this server's to deliver. `taken` opens the URL and the secret as they were at that moment."""

    hook: Hook
    note: Message
    taken: Callable[[], Secret]
    created_at: int
    tries: int


async def send(egress: "Egress", hook: Hook, taken: Callable[[], Secret], note: Message) -> Failed | None:
    """Send one message, once; None where it was taken. What fails is said without a word of the receiver's own."""
    from connectors.egress import Limits
    from connectors.waiting import retry_after

    try:
        with taken() as target:
            prepared = request_of(note, target, now_s=int(time.time()))
        reply = await egress.send(
            prepared,
            attach=lambda _headers, _query: (),
            private=hook.networks,
            limits=Limits(connect_s=5, total_s=10, max_body=64 * 1024),
        )
    except CannotOpen:
        return Failed("its URL and secret cannot be opened. Give them again: `keyleash channel rotate`")
    except UpstreamError as error:
        return Failed(f"the receiver answered HTTP {error.status}, a redirect, which is not followed")
    except ConnectorError as error:
        return Failed(str(error).rstrip("."))
    if 200 <= reply.status < 300:
        return None
    if reply.status == 410:
        return Failed("the receiver answered HTTP 410: it is gone for good", gone=True)
    return Failed(f"the receiver answered HTTP {reply.status}", again_in_s=retry_after(reply.headers))


def wait_ms(tries: int) -> int:
    """How long to wait after so many tries: longer each time, and never quite the same."""
    return round(WAITS_S[min(tries, len(WAITS_S)) - 1] * 1000 * random.uniform(0.8, 1.2))  # noqa: S311 - no secret


def _disable(rows: Rows, hook: Hook, why: str, now: int) -> None:
    moved = rows.execute(
        "UPDATE channel SET disabled_at = ?, disabled_why = ? WHERE org = ? AND id = ? AND disabled_at IS NULL",
        (now, why, hook.org, hook.id),
    )
    if moved.rowcount == 1:
        append(rows, hook.org, Event.CHANNEL_DISABLED, channel=hook.name, address=hook.address, reason=why)


def _give_up(rows: Rows, hook: Hook, notice: str, why: str, now: int) -> None:
    rows.execute("DELETE FROM notice WHERE org = ? AND id = ?", (hook.org, notice))
    rows.execute(
        "UPDATE channel SET given_up = given_up + 1, given_up_at = ? WHERE org = ? AND id = ?",
        (now, hook.org, hook.id),
    )
    append(rows, hook.org, Event.CHANNEL_GAVE_UP, channel=hook.name, address=hook.address, notice=notice, reason=why)


@contextlib.asynccontextmanager
async def delivering(
    database: Database, vault: Vault, *, public_url: str = "", every_s: float = LOOK_S
) -> AsyncGenerator[None]:
    """Deliver while the block runs. A sealed vault opens no URL: then nothing is sent, and all of it waits."""
    if vault.sealed is not None:
        yield
        return
    from connectors.egress import Egress, resolve_apart

    async with Egress(resolve=resolve_apart) as egress:
        keys, hesitate_ms = Keys(database, vault), 0 if public_url else HESITATE_MS
        delivery = Delivery(database, vault, keys, egress, public_url, hesitate_ms)

        async def look() -> None:
            try:
                delivery.begin(await asyncio.to_thread(delivery.due))
            except DatabaseProblem as problem:
                log.warning("what is to be delivered could not be read: %s", problem)

        try:
            async with rounds(look, every_s=every_s):
                yield
        finally:
            await _wind_up(delivery)


async def _wind_up(delivery: Delivery) -> None:
    """Give what is under way a moment; what it does not finish is another server's when its lease has run out."""
    delivery.ending = True
    if delivery.tasks:
        await asyncio.wait(set(delivery.tasks), timeout=PATIENCE_S)
    for task in set(delivery.tasks):
        task.cancel()
    await asyncio.gather(*delivery.tasks, return_exceptions=True)
