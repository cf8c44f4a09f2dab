"""Sign in to an account by OAuth 2 at this terminal: the org's own app, a browser, and what comes back; or its key.

The browser is opened where there is one; its address is shown in any case. No secret is in that address, and no secret
is shown.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.acting import Desk
from server.cli.output import say, warn
from server.cli.terminal import ask_hidden

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from connectors.definition import Connector
    from connectors.egress import Egress
    from server.connections import Connection, Plan
    from server.oauth.consent import Attempt, Redirect
    from server.oauth.tokens import Consent
    from vault import Secret

Paste = Annotated[
    bool,
    typer.Option(
        "--paste", help="For OAuth without a browser here: open the address anywhere, and paste the one it ends at."
    ),
]
RedirectUrl = Annotated[
    str | None,
    typer.Option(
        "--redirect",
        metavar="URL",
        help="For OAuth: the redirect that the app has registered; http://127.0.0.1:8701/callback by default.",
    ),
]
OwnApp = Annotated[
    bool,
    typer.Option(
        "--own-app",
        help="For OAuth: ask for the id and the secret of an app of yours, where there is one to use already.",
    ),
]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="SCOPE", help="For OAuth: ask for this scope, and no others. Repeatable."),
]


@dataclass(frozen=True)
class Ways:
    """How a person wants to consent, as they said it."""

    paste: bool
    redirect: str | None
    scopes: Sequence[str]

    @property
    def given(self) -> bool:
        return self.paste or self.redirect is not None or bool(self.scopes)


def consented(
    planned: "Plan",
    app: "Secret",
    app_name: str,
    ways: Ways,
    *,
    asked_before: Sequence[str] = (),
    verify: bool,
    kept: "Secret | None" = None,
) -> tuple["Consent", str | None]:
    """The tokens that the provider gives to `app`, tried; and the account. Raises ConnectionProblem.

    `kept` is what is sealed in the place of `app`: a reference to it.
    """
    import asyncio

    from server.oauth.consent import DEFAULT_REDIRECT, redirect_of, scopes_to_ask

    oauth = planned.kind.oauth
    assert oauth is not None  # noqa: S101 - for the type checker: the caller has looked
    scopes = scopes_to_ask(oauth, ways.scopes) if ways.scopes else tuple(asked_before) or oauth.scopes
    redirect = redirect_of(ways.redirect or DEFAULT_REDIRECT, paste=ways.paste) if oauth.grant == "code" else None
    consent, account, problem = asyncio.run(
        _obtained(planned, app, app_name, redirect, scopes, kept, paste=ways.paste, verify=verify)
    )
    if problem is not None:
        raise problem
    assert consent is not None  # noqa: S101 - one of the two is there
    _say_what_was_given(planned, consent)
    return consent, account


async def _obtained(
    planned: "Plan",
    app: "Secret",
    app_name: str,
    redirect: "Redirect | None",
    scopes: Sequence[str],
    kept: "Secret | None",
    *,
    paste: bool,
    verify: bool,
) -> tuple["Consent | None", str | None, Exception | None]:
    import ipaddress

    from connectors.egress import Egress
    from connectors.errors import ConnectorError
    from server.connections import ConnectionProblem
    from server.connections import verify as tried

    networks = tuple(ipaddress.ip_network(text) for text in planned.private)
    async with Egress() as egress:
        try:
            consent = await _asked(
                egress, planned, app, app_name, redirect, scopes, kept, paste=paste, networks=networks
            )
        except ConnectionProblem as problem:
            return None, None, problem
        try:
            return consent, await tried(egress, planned, planned.connector, consent.secret) if verify else None, None
        except ConnectorError as error:
            said = f"Signed in, but the account could not be used: {str(error).rstrip('.')}. Nothing was stored."
    return None, None, ConnectionProblem(f"{said} `--no-verify` stores it untried.")


async def _asked(
    egress: "Egress",
    planned: "Plan",
    app: "Secret",
    app_name: str,
    redirect: "Redirect | None",
    scopes: Sequence[str],
    kept: "Secret | None",
    *,
    paste: bool,
    networks: tuple["IPv4Network | IPv6Network", ...],
) -> "Consent":
    from server.oauth.consent import Attempt, by_itself, exchanged

    oauth = planned.kind.oauth
    assert oauth is not None  # noqa: S101 - as above
    if redirect is None:
        say(f"Asking {planned.connector.title} for a token …")
        return await by_itself(
            egress,
            planned.connector,
            oauth,
            base_url=planned.base_url,
            networks=networks,
            app=app,
            app_name=app_name,
            scopes=scopes,
            kept=kept,
        )
    attempt = Attempt(oauth, planned.base_url, client_id=app.reveal("client_id"), redirect=redirect, scopes=scopes)
    with _pasted(attempt, planned) if paste else await _received(attempt, planned) as code:
        return await exchanged(
            egress,
            planned.connector,
            attempt,
            base_url=planned.base_url,
            networks=networks,
            app=app,
            app_name=app_name,
            code=code,
            scopes=scopes,
        )


def _say_where(planned: "Plan") -> None:
    """A wrapped server names whom its tokens come from: where that is somebody else, a person is told first."""
    oauth = planned.kind.oauth
    if oauth is None or not oauth.register:
        return
    asks, serves = endpoint_host(oauth.authorize, planned.base_url), endpoint_host("/", planned.base_url)
    if asks != serves:
        warn(f"you will be asked to consent at {asks}, which is not the host of {planned.connector.title} ({serves}).")


async def _received(attempt: "Attempt", planned: "Plan") -> "Secret":
    from server.oauth.loopback import Listener

    _say_where(planned)
    say(f"The app's redirect has to be {attempt.redirect.url}, exactly.")

    def opened(url: str) -> None:
        say(f"Consent in your browser; {planned.connector.title} asks there. If none opens, open this address:\n{url}")
        _open(url)

    return await Listener(attempt, warn).code(opened)


def _pasted(attempt: "Attempt", planned: "Plan") -> "Secret":
    _say_where(planned)
    say(
        f"The app's redirect has to be {attempt.redirect.url}, exactly. Open this address in any browser, and consent "
        f"to what {planned.connector.title} asks:\n{attempt.url}\nIn the end the browser shows an address that begins "
        f"with {attempt.redirect.url}?, perhaps with an error beneath. Copy the whole of it."
    )
    return attempt.pasted(ask_hidden("That address (it is not shown): ", otherwise="Leave --paste out."))


def _open(url: str) -> None:
    """In a browser with windows; one that takes over this terminal would hide what is said here."""
    windows = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")))
    if not windows:
        return
    # By itself, so that nothing it prints stands in our output; some wait until they are closed, and nobody waits here.
    command = [sys.executable, "-I", "-m", "webbrowser", url]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
    threading.Thread(target=subprocess.run, args=(command,), kwargs=quiet, daemon=True).start()


def _say_what_was_given(planned: "Plan", consent: "Consent") -> None:
    if consent.missing:
        warn(f"not given, though asked for: {', '.join(consent.missing)}. Tools that need them will be refused.")
    if consent.lifetime and not consent.renewable:
        warn(
            f"{planned.connector.title} gave no refresh token: this ends after {_time(consent.lifetime)}, and has to "
            "be consented to again then."
        )


def _time(seconds: int) -> str:
    return f"{seconds / 3600:g} hours" if seconds >= 7200 else f"{max(1, round(seconds / 60))} minutes"


def stored_app(desk: Desk, connection: "Connection") -> "Secret | None":
    """The app that a connection was consented to with, out of what is sealed for it; None where it cannot be had."""
    from server.connections import open_credential
    from vault import Secret, VaultError

    try:
        with desk.database.snapshot(lambda rows: open_credential(rows, desk.installation.vault, connection)) as sealed:
            names = [name for name in sealed.fields if name in ("client_id", "client_secret")]
            return Secret({name: sealed.reveal(name) for name in names}) if names else None
    except VaultError:
        return None


def consent_for(
    desk: Desk,
    planned: "Plan",
    ways: Ways,
    *,
    stdin: bool,
    reference: str | None,
    copy: bool,
    verify: bool,
    before: "Connection | None",
    own_app: bool,
) -> tuple["Consent", str | None]:
    """Have the app, then the consent. An app that is consented to again for the same place is not asked for again."""
    from server.cli.credential import take
    from server.connections import ConnectionProblem, bound_origin, bound_scheme
    from server.credential import check_fields, resolver_of
    from server.oauth.apps import OPERATOR, Apps
    from server.oauth.tokens import OWN, REGISTERED, standing

    signed = planned.kind.oauth is not None and planned.kind.oauth.signed
    if signed and (own_app or ways.paste or ways.redirect is not None):
        raise typer.BadParameter(f"With a private key ({planned.kind.id}) nobody consents: give `--scope` at most.")
    if reference is not None and not copy and not signed:
        raise ConnectionProblem("The secret of an app cannot stay elsewhere yet: add `--copy`. Nothing was stored.")
    same = before is not None and (before.origin, before.scheme) == (
        bound_origin(planned.base_url, planned.private),
        bound_scheme(planned.kind),
    )
    asked_before: Sequence[str] = ()
    app, app_name, typed = None, OWN, not stdin and reference is None
    if before is not None and same:
        held = standing(desk.database, before)
        asked_before = held.asked if held else ()
        anew = held is not None and held.app == REGISTERED  # its provider may have let that one expire
        app = stored_app(desk, before) if typed and not own_app and not anew else None
    if app is None and typed and not own_app:
        app = Apps(desk.installation.settings.oauth_apps).offered(planned.connector, planned.kind)
        app_name = OWN if app is None else OPERATOR
    if app_name == OPERATOR:
        say(f"It is the operator's app that asks {planned.connector.title}. `--own-app` takes one of yours.")
    if app is None and typed and not own_app and planned.kind.oauth is not None and planned.kind.oauth.register:
        app, app_name = registered_app(planned, ways), REGISTERED
    kept: Secret | None = None
    if app is None:
        resolver = resolver_of(desk.installation.settings)
        given = take(planned.kind, stdin=stdin, reference=reference, copy=copy, resolver=resolver)
        app, kept = given.fields, given.sealed
        for warning in check_fields(planned.kind, app):
            warn(warning)
    with app:
        return consented(planned, app, app_name, ways, asked_before=asked_before, verify=verify, kept=kept)


def registered_app(planned: "Plan", ways: Ways) -> "Secret":
    """An app that the provider makes for this one connection. Raises ConnectionProblem."""
    import asyncio
    import ipaddress

    from connectors.egress import Egress
    from connectors.errors import ConnectorError
    from connectors.upstream_oauth import register
    from server.connections import ConnectionProblem
    from server.oauth.consent import DEFAULT_REDIRECT, redirect_of, scopes_to_ask
    from vault import Secret

    oauth = planned.kind.oauth
    assert oauth is not None  # noqa: S101 - for the type checker: the caller has looked
    redirect = redirect_of(ways.redirect or DEFAULT_REDIRECT, paste=ways.paste)
    networks = tuple(ipaddress.ip_network(text) for text in planned.private)
    host = endpoint_host(oauth.register, planned.base_url)
    say(f"{host} is asked to make an app of its own for this connection. `--own-app` takes one of yours.")

    async def once() -> "Secret":
        async with Egress() as egress:
            made = await register(
                egress,
                oauth,
                planned.base_url,
                redirect=redirect.url,
                scopes=scopes_to_ask(oauth, ways.scopes),
                private=networks,
            )
            return Secret({name: made.reveal(name) for name in made.fields})

    try:
        return asyncio.run(once())
    except ConnectorError as error:
        problem = str(error)
    raise ConnectionProblem(f"{problem} Nothing was stored.")


def endpoint_host(url: str, base_url: str) -> str:
    """The host of an endpoint, as people know it."""
    from connectors.oauth import endpoint

    return endpoint(url, base_url)[0].partition("//")[2]


def renew(desk: Desk, connection: "Connection", connector: "Connector") -> str | None:
    """Have a token that works, where the account is signed in to by OAuth; why there is none."""
    import asyncio

    from connectors.egress import Egress
    from server.credential import resolver_of
    from server.errors import CallRefused, ConsentNeeded, KeyRefused
    from server.oauth.apps import Apps
    from server.oauth.renewal import Renewals

    async def once() -> None:
        async with Egress() as egress:
            apps = Apps(desk.installation.settings.oauth_apps)
            references = resolver_of(desk.installation.settings)
            renewals = Renewals(desk.database, desk.installation.vault, egress, apps, references)
            await renewals.current(connection, connector, {"by": desk.by})

    desk.have_keys_at_hand()
    try:
        asyncio.run(once())
    except (ConsentNeeded, KeyRefused):
        return f"{connection.name} needs {needed(connection)}: keyleash connection rotate {connection.name}"
    except CallRefused as refusal:
        return f"The token of {connection.name} has ended and could not be renewed ({refusal.reason}). Try again later."
    return None


def needed(connection: "Connection") -> str:
    """What a connection lacks whose provider takes no more what it has."""
    return "a new key, for its provider no longer takes this one" if connection.signed else "consent again"


def removed_and_revoked(desk: Desk, connection: "Connection") -> tuple[str | None, bool]:
    """Remove a connection and have its provider end the tokens; why not, and whether that is tried again."""
    import asyncio

    from connectors.egress import Egress
    from server.oauth.apps import Apps
    from server.oauth.revoking import BeingRenewed, Pending, attempt, pending, remove_and_keep
    from vault import VaultError

    installation = desk.installation

    def gone(*, wait: bool) -> "Pending":
        return desk.database.write_now(
            lambda rows: remove_and_keep(rows, installation.vault, connection, by=desk.by, wait=wait)
        )

    async def once() -> str | None:
        deadline = time.monotonic() + RENEWAL_S
        while True:
            try:
                one = gone(wait=time.monotonic() < deadline)
                break
            except BeingRenewed:
                await asyncio.sleep(0.1)
        if installation.vault.sealed is not None:
            return "the vault is sealed"
        try:
            desk.have_keys_at_hand()
            async with Egress() as egress:
                return await attempt(
                    desk.database,
                    installation.vault,
                    egress,
                    installation.catalogue.connectors,
                    one,
                    apps=Apps(installation.settings.oauth_apps),
                )
        except VaultError as problem:
            return str(problem)

    why_not = asyncio.run(once())
    return why_not, any((one.org, one.id) == (connection.org, connection.id) for one in pending(installation.database))


RENEWAL_S = 15.0
"""How long a removal waits for a renewal that is under way, so that it ends the tokens that come of it."""
