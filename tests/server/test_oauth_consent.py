"""A consent counts once, in time, in the browser that began it, from the provider that was asked; else nothing does."""

import asyncio
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import anyio
import pytest

from connectors.loading import parse
from server.connections import ConnectionProblem
from server.oauth.consent import (
    DEFAULT_REDIRECT,
    EXPIRES_S,
    Attempt,
    ConsentFailed,
    NotThisOne,
    redirect_of,
    scopes_to_ask,
)
from server.oauth.loopback import DONE, REFUSED, Listener
from tests.browser import Browser
from tests.commandline import CommandLine, Ran, everything, with_environment
from tests.consenting import ledger, run_out, with_ledger
from tests.installed import Place, files_holding
from tests.ports import free_port
from tests.provider import CLIENT_ID, CLIENT_SECRET, ISSUER, LEDGER, Provider
from tests.upstream import Answer

pytestmark = pytest.mark.anyio

BROWSER = f"{sys.executable} {Path(__file__).parents[1] / 'browser.py'} %s"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


@pytest.fixture
def port(provider: Provider) -> int:
    """A free port of loopback, whose redirect is registered with the app."""
    found = free_port()
    provider.redirects.add(f"http://127.0.0.1:{found}/callback")
    return found


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def begun(provider: Provider, port: int, clock: Callable[[], float] | None = None) -> Attempt:
    oauth = parse(LEDGER).kind("oauth").oauth
    assert oauth is not None
    redirect = redirect_of(f"http://127.0.0.1:{port}/callback", paste=False)
    more = {"clock": clock} if clock else {}
    return Attempt(oauth, provider.url, client_id=CLIENT_ID, redirect=redirect, scopes=oauth.scopes, **more)


def state_of(attempt: Attempt) -> str:
    return parse_qs(urlsplit(attempt.url).query)["state"][0]


def right(attempt: Attempt, **changed: str | None) -> str:
    """What the provider would send back, changed."""
    answer = {"code": "co_0123456789", "state": state_of(attempt), "iss": ISSUER} | changed
    return urlencode({name: value for name, value in answer.items() if value is not None})


# -- one answer, and what is refused


def test_the_right_answer_gives_the_code_and_the_verifier_of_its_challenge(provider: Provider) -> None:
    attempt = begun(provider, 8701)
    code = attempt.answered(right(attempt), same_browser=True)
    assert code.reveal("code") == "co_0123456789"
    assert code.reveal("verifier") not in attempt.url
    assert state_of(attempt) not in repr(attempt)


FOREIGN = {
    "a wrong state": {"state": "x" * 43},
    "no state": {"state": None},
    "an empty state": {"state": ""},
    "a state and more": {"state": "STATEx"},
}


@pytest.mark.parametrize("changed", FOREIGN.values(), ids=FOREIGN)
def test_what_does_not_belong_here_is_left_alone_and_the_consent_goes_on(
    provider: Provider, changed: dict[str, str | None]
) -> None:
    attempt = begun(provider, 8701)
    changed = {name: value and value.replace("STATE", state_of(attempt)) for name, value in changed.items()}
    with pytest.raises(NotThisOne):
        attempt.answered(right(attempt, **changed), same_browser=True)
    with pytest.raises(NotThisOne):
        attempt.answered(right(attempt) + f"&state={state_of(attempt)}", same_browser=True)  # twice: which one counts?
    assert attempt.answered(right(attempt), same_browser=True).reveal("code")


ENDED = {
    "another issuer": ({"iss": "https://evil.example"}, "`iss`"),
    "no issuer": ({"iss": None}, "`iss`"),
    "no code": ({"code": None}, "no code"),
    "a code with a line break": ({"code": "co\r\n"}, "no code"),
    "no consent": ({"code": None, "error": "access_denied"}, "Consent was not given"),
    "an error beside a code": ({"error": "invalid_scope"}, "`--scope`"),
    "an error that is a page": ({"code": None, "error": "<script>alert(1)</script>"}, "an error"),
}


