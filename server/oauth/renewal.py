"""A token is renewed before it ends: by one process of all, once, and stored before it is used.

A lease in the database says who asks the provider. It is taken and given back in short transactions; none is open while
the provider is asked, and that takes `tokens.LIMITS` at most. Whoever waits takes the token that then is there. The one
hole: a process that is killed between the provider's answer and the commit has lost the new pair, and where refresh
tokens are used once, a person has to consent again.
"""

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from connectors.definition import Connector, CredentialKind, OAuth
from connectors.errors import ConnectorError, CredentialMalformed, TokenRefused, Unreachable
from connectors.oauth import Granted
from server.audit import AuditError, Event, append
from server.clock import iso, now_ms
from server.connections import Connection, credential_kind, take_credential
from server.credential import is_reference, resolved
from server.database import Database, DatabaseProblem, Rows
from server.erasure import request
from server.errors import CallRefused, ConsentNeeded, KeyRefused, NotRenewed
from server.identity import touch
from server.oauth.apps import Apps
from server.oauth.tokens import Standing, ask, host_of, renewed, sealed_fields, standing
from vault import STORED, CannotOpen, CannotResolve, Resolver, Secret, Vault, VaultError
from vault.references import GRACE_S

if TYPE_CHECKING:
    from connectors.egress import Egress

log = logging.getLogger("keyleash")

LEASE_MS = 60_000
"""Longer than asking and storing can take together, so that a lease is never lost to somebody who is merely slower."""
WAIT_S = 15.0
"""How long a call waits for a renewal that another process has in hand."""
GLANCE_S = 0.05
BACKOFF_MS, MOST_BACKOFF_MS = 5_000, 300_000
TRIES_TO_STORE = 3


@dataclass(frozen=True)
class _Turn:
    """The lease on one renewal, with what opens the credential as it was when it was taken."""

    lease: str
    held: Standing
    taken: Callable[[], Secret]
    took_over: bool  # from one who never came back: a pair may have been lost


class Superseded(Exception):
    """Somebody else has renewed or replaced these tokens meanwhile, and theirs count."""


