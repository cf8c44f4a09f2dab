"""An account that is signed in to by OAuth, at the fake provider, without the way there."""

from typing import Any

from server.app import open_installation
from server.connections import Connection, connection_named, plan, store
from server.oauth.tokens import OWN, Consent, begin
from tests.installed import Place
from tests.provider import CLIENT_ID, CLIENT_SECRET, LEDGER, Provider
from vault import Secret

LOCAL = "127.0.0.1/32"


def with_ledger(place: Place) -> Place:
    """The place with the connector of the fake provider, as after a restart."""
    settings = place.installation.settings
    settings.connectors.mkdir(exist_ok=True, mode=0o700)
    (settings.connectors / "ledger.yaml").write_text(LEDGER, encoding="utf-8")
    place.installation.close()
    place.installation = open_installation(settings)
    return place


def signed_in(
    place: Place, provider: Provider, *, kind: str = "oauth", name: str = "ledger", lifetime: int | None = 3600
) -> Connection:
    """Connect the ledger with tokens that the provider has just issued."""
    planned = plan(
        place.installation.catalogue,
        [],
        connector="ledger",
        name=name,
        kind=kind,
        base_url=provider.url,
        private=(LOCAL,),
    )
    oauth = planned.kind.oauth
    assert oauth is not None
    pair = provider.issue(renewing=oauth.grant == "code")
    fields = {"secret": pair["access_token"], "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    if "refresh_token" in pair:
        fields["refresh_token"] = pair["refresh_token"]
    consent = Consent(Secret(fields), oauth, OWN, oauth.scopes, oauth.scopes, lifetime)

    def change(rows: Any) -> Connection:
        made = store(
            rows,
            place.installation.vault,
            place.org,
            planned,
            fields=Secret(fields),
            account="Acme Inc.",
            verified=True,
            by="alice",
            consent=consent.for_record(),
        )
        begin(rows, made, consent)
        return made

    return place.database.write_now(change)


def run_out(place: Place, provider: Provider | None = None, *, by_ms: int = 1000) -> None:
    """Every token has ended: its time is over, and, with a provider, it takes none that it gave before."""
    if provider:
        provider.expire()
    place.database.write_now(
        lambda rows: rows.execute("UPDATE oauth_token SET expires_at = obtained_at - ?, due_at = expires_at", (by_ms,))
    )
    place.database.write_now(lambda rows: rows.execute("UPDATE oauth_token SET due_at = expires_at"))


def due(place: Place) -> None:
    """Every token is to be renewed, and works for a while yet."""
    place.database.write_now(lambda rows: rows.execute("UPDATE oauth_token SET due_at = obtained_at"))


def ledger(place: Place, name: str = "ledger") -> Connection:
    return connection_named(place.database, place.org, name)


def noted(place: Place, connection: Connection) -> None:
    """A row in each table of tokens, as if this connection had some and one before it still waited to be ended."""

    def change(rows: Any) -> None:
        rows.execute(
            "INSERT INTO oauth_token (org, connection, app, asked, scopes, renewable, rotates, generation, "
            "obtained_at, failures) VALUES (?, ?, 'own', '[]', '[]', ?, ?, 1, 0, 0)",
            (connection.org, connection.id, False, False),
        )
        rows.execute(
            "INSERT INTO oauth_revocation (org, id, name, connector, base_url, private, kind, scheme, "
            "credential_version, app, attempts, reason, requested_by, requested_at, next_at) VALUES "
            "(?, 'con_before', 'before', 'ledger', 'https://x', '[]', 'oauth', 'oauth2', 1, 'own', 0, '', 'alice', 0, "
            "?)",
            (connection.org, FAR),
        )

    place.database.write_now(change)


FAR = 1 << 50