@pytest.mark.parametrize(("changed", "says"), ENDED.values(), ids=ENDED)
def test_an_answer_with_our_state_and_something_wrong_ends_the_consent(
    provider: Provider, changed: dict[str, str | None], says: str
) -> None:
    attempt = begun(provider, 8701)
    with pytest.raises(ConsentFailed) as failed:
        attempt.answered(right(attempt, **changed), same_browser=True)
    assert says in str(failed.value)
    assert "Nothing was stored" in str(failed.value)
    assert "<" not in str(failed.value)
    with pytest.raises(NotThisOne):
        attempt.answered(right(attempt), same_browser=True)


def test_a_state_is_used_once_and_in_time_and_in_the_browser_that_began(provider: Provider) -> None:
    attempt = begun(provider, 8701)
    attempt.answered(right(attempt), same_browser=True)
    with pytest.raises(NotThisOne):
        attempt.answered(right(attempt), same_browser=True)
    clock = Clock()
    late = begun(provider, 8701, clock)
    clock.now = EXPIRES_S
    with pytest.raises(ConsentFailed, match="minutes"):
        late.answered(right(late), same_browser=True)
    elsewhere = begun(provider, 8701)
    with pytest.raises(ConsentFailed, match="browser"):
        elsewhere.answered(right(elsewhere), same_browser=False)
    with pytest.raises(NotThisOne):
        elsewhere.answered(right(elsewhere), same_browser=True)


def test_a_pasted_address_is_the_redirect_exactly(provider: Provider) -> None:
    for wrong in (
        "http://127.0.0.1:8702/callback?",
        "http://127.0.0.1:8701/callback/?",
        "https://127.0.0.1:8701/callback?",
        "http://127.0.0.1:8701@evil.example/callback?",
        "http://127.0.0.1:8701/callback#",
        "",
    ):
        attempt = begun(provider, 8701)
        with pytest.raises(ConsentFailed, match="not where the provider sends"):
            attempt.pasted(wrong + right(attempt))
    attempt = begun(provider, 8701)
    with pytest.raises(ConsentFailed):
        attempt.pasted(f"http://127.0.0.1:8701/callback?{right(attempt, state='x')}")
    attempt = begun(provider, 8701)
    assert attempt.pasted(f" http://127.0.0.1:8701/callback?{right(attempt)}\n").reveal("code")


@pytest.mark.parametrize(
    ("url", "paste", "fine"),
    [
        (DEFAULT_REDIRECT, False, True),
        ("http://localhost:3000/oauth/callback", False, True),
        ("https://acme.example/callback", True, True),
        ("https://acme.example/callback", False, False),
        ("http://acme.example/callback", True, False),
        ("http://0.0.0.0:8701/callback", False, False),
        ("http://127.0.0.1:0/callback", False, False),
        ("http://127.0.0.1/callback", False, False),
        ("http://127.0.0.1:8701/callback?x=y", False, False),
        ("http://127.0.0.1:8701@evil.example/", True, False),
        ("javascript:alert(1)", True, False),
    ],
)
def test_a_redirect_is_on_loopback_or_pasted(url: str, paste: bool, fine: bool) -> None:
    if fine:
        assert redirect_of(url, paste=paste).url == url
        return
    with pytest.raises(ConnectionProblem, match="cannot be a redirect"):
        redirect_of(url, paste=paste)


def test_scopes_are_the_files_or_those_that_a_person_names() -> None:
    oauth = parse(LEDGER).kind("oauth").oauth
    assert oauth is not None
    assert scopes_to_ask(oauth, ()) == ("read", "write")
    assert scopes_to_ask(oauth, ("read",)) == ("read",)
    with pytest.raises(ConnectionProblem, match="is no scope"):
        scopes_to_ask(oauth, ("read write",))


# -- the pages


