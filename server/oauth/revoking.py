"""Disconnecting ends the tokens at their provider too; what cannot be ended at once is tried again, or given up aloud.

In this order: the connection goes, so that no call uses it any more; its provider is asked; then its credential goes. A
process that is killed in between leaves a row, by which a running server goes on.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from connectors.definition import Connector, OAuth
from connectors.errors import ConnectorError, TokenRefused
from connectors.oauth import revoked, revoking
from server.audit import AuditError, Event, append
from server.clock import now_ms
from server.connections import Connection, bound_origin, bound_scheme, credential_kind, remove
from server.database import Database, DatabaseProblem, Rows
from server.erasure import request
from server.keys import Keys
from server.oauth.apps import AppProblem, Apps
from server.oauth.tokens import LIMITS, OWN, host_of
from vault import CannotOpen, CannotResolve, Sealed, Secret, Vault, VaultError

if TYPE_CHECKING:
    from connectors.egress import Egress

log = logging.getLogger("keyleash")

RETRY_S = 30.0
"""How often a server looks whether something is to be tried again."""
WAITS_MS = tuple(minutes * 60_000 for minutes in (1, 5, 15, 60, 240, 480, 720))
"""Between one try and the next; after the last of them it is given up."""


class BeingRenewed(Exception):
    """The tokens are being renewed this moment: what is there would be the wrong ones to end."""


@dataclass(frozen=True)
class Pending:
    """Tokens of a removed connection that their provider may still take. Times are milliseconds since the epoch."""

    org: str
    id: str
    name: str
    connector: str
    base_url: str
    private: tuple[str, ...]
    kind: str
    scheme: str
    credential_version: int
    app: str
    attempts: int
    reason: str
    by: str
    requested_at: int
    next_at: int


def revocable(connection: Connection, connector: Connector) -> bool:
    """Whether the connection has tokens that its provider can be asked to end."""
    try:
        oauth = credential_kind(connection, connector).oauth
    except CannotOpen:
        return False
    return oauth is not None and oauth.revoke is not None


def remove_and_keep(rows: Rows, vault: Vault, connection: Connection, *, by: str, wait: bool) -> Pending:
    """Remove the connection, but for its credential, which is noted as to be revoked.

    Raises BeingRenewed if it is to `wait` for that, and ConnectionProblem where somebody else has removed it.
    """
    org, now = connection.org, now_ms()
    row = rows.execute(
        "SELECT app, lease_until FROM oauth_token WHERE org = ? AND connection = ?", (org, connection.id)
    ).fetchone()
    app, lease_until = row or (OWN, None)
    if wait and lease_until is not None and lease_until > now:
        raise BeingRenewed
    remove(rows, vault, connection, by=by, keep_credential=True)
    rows.execute(
        "INSERT INTO oauth_revocation (org, id, name, connector, base_url, private, kind, scheme, credential_version, "
        "app, attempts, reason, requested_by, requested_at, next_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '', ?, ?, ?)",
        (
            *(org, connection.id, connection.name, connection.connector, connection.base_url),
            *(json.dumps(connection.private), connection.kind, connection.scheme, connection.credential_version),
            *(app, by, now, now + WAITS_MS[0]),
        ),
    )
    return _pending_of(rows.execute(f"{_PENDING} WHERE org = ? AND id = ?", (org, connection.id)).fetchone())


def pending(database: Database) -> list[Pending]:
    """Everything that is still to be revoked, longest waiting first. Raises DatabaseProblem."""
    found = [
        _pending_of(row)
        for org in database.orgs()
        for row in database.of(org).read(f"{_PENDING} WHERE org = ?", (org,))
    ]
    return sorted(found, key=lambda one: (one.requested_at, one.org, one.id))


async def attempt(
    database: Database,
    vault: Vault,
    egress: "Egress",
    connectors: Mapping[str, Connector],
    one: Pending,
    *,
    apps: Apps,
) -> str | None:
    """Ask the provider once, and write down what came of it; returns why it is not done, None where it is.

    Of several that try at once, one asks. Raises VaultError where the credential cannot be opened just now (Sealed
    before anything is counted as a try), and DatabaseProblem.
    """
    if vault.sealed is not None:
        raise Sealed(vault.sealed)
    if not await database.of(one.org).write(lambda rows: _claimed(rows, one)):
        return "another process is at it"
    reason, final = await _asked(database, vault, egress, connectors, one, apps)
    if reason is None:
        await database.of(one.org).write(lambda rows: _done(rows, vault, one, outcome="succeeded"))
    elif final or one.attempts >= len(WAITS_MS) - 1:
        await database.of(one.org).write(lambda rows: _done(rows, vault, one, outcome="given up", reason=reason))
    else:
        await database.of(one.org).write(
            lambda rows: rows.execute(
                "UPDATE oauth_revocation SET reason = ? WHERE org = ? AND id = ?", (reason, one.org, one.id)
            )
        )
    return reason


async def _asked(  # noqa: PLR0917 - the arguments of `attempt`
    database: Database,
    vault: Vault,
    egress: "Egress",
    connectors: Mapping[str, Connector],
    one: Pending,
    apps: Apps,
) -> tuple[str | None, bool]:
    """Why it is not done, None where it is; and whether trying again is no use."""
    oauth = _oauth_of(connectors, one)
    if oauth is None or oauth.revoke is None:
        return "its connector's file no longer says how", True
    try:
        with (
            database.of(one.org).snapshot(lambda rows: _opened(rows, vault, one)) as opened,
            apps.joined(one.app, one.connector, oauth, opened) as secret,
        ):
            how = revoking(oauth, one.base_url, secret, secret.fields)
            reply = await egress.send(
                how.prepared,
                attach=how.attach,
                fill=how.fill,
                private=tuple(ipaddress.ip_network(text) for text in one.private),
                limits=LIMITS,
            )
            revoked(oauth, reply, host_of(oauth, one.base_url))
    except TokenRefused as refused:
        return refused.code, refused.ended
    except CannotOpen:
        return "its credential cannot be opened", True
    except (AppProblem, CannotResolve) as problem:
        return str(problem), False
    except ConnectorError as error:
        return str(error), False
    return None, True


def _oauth_of(connectors: Mapping[str, Connector], one: Pending) -> OAuth | None:
    """As the credential is bound to it: a file that now names another place is not followed."""
    connector = connectors.get(one.connector)
    for kind in connector.credentials if connector else ():
        if kind.id == one.kind and bound_scheme(kind) == one.scheme:
            return kind.oauth
    return None


def _opened(rows: Rows, vault: Vault, one: Pending) -> Secret:
    return vault.open(
        rows,
        org=one.org,
        connection=one.id,
        version=one.credential_version,
        origin=bound_origin(one.base_url, one.private),
        scheme=one.scheme,
    )


def _claimed(rows: Rows, one: Pending) -> bool:
    wait = WAITS_MS[min(one.attempts, len(WAITS_MS) - 1)]
    claimed = rows.execute(
        "UPDATE oauth_revocation SET attempts = attempts + 1, next_at = ? WHERE org = ? AND id = ? AND attempts = ?",
        (now_ms() + wait, one.org, one.id, one.attempts),
    )
    return bool(claimed.rowcount == 1)


def _done(rows: Rows, vault: Vault, one: Pending, *, outcome: str, reason: str | None = None) -> None:
    """The credential goes, with its entry: ended at its provider, or given up."""
    gone = rows.execute("DELETE FROM oauth_revocation WHERE org = ? AND id = ?", (one.org, one.id))
    if gone.rowcount != 1:
        return
    vault.remove(rows, org=one.org, connection=one.id)
    request(rows, one.org, one.id, "connection", one.name)
    append(
        rows,
        one.org,
        Event.CONNECTION_REVOKED,
        connection=one.name,
        connector=one.connector,
        attempts=one.attempts + 1,
        outcome=outcome,
        reason=reason,
        by=one.by,
    )


@contextlib.asynccontextmanager
async def retrying(
    database: Database,
    vault: Vault,
    egress: "Egress",
    connectors: Mapping[str, Connector],
    keys: Keys,
    *,
    apps: Apps,
    every_s: float = RETRY_S,
) -> AsyncGenerator[None]:
    """Try again what is due, now and every so often, while the block runs. With a sealed vault nobody is asked."""
    task = asyncio.create_task(_retry(database, vault, egress, connectors, keys, apps, every_s))
    try:
        yield
    finally:
        task.cancel()  # what was asked and not written down is asked again, which changes nothing
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _retry(  # noqa: PLR0917 - the arguments of `retrying`
    database: Database,
    vault: Vault,
    egress: "Egress",
    connectors: Mapping[str, Connector],
    keys: Keys,
    apps: Apps,
    every_s: float,
) -> None:
    while True:
        try:
            due = [one for one in pending(database) if one.next_at <= now_ms()] if vault.sealed is None else []
        except DatabaseProblem as problem:
            log.warning("whether tokens are still to be revoked could not be read: %s", problem)
            due = []
        for one in due:
            try:
                await keys.at_hand(one.org)
                reason = await attempt(database, vault, egress, connectors, one, apps=apps)
            except (AuditError, DatabaseProblem, VaultError) as problem:
                reason = str(problem)
            if reason is not None:
                log.warning("the tokens of %s, which was removed, are not revoked yet: %s", one.name, reason)
        await asyncio.sleep(every_s)


_PENDING = (
    "SELECT org, id, name, connector, base_url, private, kind, scheme, credential_version, app, attempts, reason, "
    "requested_by, requested_at, next_at FROM oauth_revocation"
)


def _pending_of(row: Any) -> Pending:
    org, identifier, name, connector, base_url, private, *rest = row
    return Pending(org, identifier, name, connector, base_url, tuple(json.loads(private)), *rest)
