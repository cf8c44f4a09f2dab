"""A connection's tokens: sealed as its credential; in the open stands only when they end and who renews them."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from connectors.auth import Revealing
from connectors.bounded import Limits
from connectors.definition import OAuth
from connectors.oauth import Asking, Granted, asking, endpoint, granted
from server.clock import iso, now_ms
from server.connections import Connection, Network
from server.database import Database, Rows
from vault import Secret

if TYPE_CHECKING:
    from connectors.egress import Egress

OWN = "own"
"""The app that asks is the org's own; its id and secret are sealed with the tokens."""
REGISTERED = "registered"
"""It was made for this one connection by the provider itself (RFC 7591), and is sealed with the tokens, too."""
LIMITS = Limits(connect_s=5, total_s=10, max_body=256 * 1024)
"""A provider is asked for no longer than this: calls wait for it."""
EARLY_MS = 300_000
"""A token is renewed so long before its end, and somewhat earlier by chance; a short-lived one with a quarter left."""


@dataclass(frozen=True)
class Consent:
    """What a provider gave to whom, before it is stored. `secret` is the whole credential, to be wiped after."""

    secret: Secret
    oauth: OAuth
    app: str
    asked: tuple[str, ...]
    scopes: tuple[str, ...]
    lifetime: int | None

    @property
    def renewable(self) -> bool:
        """Whether another token can be had without a person."""
        return self.oauth.grant != "code" or "refresh_token" in self.secret.fields

    @property
    def missing(self) -> tuple[str, ...]:
        """Scopes that were asked for and not given."""
        return tuple(scope for scope in self.asked if scope not in self.scopes)

    def for_record(self) -> dict[str, Any]:
        """What the audit log says of it."""
        return {
            "oauth": self.oauth.grant,
            "app": self.app,
            "scopes": list(self.scopes),
            "expires_at": iso(now_ms() + self.lifetime * 1000) if self.lifetime else None,
        }


@dataclass(frozen=True)
class Standing:
    """How a connection's tokens stand, read without opening them. Times are milliseconds since the epoch."""

    app: str
    asked: tuple[str, ...]
    scopes: tuple[str, ...]
    renewable: bool
    rotates: bool
    generation: int
    obtained_at: int
    expires_at: int | None
    due_at: int | None
    lease: str | None
    lease_until: int | None
    failures: int
    retry_at: int | None
    needs_consent: bool
    credential_version: int

    def due(self, now: int) -> bool:
        return self.due_at is not None and self.due_at <= now

    def usable(self, now: int) -> bool:
        """Whether the token that is there still works, as far as its provider said."""
        return self.expires_at is None or now < self.expires_at


async def ask(
    egress: "Egress",
    oauth: OAuth,
    what: Asking,
    held: Revealing,
    *,
    base_url: str,
    networks: tuple[Network, ...],
    redirect: str = "",
    scopes: Sequence[str] = (),
) -> Granted:
    """Ask the provider, in bounded time. Raises ConnectorError: TokenRefused for a no, others where none was heard."""
    asked = asking(oauth, base_url, what, held, redirect=redirect, scopes=scopes)
    reply = await egress.send(asked.prepared, attach=asked.attach, fill=asked.fill, private=networks, limits=LIMITS)
    return granted(oauth, reply, host_of(oauth, base_url))


def host_of(oauth: OAuth, base_url: str) -> str:
    """The provider, as people know it."""
    return endpoint(oauth.token, base_url)[0].partition("//")[2]


def sealed_fields(given: Granted, kept: Secret, app: str) -> Secret:
    """The credential to seal: the new tokens; of `kept` the org's own app or key, or the reference to it, and the
    refresh token if no new one came.
    """
    new = {"access_token": "secret", "refresh_token": "refresh_token"}
    names = [name for name in kept.fields if name not in _DROPPED[app in (OWN, REGISTERED)]]
    return Secret(
        {name: kept.reveal(name) for name in names} | {new[name]: given.reveal(name) for name in given.fields}
    )


