"""Every shipped way to sign in by OAuth names its vendor's own endpoints, and makes requests that can be sent there."""

import pytest

from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Connector, CredentialKind, OAuth
from connectors.departure import checked_url
from connectors.oauth import asking, authorization_url, endpoint, revoking
from server.connections import bound_scheme
from tests.connectors.test_oauth import APP, Held, sent
from tests.issuer import key, key_file, pem

CONNECTORS = Catalogue.load(shipped_folder()).connectors
KINDS = [
    pytest.param(connector, kind, id=f"{connector.id}-{kind.id}")
    for connector in CONNECTORS.values()
    for kind in connector.credentials
    if kind.oauth
]
GOOGLE = ("https://oauth2.googleapis.com", "https://oauth2.googleapis.com")
ACCOUNT = ("https://oauth2.googleapis.com", "")
HOSTS = {
    "gmail-oauth": GOOGLE,
    "google_calendar-oauth": GOOGLE,
    "google_drive-oauth": GOOGLE,
    "gmail-service_account": ACCOUNT,
    "google_calendar-service_account": ACCOUNT,
    "google_drive-service_account": ACCOUNT,
    "github-oauth": ("https://github.com", "https://api.github.com"),
    "github-github_app": ("https://api.github.com", "https://api.github.com"),
    "linear-oauth": ("https://api.linear.app", "https://api.linear.app"),
    "jira-oauth": ("https://auth.atlassian.com", ""),
    "sentry-oauth": ("https://sentry.io", ""),
    "pagerduty-oauth": ("https://identity.pagerduty.com", ""),
    "slack-oauth": ("https://slack.com", "https://slack.com"),
    "slack-oauth_user": ("https://slack.com", "https://slack.com"),
    "notion-oauth": ("https://api.notion.com", "https://api.notion.com"),
    "airtable-oauth": ("https://airtable.com", ""),
    "hubspot-oauth": ("https://api.hubapi.com", "https://api.hubapi.com"),
    "zendesk-oauth": ("https://acme.zendesk.com", "https://acme.zendesk.com"),
    "zendesk-client_credentials": ("https://acme.zendesk.com", "https://acme.zendesk.com"),
    "twilio-client_credentials": ("https://oauth.twilio.com", ""),
    "shopify-client_credentials": ("https://your-shop.myshopify.com", ""),
}
"""Where each sends its secrets: to have tokens, and to end them."""
USED_ONCE = {"github", "linear", "jira", "sentry", "pagerduty", "slack", "notion", "airtable", "zendesk"}
"""Whose refresh tokens are used once, or are taken for it: where the facts say nothing, that is the careful side."""


def base_of(connector: Connector) -> str:
    return connector.example_url or connector.base_url


def oauth_of(way: CredentialKind) -> OAuth:
    assert way.oauth is not None
    return way.oauth


def test_every_way_is_looked_at() -> None:
    assert {str(param.id) for param in KINDS} == set(HOSTS)


@pytest.mark.parametrize(("connector", "way"), KINDS)
def test_secrets_go_to_the_vendor_and_to_nobody_else(connector: Connector, way: CredentialKind) -> None:
    oauth, where = oauth_of(way), base_of(connector)
    token, revoke = HOSTS[f"{connector.id}-{way.id}"]
    assert endpoint(oauth.token, where)[0] == token
    assert (endpoint(oauth.revoke.url, where)[0] if oauth.revoke else "") == revoke
    assert oauth.token in bound_scheme(way)
    assert not oauth.revoke or oauth.revoke.url in bound_scheme(way)


@pytest.mark.parametrize(("connector", "way"), KINDS)
def test_what_is_asked_can_be_sent(connector: Connector, way: CredentialKind) -> None:
    oauth, where = oauth_of(way), base_of(connector)
    held = Held(
        **APP,
        **{"code": "the code", "verifier": "the verifier", "refresh_token": "rt_12345678", "secret": "at_12345678"},
        **{"app_id": "1", "installation_id": "7", "private_key": pem(key())},
        key_file=key_file(key(), token_uri=oauth.token),
    )
    if oauth.grant == "code":
        url = authorization_url(
            oauth,
            where,
            client_id="app",
            redirect="http://127.0.0.1:8701/callback",
            state="s",
            challenge="c",
            scopes=(),
        )
        assert url.startswith("https://")
    whats = ("authorization_code", "refresh_token") if oauth.grant == "code" else (oauth.grant,)
    requests = [asking(oauth, where, what, held, redirect="http://127.0.0.1:8701/callback") for what in whats]
    if oauth.revoke:
        requests.append(revoking(oauth, where, held, held.fields))
    for asked in requests:
        assert checked_url(asked.prepared).scheme == "https"
        _, _, secrets = sent(asked)
        assert secrets, "it is signed, or holds a token"
        assert all(secret not in asked.prepared.url for secret in secrets)


@pytest.mark.parametrize(("connector", "way"), KINDS)
def test_a_consent_is_by_pkce_unless_the_vendor_is_not_known_to_have_it(
    connector: Connector, way: CredentialKind
) -> None:
    oauth = oauth_of(way)
    assert oauth.pkce == (oauth.grant == "code" and connector.id not in ("hubspot", "notion"))
    assert oauth.rotates == (oauth.grant == "code" and connector.id in USED_ONCE)
    assert oauth.client in ("post", "basic")


@pytest.mark.parametrize(("connector", "way"), KINDS)
def test_people_are_told_where_to_register_the_app(connector: Connector, way: CredentialKind) -> None:
    assert len(way.help) > 60
    if base_of(connector) != connector.base_url and way.id != "oauth_user":
        assert "--base-url" in way.help
    if connector.id == "slack":
        assert "--paste" in CONNECTORS["slack"].kind("oauth").help


def test_google_comes_first_by_oauth_and_where_a_key_is_usual_that_comes_first() -> None:
    first = {name: connector.credentials[0].oauth is not None for name, connector in CONNECTORS.items()}
    assert {name for name, oauth in first.items() if oauth} == {"gmail", "google_calendar", "google_drive", "zendesk"}
