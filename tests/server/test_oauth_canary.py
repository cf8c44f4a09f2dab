"""No token, code, verifier or app's secret is in an error, log, traceback, file or entry, whatever goes wrong."""

from collections.abc import Iterator
from typing import Any

import pytest

from connectors.egress import Egress
from server.app import running
from server.call import call
from server.errors import CallRefused
from server.oauth.apps import Apps
from server.oauth.consent import Attempt, ConsentFailed, exchanged, redirect_of
from server.oauth.revoking import attempt, pending, remove_and_keep
from server.oauth.tokens import OWN
from tests.agents import Nobody
from tests.consenting import ledger, run_out, signed_in, with_ledger
from tests.installed import Place
from tests.provider import CLIENT_ID, CLIENT_SECRET, Provider
from tests.server.test_canary import Ears, assert_nowhere, ears, rendered
from tests.upstream import Answer
from vault import Secret

pytestmark = pytest.mark.anyio
assert ears

TROUBLE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "echoes": {"content": {"error": "ECHO", "error_description": "ECHO", "x": ["ECHO"]}, "status": 400},
    "echoes as a page": {"content": b"<html>ECHO</html>", "status": 500, "headers": {"X-Echo": "ECHO"}},
    "a redirect": {"content": b"ECHO", "status": 302, "headers": {"Location": "http://127.0.0.1:9/?ECHO"}},
    "half an answer": {"content": b'{"access_token": "ECHO', "status": 200},
    "a token that cannot be sent": {"content": {"access_token": "ECHO\n", "refresh_token": "ECHO\n"}},
    "no answer": {"hang_up": True},
    "invalid grant": {"content": {"error": "invalid_grant", "error_description": "ECHO"}, "status": 400},
}

FEWER = ["echoes", "a redirect", "no answer"]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


def echoing(provider: Provider, trouble: dict[str, Any]) -> None:
    """Answer with what was sent, in this shape."""

    def answer(_path: str, given: Answer) -> Answer:
        if not trouble:
            return given
        received = provider.raw[-1]
        echo = f"{received.body.decode()} {received.headers.get('authorization', '')}"

        def filled(value: Any) -> Any:
            if isinstance(value, bytes):
                return value.replace(b"ECHO", echo.encode())
            if isinstance(value, str):
                return value.replace("ECHO", echo)
            if isinstance(value, dict):
                return {name: filled(each) for name, each in value.items()}
            return [filled(each) for each in value] if isinstance(value, list) else value

        return Answer(**{name: filled(value) for name, value in trouble.items()})

    provider.answering = answer


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
async def test_a_renewal_shows_nothing(place: Place, provider: Provider, ears: Ears, trouble: dict[str, Any]) -> None:
    with_ledger(place)
    signed_in(place, provider)
    run_out(place, provider)
    echoing(provider, trouble)
    said: list[str] = []
    async with running(place.installation) as parts:
        try:
            said.append((await call(parts, place.caller(), "ledger_list_entries", {}, Nobody())).text)
        except CallRefused as refused:
            said += rendered(refused)
    assert provider.refreshes() == 1
    for secret in provider.secrets():
        assert_nowhere(secret, place, said="\n".join(said), logs=ears.text + " ", vault=repr(vars(parts)))


@pytest.mark.parametrize("trouble", [TROUBLE[name] for name in FEWER], ids=FEWER)
async def test_an_exchange_shows_nothing(place: Place, provider: Provider, ears: Ears, trouble: dict[str, Any]) -> None:
    with_ledger(place)
    connector = place.installation.catalogue.connectors["ledger"]
    oauth = connector.kind("oauth").oauth
    assert oauth is not None
    begun = Attempt(
        oauth,
        provider.url,
        client_id=CLIENT_ID,
        redirect=redirect_of("http://127.0.0.1:8701/callback", paste=False),
        scopes=oauth.scopes,
    )
    echoing(provider, trouble)
    code = Secret({"code": "co_canary_9Hq2vXw0Zr5TnYb7", "verifier": "ve_canary_Kq2vXw0Zr5TnYb7LdKe"})
    app = Secret({"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET})
    async with Egress() as egress:
        with pytest.raises(ConsentFailed) as failed:
            await exchanged(
                egress,
                connector,
                begun,
                base_url=provider.url,
                networks=ledger_networks(),
                app=app,
                app_name=OWN,
                code=code,
                scopes=oauth.scopes,
            )
    for secret in ("co_canary_9Hq2vXw0Zr5TnYb7", "ve_canary_Kq2vXw0Zr5TnYb7LdKe", CLIENT_SECRET):
        assert any(secret in request.body.decode() or secret == CLIENT_SECRET for request in provider.raw)
        assert_nowhere(secret, place, error="\n".join(rendered(failed.value)), logs=ears.text + " ")


def ledger_networks() -> Any:
    import ipaddress

    return (ipaddress.ip_network("127.0.0.1/32"),)


@pytest.mark.parametrize("trouble", [TROUBLE[name] for name in FEWER], ids=FEWER)
async def test_a_revocation_shows_nothing(
    place: Place, provider: Provider, ears: Ears, trouble: dict[str, Any]
) -> None:
    with_ledger(place)
    signed_in(place, provider)
    installation, connection = place.installation, ledger(place)
    place.database.write_now(lambda rows: remove_and_keep(rows, installation.vault, connection, by="alice", wait=False))
    echoing(provider, trouble)
    (one,) = pending(place.database)
    async with running(installation) as parts:
        reason = await attempt(
            parts.database, parts.vault, parts.egress, installation.catalogue.connectors, one, apps=Apps()
        )
    assert len(provider.raw) >= 1
    left = repr(pending(place.database))
    for secret in provider.secrets():
        assert_nowhere(secret, place, reason=f"{reason}", logs=ears.text + " ", left=left)