_DROPPED = {True: ("secret",), False: ("secret", "client_id", "client_secret")}


def begin(rows: Rows, connection: Connection, consent: Consent) -> None:
    """Note how the tokens stand that were just stored for a connection, in the same transaction."""
    now = now_ms()
    expires_at, due_at = _ends(now, consent.lifetime, renewable=consent.renewable)
    rows.execute("DELETE FROM oauth_token WHERE org = ? AND connection = ?", (connection.org, connection.id))
    rows.execute(
        "INSERT INTO oauth_token (org, connection, app, asked, scopes, renewable, rotates, generation, obtained_at, "
        "expires_at, due_at, failures) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, 0)",
        (
            *(connection.org, connection.id, consent.app),
            *(json.dumps(consent.asked), json.dumps(consent.scopes)),
            *(consent.renewable, consent.oauth.rotates and "refresh_token" in consent.secret.fields),
            *(now, expires_at, due_at),
        ),
    )


def renewed(rows: Rows, connection: Connection, held: Standing, lease: str, given: Granted, *, renewable: bool) -> bool:
    """Note the new tokens, and let go of the lease; False where it is somebody else's by now."""
    now = now_ms()
    expires_at, due_at = _ends(now, given.lifetime, renewable=renewable)
    moved = rows.execute(
        "UPDATE oauth_token SET scopes = ?, renewable = ?, generation = ?, obtained_at = ?, expires_at = ?, "
        "due_at = ?, lease = NULL, lease_until = NULL, failures = 0, retry_at = NULL "
        "WHERE org = ? AND connection = ? AND generation = ? AND lease = ?",
        (
            *(json.dumps(held.scopes if given.scopes is None else given.scopes), renewable, held.generation + 1),
            *(now, expires_at, due_at),
            *(connection.org, connection.id, held.generation, lease),
        ),
    )
    return bool(moved.rowcount == 1)


def _ends(now: int, lifetime: int | None, *, renewable: bool) -> tuple[int | None, int | None]:
    """When a token ends, and from when on it is renewed: not all connections in the same moment."""
    if not lifetime:
        return None, None
    early = min(EARLY_MS, lifetime * 250) * random.uniform(1, 1.5)  # noqa: S311 - it spreads load, and hides nothing
    return now + lifetime * 1000, now + lifetime * 1000 - (int(early) if renewable else 0)


def standing(database: Database, connection: Connection) -> Standing | None:
    """How a connection's tokens stand now; None where it has none."""
    rows = database.of(connection.org).read(_STANDING, (connection.org, connection.id))
    return _standing(rows[0]) if rows else None


def rejected(rows: Rows, connection: Connection) -> None:
    """Its upstream refused the token, whatever its end: renew it at the next call. One that is new stays as it is."""
    now = now_ms()
    rows.execute(
        "UPDATE oauth_token SET expires_at = ?, due_at = ? WHERE org = ? AND connection = ? AND renewable = ? "
        "AND obtained_at < ? AND (expires_at IS NULL OR expires_at > ?)",
        (now, now, connection.org, connection.id, True, now - NEW_MS, now),
    )


NEW_MS = 60_000
"""A token that is refused when it is newer than this is not refused for its age."""

_STANDING = (
    "SELECT t.app, t.asked, t.scopes, t.renewable, t.rotates, t.generation, t.obtained_at, t.expires_at, t.due_at, "
    "t.lease, t.lease_until, t.failures, t.retry_at, c.needs_consent_at IS NOT NULL, c.credential_version "
    "FROM oauth_token t JOIN connection c ON c.org = t.org AND c.id = t.connection WHERE t.org = ? AND t.connection = ?"
)


def _standing(row: Sequence[Any]) -> Standing:
    app, asked, scopes, renewable, rotates, *rest, needs_consent, version = row
    lists = tuple(json.loads(asked)), tuple(json.loads(scopes))
    return Standing(app, *lists, bool(renewable), bool(rotates), *rest, bool(needs_consent), version)  # pyright: ignore[reportCallIssue] - the columns are the fields, in order