class Waiting:
    """A listener at work, and the browser of the person who began."""

    def __init__(self, attempt: Attempt) -> None:
        self.warned: list[str] = []
        self.addresses: list[str] = []
        self.attempt = attempt
        self.browser = Browser()

    async def __aenter__(self) -> "Waiting":
        self.task = asyncio.ensure_future(Listener(self.attempt, self.warned.append).code(self.addresses.append))
        while not self.addresses:  # noqa: ASYNC110 - it listens before it says so
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def get(self, url: str, browser: Browser | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
        return await anyio.to_thread.run_sync(lambda: (browser or self.browser).get(url, **headers))

    async def begin(self, browser: Browser | None = None) -> tuple[int, dict[str, str], str]:
        return await self.get(self.addresses[0], browser)

    async def back(self, query: str, browser: Browser | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
        return await self.get(f"{self.attempt.redirect.url}?{query}", browser, **headers)


async def test_the_browser_that_began_brings_the_code(provider: Provider, port: int) -> None:
    attempt = begun(provider, port)
    async with Waiting(attempt) as waiting:
        status, headers, _ = await waiting.begin()
        assert (status, headers["location"]) == (302, attempt.url)
        assert "HttpOnly; SameSite=Lax" in headers["set-cookie"]
        status, headers, page = await waiting.back(right(attempt))
        assert (status, DONE in page) == (200, True)
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")
        assert len(page) < 400
        assert (await waiting.task).reveal("code") == "co_0123456789"
    assert all("co_0123456789" not in page for *_, page in waiting.browser.seen)


async def test_a_foreign_answer_is_refused_and_the_right_one_still_counts(provider: Provider, port: int) -> None:
    attempt = begun(provider, port)
    async with Waiting(attempt) as waiting:
        await waiting.begin()
        status, _, page = await waiting.back(right(attempt, state="<b>forged</b>"))
        assert (status, REFUSED in page, "forged" in page) == (400, True, False)
        assert not waiting.task.done()
        assert len(waiting.warned) == 1
        assert "forged" not in waiting.warned[0]
        assert (await waiting.back(right(attempt)))[0] == 200
        assert (await waiting.task).reveal("code")


async def test_another_browser_cannot_bring_the_answer_of_this_one(provider: Provider, port: int) -> None:
    attempt = begun(provider, port)
    async with Waiting(attempt) as waiting:
        await waiting.begin()
        assert (await waiting.back(right(attempt), Browser()))[0] == 400
        with pytest.raises(ConsentFailed, match="did not begin"):
            await waiting.task


async def test_nor_one_that_makes_the_cookie_up_or_has_it_twice(provider: Provider, port: int) -> None:
    for cookie in ("keyleash_consent=x", "keyleash_consent=", "COOKIE; COOKIE"):
        attempt = begun(provider, port)
        async with Waiting(attempt) as waiting:
            await waiting.begin()
            (ours,) = (f"{name}={value}" for name, value in waiting.browser.cookies["127.0.0.1"].items())
            made_up = cookie.replace("COOKIE", ours)
            assert (await waiting.back(right(attempt), Browser(), Cookie=made_up))[0] == 400
            with pytest.raises(ConsentFailed):
                await waiting.task


async def test_an_answer_before_anybody_began_ends_the_consent(provider: Provider, port: int) -> None:
    attempt = begun(provider, port)
    async with Waiting(attempt) as waiting:
        assert (await waiting.back(right(attempt)))[0] == 400
        with pytest.raises(ConsentFailed, match="did not begin"):
            await waiting.task


async def test_a_start_page_in_a_second_browser_ends_the_consent(provider: Provider, port: int) -> None:
    attempt = begun(provider, port)
    async with Waiting(attempt) as waiting:
        assert (await waiting.begin())[0] == 302
        assert (await waiting.begin())[0] == 302, "the same browser may open it again"
        assert (await waiting.begin(Browser()))[0] == 400
        with pytest.raises(ConsentFailed, match="second browser"):
            await waiting.task
        assert attempt.left_s > 0


async def test_nothing_else_is_answered_here(provider: Provider, port: int) -> None:
    attempt = begun(provider, port)
    async with Waiting(attempt) as waiting:
        where = f"http://127.0.0.1:{port}"
        for url in (f"{where}/", f"{where}/start/", f"{where}/start/{'x' * 32}", f"{where}/callback/?{right(attempt)}"):
            status, headers, page = await waiting.get(url)
            assert (status, "set-cookie" in headers, "location" in headers) == (404, False, False)
            assert "x" * 32 not in page
        for host in (f"localhost:{port}", "evil.example", f"127.0.0.1:{port + 1}"):
            assert (await waiting.get(waiting.addresses[0], Host=host))[0] == 404, "a name that leads here is not ours"
            assert (await waiting.back(right(attempt), Host=host))[0] == 404
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /callback HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 404")
        writer.close()
        assert not waiting.task.done()


async def test_nobody_who_consents_ends_it_in_time_and_a_port_that_is_taken_is_said(
    provider: Provider, port: int
) -> None:
    clock = Clock()
    attempt = begun(provider, port, clock)
    clock.now = EXPIRES_S - 0.05
    async with Waiting(attempt) as waiting:
        with pytest.raises(ConsentFailed, match="in time"):
            await waiting.task
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    async with server:
        with pytest.raises(ConnectionProblem, match="is taken"):
            await Listener(begun(provider, port), print).code(print)


# -- the whole way, at the command line


@pytest.fixture
def admin(place: Place, owner: CommandLine) -> CommandLine:
    """The owner at a terminal with a browser."""
    with_ledger(place)
    return with_environment(owner, {"BROWSER": BROWSER})


def target(provider: Provider, port: int, *more: str) -> tuple[str, ...]:
    where = ("--base-url", provider.url, "--allow-private", "127.0.0.1/32")
    return (*where, "--redirect", f"http://127.0.0.1:{port}/callback", *more)


APP = f"{CLIENT_ID}\n{CLIENT_SECRET}\n".encode()


def connect(line: CommandLine, provider: Provider, port: int, *more: str, stdin: bytes = APP) -> Ran:
    return line("connect", "ledger", "--kind", "oauth", "--secret-stdin", *target(provider, port, *more), stdin=stdin)


def test_an_account_is_connected_through_the_browser_and_its_secrets_are_nowhere(
    admin: CommandLine, place: Place, provider: Provider, port: int, tmp_path: Path
) -> None:
    ran = connect(admin, provider, port, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["account"] == "Acme Inc."
    assert ran.json["oauth"]["scopes"] == ["read", "write"]
    assert f"http://127.0.0.1:{port}/start/" in ran.err
    (entry,) = place.events("connection.created")[-1:]
    assert (entry["oauth"], entry["app"], entry["scopes"]) == ("code", "own", ["read", "write"])
    again = admin("connection", "rotate", "ledger", "--redirect", f"http://127.0.0.1:{port}/callback")
    assert again.code == 0, again.err
    assert len(provider.verifiers) == 2
    runs = [ran, again, admin("connection", "show", "ledger"), admin("connection", "test", "ledger")]
    runs += [admin("audit", "export", "--output", str(tmp_path / "log.jsonl"))]
    assert [each.code for each in runs] == [0] * len(runs)
    assert len(provider.secrets()) == 9
    for secret in provider.secrets():
        assert secret not in everything(*runs)
        assert files_holding(tmp_path, secret.encode()) == []
        assert not any(secret in request.target for request in provider.raw if "/oauth/" in request.target), "no URL"


def test_consenting_again_keeps_app_and_scopes_and_clears_the_mark(
    admin: CommandLine, place: Place, provider: Provider, port: int
) -> None:
    assert connect(admin, provider, port, "--scope", "read").code == 0
    run_out(place, provider)
    provider.end_consents()
    assert admin("connection", "test", "ledger").code == 1
    assert ledger(place).needs_consent_at is not None
    before = ledger(place).credential_version
    ran = admin("connection", "rotate", "ledger", "--redirect", f"http://127.0.0.1:{port}/callback", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["needs_consent_at"], ran.json["oauth"]["asked"]) == (None, ["read"])
    assert ledger(place).credential_version == before + 1
    assert ledger(place).needs_consent_at is None
    assert admin("connection", "test", "ledger").code == 0
    assert [asked["scope"] for path, asked in provider.requests if path == "/oauth/authorize"] == ["read", "read"]


def test_a_consent_without_a_refresh_token_is_said_to_end_and_is_shown_as_one_that_nothing_renews(
    admin: CommandLine, place: Place, provider: Provider, port: int
) -> None:
    provider.answering = without_refresh
    ran = connect(admin, provider, port, "--json")
    assert ran.code == 0, ran.err
    assert "gave no refresh token: this ends after 60 minutes" in " ".join(ran.err.split())
    assert ran.json["oauth"]["renewed_by_itself"] is False
    ((due, ends),) = place.database.read("SELECT due_at, expires_at FROM oauth_token")
    assert due == ends, "nobody is asked for what cannot be had"


def without_refresh(path: str, answer: Answer) -> Answer:
    if path == "/oauth/token" and isinstance(answer.content, dict):
        answer.content.pop("refresh_token", None)
    return answer


def test_a_new_app_is_asked_for_only_when_it_is_said(
    admin: CommandLine, place: Place, provider: Provider, port: int
) -> None:
    assert connect(admin, provider, port).code == 0
    redirect = ("--redirect", f"http://127.0.0.1:{port}/callback")
    elsewhere = admin.alone("connection", "rotate", "ledger", "--own-app", *redirect)
    assert elsewhere.code == 1
    assert "no terminal to ask at" in elsewhere.err
    moved = admin.alone("connection", "rotate", "ledger", "--base-url", provider.url.replace("/v1", "/v2"), *redirect)
    assert "over plain http" in moved.err.lower(), "an app's secret goes nowhere else unless it is given again"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"deny": "access_denied"}, "Consent was not given"),
        ({"issuer": "https://evil.example"}, "`iss`"),
    ],
)
def test_a_consent_that_fails_stores_nothing(
    admin: CommandLine, place: Place, provider: Provider, port: int, change: dict[str, str], says: str
) -> None:
    for name, value in change.items():
        setattr(provider, name, value)
    ran = connect(admin, provider, port)
    assert (ran.code, says in ran.err) == (1, True), ran.err
    assert stored(place) == [(1, 0)]
    assert [path for path, _ in provider.requests] == ["/oauth/authorize"], "no code was sent anywhere"


