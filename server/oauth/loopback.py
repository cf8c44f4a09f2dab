"""Receive a provider's redirect on loopback, from the browser that began and from no other.

The person opens a start page here; it sets a cookie and sends the browser on. The pages are fixed texts: nothing that
came in a request is ever shown, logged or followed. It listens for as long as one consent may take.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from server.connections import ConnectionProblem
from server.oauth.consent import Attempt, ConsentFailed, NotThisOne
from vault import Secret

COOKIE = "keyleash_consent"
READ_S = 10.0
LAST_PAGE_S = 1.0
MAX_HEAD = 16 * 1024
_REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 404: "Not Found"}
_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("Connection", "close"),
)
DONE = "Keyleash has what it needs. The terminal says how it went on. You can close this page."
REFUSED = "This was not taken, and nothing was stored. The terminal says why, and what to do."


@dataclass
class Listener:
    """What one consent needs of a web server. `warn` hears, in fixed words, of what was refused while it waits."""

    attempt: Attempt
    warn: Callable[[str], None]
    port: int = 0
    _start: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    _cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    _begun: bool = False
    _serving: set["asyncio.Task[None]"] = field(default_factory=set["asyncio.Task[None]"], repr=False)
    _came: "asyncio.Future[Secret]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def code(self, opened: Callable[[str], None]) -> Secret:
        """Listen, hand the start page's address to `opened`, and wait. Raises ConsentFailed or ConnectionProblem."""
        server = await self._listen()
        try:
            opened(f"http://{self.attempt.redirect.host}:{self.port}/start/{self._start}")
            return await asyncio.wait_for(self._came, self.attempt.left_s)
        except TimeoutError:
            raise self.attempt.stop("Nobody has consented in time.") from None
        finally:
            server.close()
            if self._serving:  # the last page is still on its way
                await asyncio.wait(self._serving, timeout=LAST_PAGE_S)

    async def _listen(self) -> asyncio.Server:
        redirect = self.attempt.redirect
        self.port = redirect.port
        try:
            return await asyncio.start_server(self._serve, "127.0.0.1", redirect.port, limit=MAX_HEAD)
        except OSError:
            raise ConnectionProblem(
                f"Port {redirect.port} of this machine is taken. End what uses it, or register another redirect with "
                f"the app and give it: `--redirect http://127.0.0.1:PORT/callback`. {_OR_PASTE}"
            ) from None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READ_S)
            status, text, more = self._answer(head.decode("latin-1"))
            writer.write(_page(status, text, more))
            await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a browser that changed its mind, or something that is none
        finally:
            writer.close()

    def _answer(self, head: str) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        line, *rest = head.split("\r\n")
        method, _, target = line.partition(" ")
        target, _, version = target.rpartition(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
        path, _, query = target.partition("?")
        here = f"{self.attempt.redirect.host}:{self.port}"
        if method != "GET" or not version.startswith("HTTP/1.") or headers.get("host") != here:
            return 404, REFUSED, ()  # a name that leads here, and is not ours, is somebody else's page
        same = hmac.compare_digest(_cookie_in(headers.get("cookie", "")).encode(), self._cookie.encode())
        if hmac.compare_digest(path.encode(), f"/start/{self._start}".encode()):
            return self._started(same_browser=same)
        if path == self.attempt.redirect.path:
            return self._returned(query, same_browser=same)
        return 404, REFUSED, ()

    def _started(self, *, same_browser: bool) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        if self._begun and not same_browser:
            self._end(self.attempt.stop("The start page was opened in a second browser, which may be an attack."))
            return 400, REFUSED, ()
        self._begun = True
        cookie = f"{COOKIE}={self._cookie}; Path=/; HttpOnly; SameSite=Lax"
        return 302, "", (("Location", self.attempt.url), ("Set-Cookie", cookie))

    def _returned(self, query: str, *, same_browser: bool) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        try:
            code = self.attempt.answered(query, same_browser=same_browser)
        except NotThisOne as problem:
            self.warn(f"something came to the redirect: {problem}")
            return 400, REFUSED, ()
        except ConsentFailed as problem:
            self._end(problem)
            return 400, REFUSED, ()
        if not self._came.done():
            self._came.set_result(code)
        return 200, DONE, ()

    def _end(self, problem: ConsentFailed) -> None:
        if not self._came.done():
            self._came.set_exception(problem.with_traceback(None))


_OR_PASTE = "`--paste` needs no port."


def _cookie_in(text: str) -> str:
    """Our cookie's value; nothing where it is there twice."""
    found = [value for name, _, value in (each.strip().partition("=") for each in text.split(";")) if name == COOKIE]
    return found[0] if len(found) == 1 else ""


def _page(status: int, text: str, more: tuple[tuple[str, str], ...]) -> bytes:
    body = f"<!doctype html><meta charset=utf-8><title>Keyleash</title><p>{text}\n".encode()
    headers = (*_HEADERS, ("Content-Length", str(len(body))), *more)
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
