"""One consent, from the page that a person opens to the code that comes back: nothing else is taken for it.

The redirect is exact, `state` is used once and ends, `iss` is checked where the provider gives it, and an answer counts
only in the browser that began. Whatever else comes is refused, stores nothing, and says what to do.
"""

import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from connectors.definition import Connector, OAuth
from connectors.errors import ConnectorError, TokenRefused
from connectors.oauth import Proof, authorization_url
from connectors.oauthblock import good_scope
from connectors.signed import SIGNED
from server.connections import ConnectionProblem, Network
from server.oauth.tokens import Consent, ask, host_of, sealed_fields
from vault import Secret

if TYPE_CHECKING:
    from connectors.egress import Egress

EXPIRES_S = 600.0
"""How long a person has to consent."""
DEFAULT_REDIRECT = "http://127.0.0.1:8701/callback"
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost):([0-9]{1,5})(/[A-Za-z0-9._~/-]*)")
_ELSEWHERE = re.compile(r"https://[a-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
_CODE = re.compile(r"[\x21-\x7e]{1,4096}")
_ERROR = re.compile(r"[a-z0-9_.]{1,64}")


class NotThisOne(ConnectionProblem):
    """Something came that does not belong to this consent; it goes on waiting for what does."""


class ConsentFailed(ConnectionProblem):
    """The consent has ended without a code; nothing was stored."""


@dataclass(frozen=True)
class Redirect:
    """Where the provider sends the browser: exactly what the app has registered. `port` is 0 where we do not listen."""

    url: str
    host: str
    port: int
    path: str


def redirect_of(url: str, *, paste: bool) -> Redirect:
    """A redirect that can be received, or pasted. Raises ConnectionProblem."""
    found = _LOOPBACK.fullmatch(url)
    if found and 0 < int(found[2]) < 65536:
        return Redirect(url, found[1], int(found[2]), found[3])
    if paste and _ELSEWHERE.fullmatch(url):
        return Redirect(url, "", 0, "")
    raise ConnectionProblem(
        f"{url[:200]!a} cannot be a redirect: give http://127.0.0.1:PORT/callback, as the app has registered it. One "
        "that begins with https:// goes with `--paste` only."
    )


def scopes_to_ask(oauth: OAuth, given: Sequence[str]) -> tuple[str, ...]:
    """The scopes that are asked for: those given, else the file's. Raises ConnectionProblem."""
    for scope in given if oauth.grant in SIGNED else ():
        if problem := SIGNED[oauth.grant].check_scope(scope):
            raise ConnectionProblem(f"{scope[:80]!a} is no scope here: {problem}.")
    for scope in given:
        if not good_scope(scope):
            raise ConnectionProblem(f"{scope[:80]!a} is no scope: give one at a time, with `--scope` before each.")
    return tuple(given) or oauth.scopes


class Attempt:
    """One try at one consent. `url` is where the person's browser goes."""

    def __init__(
        self,
        oauth: OAuth,
        base_url: str,
        *,
        client_id: str,
        redirect: Redirect,
        scopes: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.redirect = redirect
        self.oauth = oauth
        self._clock = clock
        self._state = secrets.token_urlsafe(32)
        self._proof = Proof()
        self._ends = clock() + EXPIRES_S
        self._over = False
        self.url = authorization_url(
            oauth,
            base_url,
            client_id=client_id,
            redirect=redirect.url,
            state=self._state,
            challenge=self._proof.challenge,
            scopes=scopes,
        )

    def __repr__(self) -> str:
        return "Attempt()"

    @property
    def left_s(self) -> float:
        """Seconds until the consent can no longer be given."""
        return max(0.0, self._ends - self._clock())

    def answered(self, query: str, *, same_browser: bool) -> Secret:
        """The code and what proves that it is ours, of a redirect's query. Raises NotThisOne or ConsentFailed."""
        given = _once_each(query)
        if not hmac.compare_digest(given.get("state", "").encode(), self._state.encode()):
            raise NotThisOne("It does not belong to what was begun here (its `state` is not ours), and was left alone.")
        if self._over:
            raise NotThisOne("This was answered before, and once is all.")
        self._over = True
        if self.left_s <= 0:
            raise ConsentFailed(f"It came after more than {EXPIRES_S / 60:.0f} minutes. {_AGAIN}")
        if not same_browser:
            raise ConsentFailed(f"It came from a browser that did not begin this, which may be an attack. {_AGAIN}")
        if self.oauth.issuer and given.get("iss") != self.oauth.issuer:
            raise ConsentFailed(f"It does not come from {self.oauth.issuer} (its `iss` says otherwise). {_AGAIN}")
        if "error" in given:
            raise ConsentFailed(_said(given["error"]))
        if not _CODE.fullmatch(given.get("code", "")):
            raise ConsentFailed(f"The provider's answer holds no code. {_AGAIN}")
        return Secret({"code": given["code"], "verifier": self._proof.reveal()})

    def pasted(self, url: str) -> Secret:
        """The same, of a redirected URL that the person has copied. Raises ConsentFailed."""
        parts = urlsplit(url.strip())
        if f"{parts.scheme}://{parts.netloc}{parts.path}" != self.redirect.url or not parts.query:
            raise ConsentFailed(
                f"That is not where the provider sends the browser: it begins with {self.redirect.url}?. Copy the "
                f"whole address that the browser shows in the end. {_AGAIN}"
            )
        try:
            return self.answered(parts.query, same_browser=True)  # who pastes is who began, at this terminal
        except NotThisOne as problem:
            raise ConsentFailed(f"{problem} {_AGAIN}") from None

    def stop(self, why: str) -> ConsentFailed:
        """End the consent; nothing counts any more."""
        self._over = True
        return ConsentFailed(f"{why} {_AGAIN}")


_AGAIN = "Nothing was stored. Begin again."


def _once_each(query: str) -> dict[str, str]:
    """The parameters; none where one is there twice: who reads the first and who reads the last would differ."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=50, errors="strict")
    except (ValueError, UnicodeDecodeError):
        return {}
    found = dict(pairs)
    return found if len(found) == len(pairs) else {}


def _said(error: str) -> str:
    code = error if _ERROR.fullmatch(error) else "an error"
    mend = {
        "access_denied": "Consent was not given.",
        "invalid_scope": "It does not know a scope, or does not let this app ask for it: say which with `--scope`.",
        "redirect_uri_mismatch": "Register the redirect with the app, exactly as it was shown.",
        "unauthorized_client": "The app is not one that may ask in this way: look at its kind.",
    }.get(code, "Look at the app's settings.")
    return f"The provider answered with {code}. {mend} {_AGAIN}"


async def exchanged(
    egress: "Egress",
    connector: Connector,
    attempt: Attempt,
    *,
    base_url: str,
    networks: tuple[Network, ...],
    app: Secret,
    app_name: str,
    code: Secret,
    scopes: Sequence[str],
) -> Consent:
    """The tokens for a code. Raises ConnectionProblem, and nothing is stored then."""
    oauth = attempt.oauth
    with Secret(
        {name: app.reveal(name) for name in app.fields} | {name: code.reveal(name) for name in code.fields}
    ) as held:
        return await _consent(
            egress,
            connector,
            oauth,
            held,
            app=app,
            app_name=app_name,
            base_url=base_url,
            networks=networks,
            redirect=attempt.redirect.url,
            scopes=scopes,
        )


async def by_itself(
    egress: "Egress",
    connector: Connector,
    oauth: OAuth,
    *,
    base_url: str,
    networks: tuple[Network, ...],
    app: Secret,
    app_name: str,
    scopes: Sequence[str],
    kept: Secret | None = None,
) -> Consent:
    """The token that an app gets for itself, by its secret or its private key. Raises ConnectionProblem.

    `kept` is what is sealed in the place of `app`: a reference to it.
    """
    return await _consent(
        egress,
        connector,
        oauth,
        app,
        app=kept or app,
        app_name=app_name,
        base_url=base_url,
        networks=networks,
        redirect="",
        scopes=scopes,
    )


async def _consent(
    egress: "Egress",
    connector: Connector,
    oauth: OAuth,
    held: Secret,
    *,
    app: Secret,
    app_name: str,
    base_url: str,
    networks: tuple[Network, ...],
    redirect: str,
    scopes: Sequence[str],
) -> Consent:
    try:
        given = await ask(
            egress,
            oauth,
            "authorization_code" if oauth.grant == "code" else oauth.grant,
            held,
            base_url=base_url,
            networks=networks,
            redirect=redirect,
            scopes=scopes,
        )
    except TokenRefused as refused:
        problem = _refused(oauth, refused.code, connector.title, host_of(oauth, base_url))
    except ConnectorError as error:
        problem = f"{error} {_AGAIN}"
    else:
        got = tuple(scopes) if given.scopes is None else given.scopes
        return Consent(sealed_fields(given, app, app_name), oauth, app_name, tuple(scopes), got, given.lifetime)
    raise ConsentFailed(problem)


def _refused(oauth: OAuth, code: str, title: str, host: str) -> str:
    if oauth.grant in SIGNED:
        return f"{host} gives no token ({code}). {SIGNED[oauth.grant].mend(code)} {_AGAIN}"
    mend = {
        "invalid_client": f"{title} does not know this app: look at its client id and its secret.",
        "invalid_grant": "The code was used before, has expired, or was not given for this request.",
        "unauthorized_client": "The app is not one that may ask in this way: look at its kind.",
        "redirect_uri_mismatch": "Register the redirect with the app, exactly as it was shown.",
    }.get(code, "Look at the app's settings.")
    return f"{host} gives no token ({code}). {mend} {_AGAIN}"
