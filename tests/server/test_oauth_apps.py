"""The operator's app asks for orgs that bring none; its secret goes to endpoints named outright, and is not stored."""

import json
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Connector, CredentialKind, Revocation
from connectors.egress import Egress
from connectors.loading import load
from server.app import running
from server.call import call
from server.connections import Connection, Workspaces, plan, store
from server.errors import NotRenewed
from server.oauth.apps import OPERATOR, AppProblem, Apps
from server.oauth.consent import Attempt, exchanged, redirect_of
from server.oauth.revoking import attempt, pending, remove_and_keep
from server.oauth.tokens import begin
from tests.agents import Nobody
from tests.browser import Browser
from tests.commandline import CommandLine, with_environment
from tests.consenting import LOCAL, ledger, run_out, with_ledger
from tests.installed import Place, files_holding
from tests.provider import CLIENT_ID, CLIENT_SECRET, Provider
from vault import CannotResolve, Secret

pytestmark = pytest.mark.anyio


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The operator's file, with an app for the ledger; outside of what Keyleash keeps."""
    made = tmp_path / "apps.json"
    made.write_text(json.dumps({"ledger": {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}}))
    made.chmod(0o600)
    return made


def outright(connector: Connector, provider: Provider) -> Connector:
    """The ledger with endpoints that its file names outright, as a provider has that serves all accounts."""
    host = provider.url.removesuffix("/v1")
    kind = connector.kind("oauth")
    assert kind.oauth is not None
    revoke = Revocation(url=f"{host}/oauth/revoke")
    oauth = replace(kind.oauth, authorize=f"{host}/oauth/authorize", token=f"{host}/oauth/token", revoke=revoke)
    return replace(connector, credentials=(replace(kind, oauth=oauth), *connector.credentials[1:]))


@pytest.fixture
def place(place: Place, provider: Provider, file: Path) -> Place:
    """An operator who has an app for the ledger."""
    installation = with_ledger(place).installation
    made = outright(installation.catalogue.connectors["ledger"], provider)
    catalogue = Catalogue(ChainMap({"ledger": made}, installation.catalogue.connectors))
    place.installation = replace(
        installation,
        settings=replace(installation.settings, oauth_apps=file),
        catalogue=catalogue,
        workspaces=Workspaces(installation.database, catalogue),
    )
    return place


async def consented(place: Place, provider: Provider) -> Connection:
    """The ledger signed in to with the operator's app."""
    connector = place.installation.catalogue.connectors["ledger"]
    planned = plan(
        place.installation.catalogue,
        [],
        connector="ledger",
        name=None,
        kind="oauth",
        base_url=provider.url,
        private=(LOCAL,),
    )
    oauth = planned.kind.oauth
    app = Apps(place.installation.settings.oauth_apps).offered(connector, planned.kind)
    assert oauth is not None
    assert app is not None
    redirect = redirect_of("http://127.0.0.1:8701/callback", paste=False)
    provider.redirects.add(redirect.url)
    begun = Attempt(oauth, provider.url, client_id=CLIENT_ID, redirect=redirect, scopes=oauth.scopes)
    _, headers, _ = Browser().get(begun.url)
    code = begun.answered(urlsplit(headers["location"]).query, same_browser=True)
    async with Egress() as egress:
        consent = await exchanged(
            egress,
            connector,
            begun,
            base_url=provider.url,
            networks=(ip_network(LOCAL),),
            app=app,
            app_name=OPERATOR,
            code=code,
            scopes=oauth.scopes,
        )
    assert set(consent.secret.fields) == {"secret", "refresh_token"}

    def change(rows: object) -> Connection:
        made = store(
            rows,  # type: ignore[arg-type]
            place.installation.vault,
            place.org,
            planned,
            fields=consent.secret,
            account=None,
            verified=False,
            by="alice",
            consent=consent.for_record(),
        )
        begin(rows, made, consent)  # type: ignore[arg-type]
        return made

    return place.database.write_now(change)