class Renewals:
    """Keeps the tokens of all connections of one process usable."""

    def __init__(self, database: Database, vault: Vault, egress: "Egress", apps: Apps, references: Resolver) -> None:
        self._references = references
        self._apps = apps
        self._database = database
        self._vault = vault
        self._egress = egress
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._under_way: set[asyncio.Task[None]] = set()

    async def current(self, connection: Connection, connector: Connector, who: Mapping[str, Any]) -> None:
        """Return once the connection's token can be used, as far as anybody knows.

        Raises ConsentNeeded, or KeyRefused where a private key is what the provider takes no more, or NotRenewed.
        `who` is put on record with a renewal. For a connection without tokens it does nothing.
        """
        if connection.needs_consent_at is not None:
            raise _needs(connection)
        kind = _kind_of(connection, connector)
        if kind is None or kind.oauth is None:
            return
        held = standing(self._database, connection)
        if held is None or not (held.needs_consent or held.due(now_ms())):
            return
        async with self._turns[connection.id]:
            # A task of its own, and waited for: a new pair is not lost to a client that goes away. Bounded in time.
            task = asyncio.ensure_future(self._renewed(connection, kind, kind.oauth, who))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            with anyio.CancelScope(shield=True):
                await asyncio.shield(task)

    async def settle(self) -> None:
        """Let what is under way come to its end, before the door out is closed."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _renewed(
        self, connection: Connection, kind: CredentialKind, oauth: OAuth, who: Mapping[str, Any]
    ) -> None:
        until = time.monotonic() + WAIT_S
        while True:
            now = now_ms()
            held = standing(self._database, connection)
            if held is None or held.credential_version != connection.credential_version:
                return  # it was replaced meanwhile, and the call will see that
            if not held.due(now) and not held.needs_consent:
                return
            if held.needs_consent:
                raise _needs(connection)
            resting = held.retry_at is not None and now < held.retry_at
            turn = None if resting else await self._take(connection, held)
            if turn is not None:
                await self._renew(connection, kind, oauth, turn, who)
                continue
            if held.usable(now):
                return  # somebody else is at it, or it failed a moment ago: what is there still works
            if resting:
                raise NotRenewed(connection.name, "it failed a moment ago")
            if time.monotonic() >= until:
                raise NotRenewed(connection.name, "another process is at it")
            await anyio.sleep(GLANCE_S)

    async def _take(self, connection: Connection, held: Standing) -> _Turn | None:
        """The lease, if nobody has it; None where somebody has, or the tokens are no longer these."""
        lease, now = secrets.token_hex(16), now_ms()

        def change(rows: Rows) -> _Turn | None:
            got = rows.execute(
                "UPDATE oauth_token SET lease = ?, lease_until = ? WHERE org = ? AND connection = ? AND generation = ? "
                "AND (lease IS NULL OR lease_until <= ?) AND EXISTS (SELECT 1 FROM connection c WHERE "
                "c.org = oauth_token.org AND c.id = oauth_token.connection AND c.credential_version = ? "
                "AND c.needs_consent_at IS NULL)",
                (
                    *(lease, now + self._lease_ms(connection), connection.org, connection.id, held.generation, now),
                    connection.credential_version,
                ),
            )
            if got.rowcount != 1:
                return None
            taken = take_credential(rows, self._vault, connection)
            return _Turn(lease, held, taken, took_over=held.lease is not None)

        try:
            return await self._database.of(connection.org).write(change)
        except DatabaseProblem as problem:
            log.error("a renewal for %s could not begin: %s", connection.name, problem)
            raise NotRenewed(connection.name, "the database") from None

    def _lease_ms(self, connection: Connection) -> int:
        """Where a key has to be read from where it stays, that takes its time too."""
        reading_s = 0.0 if connection.source == STORED else self._references.seconds + GRACE_S
        return LEASE_MS + int(reading_s * 1000)

    async def _renew(
        self, connection: Connection, kind: CredentialKind, oauth: OAuth, turn: _Turn, who: Mapping[str, Any]
    ) -> None:
        started = time.monotonic()
        facts: dict[str, Any] = {
            **who,
            **_about(connection),
            "host": host_of(oauth, connection.base_url),
            "app": turn.held.app,
            "took_over": turn.took_over or None,
        }
        outcome = await self._asked(connection, kind, oauth, turn)
        facts["milliseconds"] = round((time.monotonic() - started) * 1000)
        try:
            if isinstance(outcome, Exception):
                await self._failed(connection, oauth, turn, outcome, facts)
            else:
                given, fields = outcome
                with fields:
                    await self._stored(connection, turn, given, fields, facts)
        except Superseded:
            log.warning("the tokens of %s were renewed or replaced by somebody else meanwhile", connection.name)
        except (DatabaseProblem, AuditError, VaultError) as problem:
            log.error("what came of a renewal for %s could not be stored: %s", connection.name, problem)
            raise NotRenewed(connection.name, "not stored") from None

    async def _asked(
        self, connection: Connection, kind: CredentialKind, oauth: OAuth, turn: _Turn
    ) -> tuple[Granted, Secret] | Exception:
        """What the provider gave, and what is to be sealed of it; or why nothing. Raises nothing: secrets are here."""
        try:
            with (
                turn.taken() as taken,
                self._joined(turn, connection, oauth, taken) as sealed,
                await self._in_hand(connection, kind, sealed) as held,
            ):
                if oauth.grant == "code" and "refresh_token" not in held.fields:
                    return TokenRefused(host_of(oauth, connection.base_url), "no refresh token", ended=True)
                given = await ask(
                    self._egress,
                    oauth,
                    "refresh_token" if oauth.grant == "code" else oauth.grant,
                    held,
                    base_url=connection.base_url,
                    networks=connection.networks,
                    scopes=turn.held.asked,
                )
                return given, sealed_fields(given, sealed, turn.held.app)
        except (ConnectorError, VaultError) as problem:
            return problem.with_traceback(None)
        except Exception as problem:
            log.error("a renewal failed inside Keyleash: %s", type(problem).__name__)
            return ConnectorError("inside Keyleash")

    async def _in_hand(self, connection: Connection, kind: CredentialKind, sealed: Secret) -> Secret:
        """What is asked with: as it is sealed, or read from where it stays. Raises CannotOpen or CannotResolve."""
        if not is_reference(connection, sealed):
            return sealed
        return await anyio.to_thread.run_sync(resolved, self._references, kind, sealed)

    def _joined(self, turn: _Turn, connection: Connection, oauth: OAuth, taken: Secret) -> Secret:
        return self._apps.joined(turn.held.app, connection.connector, oauth, taken)

    async def _stored(
        self, connection: Connection, turn: _Turn, given: Granted, fields: Secret, facts: Mapping[str, Any]
    ) -> None:
        """Seal the new pair in the place of the old, with its entry, in one transaction. The provider ended the old."""

        def change(rows: Rows) -> None:
            renewable = turn.held.renewable or "refresh_token" in given.fields
            if not renewed(rows, connection, turn.held, turn.lease, given, renewable=renewable):
                raise Superseded
            _require_the_same(rows, connection)
            self._vault.replace(
                rows,
                org=connection.org,
                connection=connection.id,
                version=connection.credential_version,
                origin=connection.origin,
                scheme=connection.scheme,
                fields=fields,
            )
            request(rows, connection.org, connection.id, "secret", connection.name)
            ends: dict[str, Any] = {"expires_at": iso(now_ms() + given.lifetime * 1000)} if given.lifetime else {}
            append(rows, connection.org, Event.CONNECTION_RENEWED, **facts, **ends, outcome="succeeded")

        for left in reversed(range(TRIES_TO_STORE)):
            try:
                await self._database.of(connection.org).write(change)
            except DatabaseProblem:
                if not left:
                    raise
            else:
                return

    async def _failed(
        self, connection: Connection, oauth: OAuth, turn: _Turn, problem: Exception, facts: dict[str, Any]
    ) -> None:
        """Put a failure on record, and say what it means for the call. A token that still works is used on."""
        if isinstance(problem, TokenRefused) and problem.ended:
            await self._ended(connection, turn, problem, facts)
            raise _needs(connection)
        code = _said(problem)
        lost = oauth.rotates and isinstance(problem, Unreachable) and problem.maybe_sent
        wait = min(BACKOFF_MS * 2 ** min(turn.held.failures, 10), MOST_BACKOFF_MS)

        def change(rows: Rows) -> None:
            now = now_ms()
            rows.execute(
                "UPDATE oauth_token SET lease = NULL, lease_until = NULL, failures = failures + 1, retry_at = ? "
                "WHERE org = ? AND connection = ? AND generation = ? AND lease = ?",
                (now + wait, connection.org, connection.id, turn.held.generation, turn.lease),
            )
            append(
                rows,
                connection.org,
                Event.CONNECTION_RENEWED,
                **facts,
                outcome="failed",
                reason=code,
                maybe_lost=lost or None,
            )

        await self._database.of(connection.org).write(change)
        log.warning("the tokens of %s could not be renewed: %s", connection.name, code)
        if not turn.held.usable(now_ms()):
            raise NotRenewed(connection.name, code)

    async def _ended(self, connection: Connection, turn: _Turn, problem: TokenRefused, facts: dict[str, Any]) -> None:
        """The provider takes them no more. Whoever has renewed or replaced them meanwhile is believed instead."""

        def change(rows: Rows) -> None:
            let_go = rows.execute(
                "UPDATE oauth_token SET lease = NULL, lease_until = NULL WHERE org = ? AND connection = ? "
                "AND generation = ? AND lease = ?",
                (connection.org, connection.id, turn.held.generation, turn.lease),
            )
            if let_go.rowcount != 1:
                raise Superseded
            _require_the_same(rows, connection)
            rows.execute(
                "UPDATE connection SET needs_consent_at = ? WHERE org = ? AND id = ?",
                (now_ms(), connection.org, connection.id),
            )
            touch(rows, connection.org)
            append(rows, connection.org, Event.CONNECTION_NEEDS_CONSENT, **facts, outcome="failed", reason=problem.code)

        await self._database.of(connection.org).write(change)
        what = "needs a new key" if connection.signed else "has to be consented to again"
        log.error("%s %s: %s", connection.name, what, problem)


def _needs(connection: Connection) -> CallRefused:
    return KeyRefused(connection.name) if connection.signed else ConsentNeeded(connection.name)


def _said(problem: Exception) -> str:
    """Why there is no token, for the log and the record."""
    if isinstance(problem, TokenRefused):
        return problem.code
    return str(problem) if isinstance(problem, (CannotResolve, CredentialMalformed)) else type(problem).__name__


def _kind_of(connection: Connection, connector: Connector) -> CredentialKind | None:
    """None where the connector's file has changed: then the credential does not open, and the call says so."""
    try:
        return credential_kind(connection, connector)
    except CannotOpen:
        return None


def _require_the_same(rows: Rows, connection: Connection) -> None:
    there = rows.execute(
        "SELECT 1 FROM connection WHERE org = ? AND id = ? AND credential_version = ?",
        (connection.org, connection.id, connection.credential_version),
    ).fetchone()
    if there is None:
        raise Superseded


def _about(connection: Connection) -> dict[str, Any]:
    return {
        "connection": connection.name,
        "account": connection.account,
        "ownership": connection.ownership,
        "credential_version": connection.credential_version,
    }