def stored(place: Place) -> list[tuple[int, ...]]:
    """Credentials (the one of stripe is there already) and tokens."""
    return place.database.read("SELECT (SELECT COUNT(*) FROM vault_credential), (SELECT COUNT(*) FROM oauth_token)")


def test_a_code_from_another_consent_is_of_no_use_here(
    admin: CommandLine, place: Place, provider: Provider, port: int
) -> None:
    """An attacker's own code, brought with our state: it was not given for our challenge."""
    theirs = {"redirect_uri": f"http://127.0.0.1:{port}/callback", "code_challenge": "of another browser"}
    provider.codes["co_of_the_attacker"] = theirs

    def inject(path: str, answer: Answer) -> Answer:
        if path == "/oauth/authorize":
            parts = urlsplit(answer.headers["Location"])
            query = dict(parse_qsl(parts.query)) | {"code": "co_of_the_attacker"}
            return Answer(b"", 302, {"Location": f"{parts._replace(query='').geturl()}?{urlencode(query)}"})
        return answer

    provider.answering = inject
    ran = connect(admin, provider, port)
    assert (ran.code, "invalid_grant" in ran.err, "Nothing was stored" in ran.err) == (1, True, True)
    assert stored(place) == [(1, 0)]


def test_a_wrong_app_and_a_token_that_does_not_work_store_nothing(
    admin: CommandLine, place: Place, provider: Provider, port: int
) -> None:
    wrong = connect(admin, provider, port, stdin=f"{CLIENT_ID}\nnot-the-secret\n".encode())
    assert (wrong.code, "client id and its secret" in wrong.err) == (1, True)
    provider.answering = lambda path, answer: (provider.expire(), answer)[1] if path == "/oauth/token" else answer
    useless = connect(admin, provider, port)
    assert (useless.code, "Nothing was stored" in useless.err) == (1, True)
    assert stored(place) == [(1, 0)]
    for secret in (*provider.secrets(), "not-the-secret"):
        assert secret not in everything(wrong, useless)