async def test_it_asks_renews_and_ends_and_its_secret_is_stored_nowhere(
    place: Place, provider: Provider, file: Path
) -> None:
    await consented(place, provider)
    run_out(place, provider)
    installation = place.installation
    async with running(installation) as parts:
        assert (await call(parts, place.caller(), "ledger_list_entries", {}, Nobody())).ok
        run_out(place, provider)
        assert (await call(parts, place.caller(), "ledger_list_entries", {}, Nobody())).ok
        connection = ledger(place)
        place.database.write_now(
            lambda rows: remove_and_keep(rows, installation.vault, connection, by="alice", wait=False)
        )
        (one,) = pending(place.database)
        connectors = installation.catalogue.connectors
        apps = Apps(file)
        assert await attempt(parts.database, parts.vault, parts.egress, connectors, one, apps=apps) is None
    assert provider.refreshes() == 2
    assert provider.revoked == [provider.tokens[-1]["refresh_token"]]
    assert files_holding(place.home, CLIENT_SECRET.encode()) == []
    assert place.events("connection.created")[-1]["app"] == "operator"
    assert [entry["app"] for entry in place.events("connection.renewed")] == ["operator"] * 2


async def test_without_its_file_nothing_is_asked_and_nothing_is_lost(
    place: Place, provider: Provider, file: Path
) -> None:
    await consented(place, provider)
    run_out(place, provider)
    asked = len(provider.requests)
    emptied(file)
    async with running(place.installation) as parts:
        with pytest.raises(NotRenewed):
            await call(parts, place.caller(), "ledger_list_entries", {}, Nobody())
    assert len(provider.requests) == asked
    assert ledger(place).needs_consent_at is None


def test_a_file_that_is_wrong_is_not_used(place: Place, file: Path) -> None:
    connector = place.installation.catalogue.connectors["ledger"]
    kind = connector.kind("oauth")
    for content, says in (("no json", "is not JSON"), ('{"ledger": {"client_id": "x"}}', "not exactly")):
        file.write_text(content)
        with pytest.raises(AppProblem, match=says) as refused:
            Apps(file).offered(connector, kind)
        assert str(file) not in str(refused.value)
    file.write_text('{"other": {"client_id": "x", "client_secret": "y"}}')
    assert Apps(file).offered(connector, kind) is None
    assert Apps().offered(connector, kind) is None
    with pytest.raises(CannotResolve):
        Apps(file.with_name("gone.json")).offered(connector, kind)


def test_it_is_offered_only_where_no_admin_can_say_where_its_secret_goes(file: Path) -> None:
    connectors = Catalogue.load(shipped_folder()).connectors
    app = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    file.write_text(json.dumps(dict.fromkeys(connectors, app)))
    offered = {
        f"{connector.id}-{kind.id}"
        for connector in connectors.values()
        for kind in connector.credentials
        if Apps(file).offered(connector, kind) is not None
    }
    assert "gmail-oauth" in offered
    assert "slack-oauth_user" in offered
    assert not {each for each in offered if each.startswith(("zendesk", "shopify", "twilio"))}, (
        "own hosts, own accounts"
    )
    assert not {each for each in offered if "oauth" not in each}


def test_another_orgs_row_that_names_the_operators_app_gets_it_for_fixed_places_only(place: Place, file: Path) -> None:
    kind = with_relative(place)
    assert kind.oauth is not None
    with pytest.raises(AppProblem):
        Apps(file).joined(OPERATOR, "ledger", kind.oauth, Secret({"secret": "x", "refresh_token": "y"}))


def test_the_operators_app_is_used_unless_one_of_ones_own_is_asked_for(owner: CommandLine, file: Path) -> None:
    """As far as an address to open and a question go: nobody outside is asked."""
    file.write_text(json.dumps({"gmail": {"client_id": "of-the-operator", "client_secret": CLIENT_SECRET}}))
    line = with_environment(owner, {"KEYLEASH_OAUTH_APPS": str(file)})
    with line.at_terminal("connect", "gmail", "--paste") as terminal:
        shown = terminal.until("not shown): ")
        terminal.type("nothing\n")
        terminal.until("Nothing was stored")
        assert terminal.end() == 1
    assert "client_id=of-the-operator" in shown
    assert "operator's app" in shown
    assert CLIENT_SECRET not in terminal.shown
    with line.at_terminal("connect", "gmail", "--paste", "--own-app") as terminal:
        terminal.until("client id: ")
    file.chmod(0o644)
    if all(folder.stat().st_mode & 0o001 for folder in file.parents):
        ran = line.alone("connect", "gmail", "--paste")
        assert (ran.code, "chmod 600" in ran.err) == (1, True)


def emptied(file: Path) -> None:
    file.write_text("{}")


def with_relative(place: Place) -> CredentialKind:
    return load(place.installation.settings.connectors / "ledger.yaml").kind("oauth")
