"""Send entries to the OpenTelemetry receiver that the operator names: OTLP over HTTP, in JSON.

Entries count as taken when the receiver has answered that it took them. What it asks to be tried again (429, 502, 503,
504), and what came to no answer, goes again; every other refusal ends the stream where it is, because the same request
must not be sent twice. What it rejects out of a request for good is said, counted, and not sent again.
Source: OTLP 1.10, "OTLP/HTTP Response".
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
import httpx2

from connectors.scrub import scrub
from connectors.waiting import retry_after
from server.audit.entry import Entry
from server.audit.otlp import record_of, request_of
from server.audit.streaming import BATCH, Away, StreamProblem, Taken
from server.audit.wire import SEND_S, trusting
from vault import CannotResolve, RootKeyProblem, Secret
from vault.remote import refuse_in_clear

MOST_BYTES = 4 * 1024 * 1024
"""Of the records of a request; more only where one alone is. Receivers are to take 20 MiB."""
MOST_ANSWER = 64 * 1024
LONGEST_PAUSE_S = 3600.0
"""A receiver that asks for more patience is tried again after so long."""
LONGEST_WORDS = 300
GROWS_AFTER = 16
"""So many requests in a row that were not too large, and the next may have twice as many entries."""
_AGAIN = frozenset({429, 502, 503, 504})
_MENDS = {
    401: "It wants another secret in a header: see KEYLEASH_OTLP_HEADERS, or --header-stdin",
    403: "It wants another secret in a header: see KEYLEASH_OTLP_HEADERS, or --header-stdin",
    404: "It takes no logs at that path: KEYLEASH_OTLP_LOGS has the whole of it, which mostly ends with /v1/logs",
    405: "It takes no logs at that path: KEYLEASH_OTLP_LOGS has the whole of it, which mostly ends with /v1/logs",
    413: "This one entry is more than it takes at once: let it take more (a collector: max_request_body_size)",
    415: "It does not take OTLP as JSON: send it to a collector that does",
}

Hidden = Callable[[], Secret]
"""What stands in a header, as the field `secret`, read anew for each request. Raises CannotResolve."""


@dataclass(frozen=True)
class Answer:
    """What came back: `body` is cut off at `MOST_ANSWER` and one. It may quote the request, so it is not shown.

    `secrets` stood in that request's headers: read again, they may be others.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    secrets: Sequence[str] = field(repr=False)