def test_an_app_that_acts_for_itself_needs_no_browser(owner: CommandLine, place: Place, provider: Provider) -> None:
    with_ledger(place)
    where = ("--base-url", provider.url, "--allow-private", "127.0.0.1/32", "--secret-stdin")
    ran = owner("connect", "ledger", "--kind", "machine", *where, "--json", stdin=APP)
    assert ran.code == 0, ran.err
    assert (ran.json["oauth"]["renewed_by_itself"], ran.json["account"]) == (True, "Acme Inc.")
    assert [path for path, _ in provider.requests] == ["/oauth/token"]


def test_what_is_piped_in_unsaid_is_a_token_and_an_apps_secret_does_not_stay_elsewhere(
    owner: CommandLine, place: Place, provider: Provider, tmp_path: Path
) -> None:
    with_ledger(place)
    where = ("connect", "ledger", "--base-url", provider.url, "--allow-private", "127.0.0.1/32")
    token = provider.issue()["access_token"]
    ran = owner(*where, "--secret-stdin", "--json", stdin=token.encode())
    assert (ran.code, ran.json["kind"]) == (0, "pasted")
    file = tmp_path / "app.json"
    file.write_text(f'{{"client_id": "{CLIENT_ID}", "client_secret": "{CLIENT_SECRET}"}}')
    ran = owner(*where, "--name", "two", "--kind", "machine", "--secret-from", f"file:{file}")
    assert (ran.code, "--copy" in ran.err) == (1, True)
    ran = owner(*where, "--name", "two", "--kind", "machine", "--secret-from", f"file:{file}", "--copy")
    assert ran.code == 0, ran.err
    ran = owner(*where, "--name", "three", "--kind", "pasted", "--scope", "read", "--secret-stdin", stdin=b"x" * 20)
    assert ran.code == 2


def test_without_a_browser_the_address_is_pasted_and_not_shown(
    owner: CommandLine, place: Place, provider: Provider
) -> None:
    with_ledger(place)
    redirect = "https://acme.example/oauth"
    provider.redirects.add(redirect)
    where = ("--base-url", provider.url, "--allow-private", "127.0.0.1/32", "--paste", "--redirect", redirect)
    with owner.at_terminal("connect", "ledger", "--kind", "oauth", *where) as terminal:
        terminal.until("client id: ")
        terminal.type(f"{CLIENT_ID}\n")
        terminal.until("client secret: ")
        terminal.type(f"{CLIENT_SECRET}\n")
        shown = terminal.until("not shown): ")
        found = re.search(r"http://127\.0\.0\.1:\d+/oauth/authorize\?[^\s]+", shown)
        assert found
        _, headers, _ = Browser().get(found[0])
        terminal.type(headers["location"] + "\n")
        terminal.until("Connected Ledger")
        assert terminal.end() == 0
    assert ledger(place).account == "Acme Inc."
    for secret in provider.secrets():
        assert secret not in terminal.shown
    assert CLIENT_ID in terminal.shown


def test_a_person_at_a_terminal_is_asked_for_the_app_and_no_argument_holds_a_secret(
    admin: CommandLine, place: Place, provider: Provider, port: int
) -> None:
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("there is no /proc here")
    lines: list[bytes] = []

    def look(_path: str, answer: Answer) -> Answer:
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(process.read_bytes())
            except OSError:
                continue
        return answer

    provider.answering = look
    with admin.at_terminal("connect", "ledger", *target(provider, port)) as terminal:
        terminal.until("client id: ")
        terminal.type(f"{CLIENT_ID}\n")
        terminal.until("client secret: ")
        terminal.type(f"{CLIENT_SECRET}\n")
        terminal.until("Connected Ledger")
        assert terminal.end() == 0
    assert any(b"connect" in line for line in lines)
    state = next(asked["state"] for path, asked in provider.requests if path == "/oauth/authorize")
    for secret in (*provider.secrets(), state):
        assert not any(secret.encode() in line for line in lines)
        assert secret not in terminal.shown


def test_show_tells_what_to_register(owner: CommandLine, place: Place) -> None:
    with_ledger(place)
    shown = owner("connector", "show", "ledger")
    assert DEFAULT_REDIRECT in shown.out
    assert "read, write" in shown.out
    (oauth, machine, pasted) = owner("connector", "show", "ledger", "--json").json["credentials"]
    assert (oauth["oauth"]["redirect"], machine["oauth"]["redirect"]) == (DEFAULT_REDIRECT, None)
    assert pasted["oauth"] is None