class Collector:
    """The receiver at `url`. `say` hears in a sentence what it says about what it was sent."""

    def __init__(
        self,
        url: str,
        hidden: Mapping[str, Hidden],
        say: Callable[[str], object],
        authorities: Path | None = None,
    ) -> None:
        if hidden:
            _require_unheard(url)
        self.url = url
        self._hidden, self._say = dict(hidden), say
        self._most, self._fitted = BATCH, 0
        tls = trusting(authorities)
        self._client = httpx2.AsyncClient(verify=tls, trust_env=False, follow_redirects=False, timeout=None)
        self._runner = asyncio.Runner()  # only what is asynchronous can be ended as a whole, whatever trickles in

    def resume(self, mark: list[int]) -> None:
        """The secrets can be read, or nothing is begun."""
        del mark
        try:
            self._headers()
        except Away as problem:
            raise StreamProblem(f"{problem}. Mend it, and start the stream again.") from None

    def mark(self) -> list[int]:
        return []

    def send(self, entries: Sequence[Entry]) -> Taken:
        """Those of one request: what it took is noted before the next, which may come to nothing."""
        return self._deliver(self._fitting(entries))

    def close(self) -> None:
        with self._runner as runner:
            runner.run(self._client.aclose())

    def _fitting(self, entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
        """The first entries with their records, as many as a request may have."""
        part: list[tuple[Entry, str]] = []
        size = 0
        for entry in entries[: self._most]:
            record = record_of(entry)
            if part and size + len(record) > MOST_BYTES:
                break
            part.append((entry, record))
            size += len(record)
        return part

    def _deliver(self, part: list[tuple[Entry, str]]) -> Taken:
        """Returns when they are taken, or the first of them where all are too much. Raises Away, StreamProblem."""
        which = _named(part)
        answer = self._posted(request_of(record for _, record in part).encode())
        if answer.status == 413 and len(part) > 1:
            self._most, self._fitted = len(part) // 2, 0
            return self._deliver(part[: self._most])
        if answer.status in _AGAIN:
            pause = min(retry_after(answer.headers) or 0.0, LONGEST_PAUSE_S)
            raise Away(f"{self.url} asks to be tried again later (HTTP {answer.status})", after_s=pause)
        if not 200 <= answer.status < 300:
            mend = _MENDS.get(answer.status, "Look at its log")
            if 300 <= answer.status < 400:
                mend = "It is somewhere else: name that place in KEYLEASH_OTLP_LOGS"
            raise StreamProblem(
                f"{self.url} refuses {which} (HTTP {answer.status}). {mend}. Then start the stream again: it goes on "
                "with these."
            )
        self._grow()
        return Taken(len(part), self._rejected(answer, which, len(part)))

    def _grow(self) -> None:
        """What was too large may have been the entries' size, or a limit that was mended since."""
        self._fitted += 1
        if self._fitted >= GROWS_AFTER:
            self._most, self._fitted = min(2 * self._most, BATCH), 0

    def _rejected(self, answer: Answer, which: str, most: int) -> int:
        """How many were, and what the receiver says is said. Raises StreamProblem where it is no receiver."""
        try:
            rejected, words = _partial_success(answer.body)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise StreamProblem(
                f"{self.url} answers with what no receiver of OTLP does (HTTP {answer.status}), so nothing says that "
                f"it took {which}. See whether KEYLEASH_OTLP_LOGS is right; the stream goes on with these."
            ) from None
        said, rejected = _scrubbed(words, answer), min(rejected, most)
        if rejected:
            self._say(f"{self.url} has rejected {rejected} of {which} for good{said}. They are not sent again.")
        elif words:
            self._say(f"{self.url} has taken {which}, and says{said}.")
        return rejected

    def _posted(self, body: bytes) -> Answer:
        """Raises Away where it comes to no answer. Nothing that is raised had the headers in hand."""
        try:
            return self._runner.run(self._exchanged(body, self._headers()))
        except httpx2.ConnectError as error:
            why = str(error) or "it does not answer"
        except TimeoutError:
            why = f"it did not answer within {SEND_S:g} seconds"
        except httpx2.HTTPError:  # it may quote the request, and the request has secrets
            why = "it ended the connection, or speaks no HTTP"
        raise Away(f"the receiver at {self.url} takes nothing: {why}")

    async def _exchanged(self, body: bytes, hidden: dict[str, str]) -> Answer:
        headers = {**hidden, "Content-Type": "application/json", "Accept-Encoding": "identity"}
        with anyio.fail_after(SEND_S):
            async with self._client.stream("POST", self.url, content=body, headers=headers) as answer:
                found = bytearray()
                async for piece in answer.aiter_raw():
                    found += piece
                    if len(found) > MOST_ANSWER:
                        break
                return Answer(answer.status_code, dict(answer.headers), bytes(found), list(hidden.values()))

    def _headers(self) -> dict[str, str]:
        """Raises Away where one cannot be read, or is none."""
        return {name: _value(name, read) for name, read in self._hidden.items()}


def _require_unheard(url: str) -> None:
    try:
        refuse_in_clear(url, mend="")
    except RootKeyProblem:
        raise StreamProblem(
            f"{url} is not https: the secret in a header would cross the network in clear. Name it with https in "
            "KEYLEASH_OTLP_LOGS, or send no secret."
        ) from None


def _named(part: Sequence[tuple[Entry, str]]) -> str:
    first, last = part[0][0].seq, part[-1][0].seq
    return f"entry {first}" if first == last else f"the entries {first} to {last}"


def _value(name: str, read: Hidden) -> str:
    problem = "it holds what no header can: line ends, or characters that are not ASCII"
    try:
        with read() as secret:
            if _HEADER.fullmatch(secret.reveal().strip()):
                return secret.reveal().strip()
    except CannotResolve as error:
        problem = str(error).rstrip(".")
    raise Away(f"the secret for the header {name} cannot be used: {problem}")


_HEADER = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def _scrubbed(words: str, answer: Answer) -> str:
    if not words:
        return ""
    text = scrub(words, [each for line in answer.secrets for each in (line, *line.split())])
    return f": {text[:LONGEST_WORDS].rstrip('.')}"


def _partial_success(body: bytes) -> tuple[int, str]:
    """How many records were rejected, and what else was said. Raises ValueError and others for what is no answer."""
    if not body:
        return 0, ""
    if len(body) > MOST_ANSWER:
        raise ValueError
    whole = cast("dict[str, Any]", json.loads(body))
    found = cast("dict[str, Any]", whole.get("partialSuccess") or {})
    rejected, words = int(found.get("rejectedLogRecords") or 0), found.get("errorMessage") or ""
    if rejected < 0 or not isinstance(words, str):
        raise ValueError
    return rejected, words
