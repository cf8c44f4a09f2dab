"""A receiver of OTLP over HTTP gets every entry at least once; the secret in a header is shown to nobody else.

It is one of ours; what it is sent is taken apart by OpenTelemetry's own messages, unknown fields being an error.
"""

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from server.audit import collector as posting
from server.audit.collector import LONGEST_PAUSE_S, LONGEST_WORDS, MOST_ANSWER, Answer, Collector, Hidden
from server.audit.streaming import AGAIN_S, BATCH, StreamProblem
from tests.certificates import self_signed
from tests.installed import Place
from tests.server.collectors import HttpCollector, Reply, Request, Trickle
from tests.server.streams import Done, Streams
from vault import CannotResolve, Secret

CANARY = "Bearer canary-of-a-header-4711"


@pytest.fixture
def streams(place: Place, tmp_path: Path) -> Iterator[Streams]:
    with closing(Streams(place, tmp_path)) as made:
        yield made


@pytest.fixture
def there() -> Iterator[HttpCollector]:
    with HttpCollector() as made:
        yield made


def sent(to: HttpCollector, path: str = "/v1/logs") -> list[list[int]]:
    """The numbers of the entries in each request."""
    told = {(each.path, each.headers["content-type"], each.headers["accept-encoding"]) for each in to.requests}
    assert told <= {(path, "application/json", "identity")}
    return [numbers(request) for request in to.requests]


def numbers(request: Request) -> list[int]:
    read = Parse(request.body, ExportLogsServiceRequest())
    records = [record for each in read.resource_logs for scope in each.scope_logs for record in scope.log_records]
    assert all(type(each) is int for each in enums(json.loads(request.body)))
    return [json.loads(record.body.string_value)["seq"] for record in records]


def enums(value: Any) -> Iterator[Any]:
    """OTLP's JSON has no names of enums, where protobuf's may."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in items:
        if name == "severityNumber":
            yield each
        yield from enums(each)


def posted(streams: Streams, to: HttpCollector, hidden: dict[str, Hidden] | None = None, **more: Any) -> Collector:
    return opened(streams, f"{to.url}/v1/logs", hidden or {}, **more)


def opened(streams: Streams, url: str, hidden: dict[str, Hidden], authorities: Path | None = None) -> Collector:
    streams.opened.append(Collector(url, hidden, streams.said.append, authorities))
    return streams.opened[-1]


def answering(*replies: Reply) -> Callable[[Request], Reply]:
    left = list(replies)
    return lambda _request: left.pop(0) if left else Reply()


def partly(rejected: int | str, words: str = "") -> Reply:
    """As OpenTelemetry's own message is written."""
    found = {"partialSuccess": {"rejectedLogRecords": rejected, "errorMessage": words}}
    Parse(json.dumps(found), ExportLogsServiceResponse())
    return Reply(body=json.dumps(found).encode())


def place_of(streams: Streams) -> int:
    noted = streams.noted.read()
    assert noted is not None
    return noted.seq


@pytest.mark.both_databases
def test_every_entry_goes_once_in_requests_that_are_bounded_and_the_next_run_goes_on(
    streams: Streams, there: HttpCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "MOST_BYTES", 20_000)
    streams.add(30, reason='\n"]é😀\ud800' * 50)
    stream = streams.run(posted(streams, there))
    found = sent(there)
    assert [seq for each in found for seq in each] == list(range(1, streams.last + 1))
    assert len(found) > 3
    assert all(len(each) > 1 for each in found[:-1])
    assert all(len(each.body) < 21_000 for each in there.requests)
    assert (stream.sent, stream.refused) == (streams.last, 0)
    streams.add(2)
    streams.run(posted(streams, there))
    assert sent(there)[len(found) :] == [[streams.last - 1, streams.last]]
    assert streams.said == []


def test_an_entry_that_is_more_than_a_request_may_have_goes_alone(
    streams: Streams, there: HttpCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams.run(posted(streams, there))
    monkeypatch.setattr(posting, "MOST_BYTES", 5_000)
    streams.add()
    streams.add(reason="x" * 50_000)
    streams.add()
    there.requests.clear()
    streams.run(posted(streams, there))
    assert sent(there) == [[streams.last - 2], [streams.last - 1], [streams.last]]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_it_asks_to_be_tried_again_goes_again_later_each_time(
    streams: Streams, there: HttpCollector, status: int
) -> None:
    there.reply = answering(*[Reply(status, b"no json")] * 3)
    streams.on_wait = lambda _: None
    streams.run(posted(streams, there))
    assert sent(there) == [list(range(1, streams.last + 1))] * 4
    assert streams.waited == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S]
    assert f"HTTP {status}" in streams.said[0]
    assert streams.said[1:] == ["It works again."]


@pytest.mark.parametrize(
    ("given", "waits"), [("7", 7.0), ("0", AGAIN_S), ("soon", AGAIN_S), ("999999999999", LONGEST_PAUSE_S)]
)
def test_it_is_left_alone_for_as_long_as_it_asks(
    streams: Streams, there: HttpCollector, given: str, waits: float
) -> None:
    there.reply = answering(Reply(503, b"", {"Retry-After": given}))
    streams.on_wait = lambda _: None
    streams.run(posted(streams, there))
    assert streams.waited == [waits]
    assert len(there.requests) == 2


def test_a_date_to_come_back_at_is_read_too(streams: Streams, there: HttpCollector) -> None:
    import email.utils
    import time

    there.reply = answering(Reply(429, b"", {"Retry-After": email.utils.formatdate(time.time() + 1000, usegmt=True)}))
    streams.on_wait = lambda _: None
    streams.run(posted(streams, there))
    assert 900 < streams.waited[0] <= 1000


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        *[(400, "Look at its log"), (401, "KEYLEASH_OTLP_HEADERS"), (403, "--header-stdin"), (404, "/v1/logs")],
        *[(415, "JSON"), (500, "Look at its log"), (408, "Look at its log"), (301, "somewhere else")],
    ],
)
def test_what_it_refuses_is_sent_once_and_the_stream_ends_there(
    streams: Streams, there: HttpCollector, status: int, mend: str
) -> None:
    streams.run(posted(streams, there))
    before = place_of(streams)
    streams.add(2)
    there.requests.clear()
    there.reply = lambda _: Reply(status, b"<b>words</b>", {"Location": there.url + "/elsewhere", "Retry-After": "1"})
    with pytest.raises(StreamProblem, match=f"HTTP {status}") as refused:
        streams.run(posted(streams, there))
    assert mend in str(refused.value)
    assert f"entries {before + 1} to {before + 2}" in str(refused.value)
    assert "words" not in str(refused.value)
    assert len(there.requests) == 1
    assert place_of(streams) == before
    there.reply = lambda _: Reply()
    streams.run(posted(streams, there))
    assert sent(there)[1:] == [[before + 1, before + 2]]


def test_a_request_that_is_too_large_for_it_is_parted_and_one_entry_that_is_ends_it(
    streams: Streams, there: HttpCollector
) -> None:
    streams.add(6)

    def small(request: Request) -> Reply:
        return Reply(413 if len(numbers(request)) > 3 else 200)

    there.reply = small
    streams.run(posted(streams, there))
    taken = [each for each in sent(there) if len(each) <= 3]
    assert [seq for each in taken for seq in each] == list(range(1, streams.last + 1))
    streams.add(20)
    there.requests.clear()
    receiver = posted(streams, there)
    receiver._most = 3  # as it has learnt by then
    streams.run(receiver)
    assert all(len(each) <= 3 for each in sent(there)), "what it has learnt is not asked again"
    streams.add()
    there.reply = lambda _: Reply(413)
    with pytest.raises(StreamProblem, match="max_request_body_size"):
        streams.run(posted(streams, there))
    assert place_of(streams) == streams.last - 1


def test_what_it_took_is_not_sent_again_where_the_next_request_comes_to_nothing(
    streams: Streams, there: HttpCollector
) -> None:
    streams.add(5)
    status = cycle([503, 200])
    there.reply = lambda request: Reply(413 if len(numbers(request)) > 2 else next(status))
    streams.on_wait = lambda _: None
    stream = streams.run(posted(streams, there), patience_s=2)
    taken = [each for each in sent(there) if len(each) <= 2][1::2]
    assert [seq for each in taken for seq in each] == list(range(1, streams.last + 1))
    assert (stream.sent, place_of(streams)) == (streams.last, streams.last)
    streams.add(4)
    there.reply = lambda request: Reply(400 if streams.last in numbers(request) else 200)
    receiver = posted(streams, there)
    receiver._most = 3
    with pytest.raises(StreamProblem, match="refuses entry"):
        streams.run(receiver)
    assert place_of(streams) == streams.last - 1


def test_after_a_while_it_is_asked_to_take_more_again(
    streams: Streams, there: HttpCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "GROWS_AFTER", 3)
    receiver = posted(streams, there)
    there.reply = lambda request: Reply(413 if len(numbers(request)) > 1 else 200)
    streams.run(receiver)
    there.requests.clear()
    there.reply = lambda request: Reply(413 if len(numbers(request)) > 2 else 200)
    streams.add(14)
    streams.run(receiver)
    assert [len(each) for each in sent(there)] == [2, 2, 4, 2, 2, 2, 4, 2, 2]
    assert [seq for each in sent(there) if len(each) < 4 for seq in each] == list(
        range(streams.last - 13, streams.last + 1)
    )
    receiver._most, receiver._fitted = BATCH, 2
    streams.add()
    streams.run(receiver)
    assert receiver._most == BATCH


def test_one_that_gives_its_answer_byte_by_byte_is_not_listened_to_without_end(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Trickle() as there:
        receiver = opened(streams, there.url, {})
        monkeypatch.setattr(posting, "SEND_S", 0.1)
        with pytest.raises(Done):
            streams.run(receiver)
    assert "did not answer within 0.1 seconds" in streams.said[0]
    assert place_of(streams) == 0


def test_one_that_asks_for_more_patience_than_a_run_has_is_given_up_at_once(
    streams: Streams, there: HttpCollector
) -> None:
    there.reply = lambda _: Reply(503, b"", {"Retry-After": "100"})
    with pytest.raises(StreamProblem, match="because it asks for 100 seconds, more than are left of 99: "):
        streams.run(posted(streams, there), patience_s=99)
    assert (streams.waited, len(there.requests), place_of(streams)) == ([], 1, 0)


def test_what_it_rejects_for_good_is_said_and_counted_and_not_sent_again(
    streams: Streams, there: HttpCollector
) -> None:
    there.reply = answering(partly("2", "too old, and\x1b[2J odd"), partly(0, "use gzip."), partly(0, "x" * 5000))
    stream = streams.run(posted(streams, there))
    assert (stream.refused, stream.sent) == (2, streams.last - 2)
    assert len(there.requests) == 1
    assert f"rejected 2 of the entries 1 to {streams.last} for good: too old, and" in streams.said[0]
    streams.add()
    stream = streams.run(posted(streams, there))
    assert (stream.refused, stream.sent) == (0, 1)
    assert streams.said[1].endswith(f"has taken entry {streams.last}, and says: use gzip.")
    streams.add()
    streams.run(posted(streams, there))
    assert streams.said[2].endswith(f"and says: {'x' * LONGEST_WORDS}.")


def test_it_rejects_no_more_than_it_was_sent_whatever_it_says(streams: Streams, there: HttpCollector) -> None:
    there.reply = answering(partly(10**9))
    stream = streams.run(posted(streams, there))
    assert (stream.refused, stream.sent) == (streams.last, 0)
    assert f"rejected {streams.last} of the entries 1 to {streams.last} for good." in streams.said[0]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"partialSuccess":null}', b'{"partialSuccess":{"errorMessage":null}}'])
def test_an_answer_with_nothing_to_say_is_a_yes(streams: Streams, there: HttpCollector, body: bytes) -> None:
    there.reply = lambda _: Reply(body=body)
    assert streams.run(posted(streams, there)).sent == streams.last
    assert streams.said == []


@pytest.mark.parametrize(
    "body",
    [
        *[b"<html>sign in</html>", b"[]", b"1", b'"ok"', b"\xff", b"[" * 50_000, b" " * (MOST_ANSWER + 1) + b"{}"],
        *[b'{"partialSuccess":1}', b'{"partialSuccess":{"rejectedLogRecords":"x"}}'],
        *[b'{"partialSuccess":{"rejectedLogRecords":-1}}', b'{"partialSuccess":{"errorMessage":5}}'],
        b'{"partialSuccess":{"rejectedLogRecords":1e999}}',
    ],
)
def test_a_yes_of_something_else_is_none(streams: Streams, there: HttpCollector, body: bytes) -> None:
    there.reply = lambda _: Reply(body=body)
    with pytest.raises(StreamProblem, match="no receiver of OTLP"):
        streams.run(posted(streams, there))
    assert place_of(streams) == 0
    assert len(there.requests) == 1


def test_an_answer_without_end_is_not_kept(
    streams: Streams, there: HttpCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "SEND_S", 20)
    there.reply = lambda _: Reply(body=b" " * (MOST_ANSWER + 1), headers={"content-length": "1000000000"})
    with pytest.raises(StreamProblem, match="no receiver of OTLP"):
        streams.run(posted(streams, there))


def test_a_proxy_that_the_environment_names_is_not_gone_through(
    streams: Streams, there: HttpCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpCollector() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        streams.run(posted(streams, there))
    assert (len(there.requests), proxy.requests) == (1, [])


def test_what_came_back_is_shown_without_what_it_may_quote() -> None:
    shown = repr(Answer(200, {"x": CANARY}, CANARY.encode(), [CANARY]))
    assert "200" in shown
    assert "canary" not in shown


def test_one_that_hangs_up_or_is_away_is_tried_again_and_has_missed_nothing(
    streams: Streams, there: HttpCollector
) -> None:
    streams.run(posted(streams, there))
    streams.add(3)
    there.requests.clear()
    there.reply = answering(Reply(hang_up=True))
    receiver, again = posted(streams, there), list[HttpCollector]()

    def on_wait(_: float) -> None:
        if len(streams.waited) == 1:
            there.close()
        if len(streams.waited) == 3:
            again.append(HttpCollector(there.port))

    streams.on_wait = on_wait
    streams.run(receiver)
    again[0].close()
    assert sent(there) == sent(again[0]) == [[streams.last - 2, streams.last - 1, streams.last]]
    assert "ended the connection" in streams.said[0]
    assert len(streams.said) == 2


def test_the_connection_is_kept(streams: Streams, there: HttpCollector) -> None:
    ports = set[Any]()
    there.reply = lambda request: (ports.add(request.headers["host"]), Reply())[1]
    receiver = posted(streams, there)
    for _ in range(3):
        streams.add()
        streams.run(receiver)
    assert len(there.requests) == 3
    pool: Any = receiver._client._transport
    assert len(pool._pool.connections) == 1


# -- who it is


@pytest.mark.parametrize(("host", "trusted"), [("127.0.0.1", False), ("localhost", True)])
def test_one_that_does_not_prove_its_name_gets_nothing(
    streams: Streams, tmp_path: Path, host: str, *, trusted: bool
) -> None:
    certificate = self_signed(tmp_path, "127.0.0.1")
    with HttpCollector(certificate=certificate) as there:
        trust = certificate if trusted else None
        receiver = opened(streams, f"https://{host}:{there.port}/v1/logs", hidden(), trust)
        with pytest.raises(Done):
            streams.run(receiver)
    assert there.requests == []
    assert "CERTIFICATE_VERIFY_FAILED" in streams.said[0]
    assert place_of(streams) == 0


def test_over_tls_it_gets_the_entries_and_the_header(streams: Streams, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, "127.0.0.1")
    with HttpCollector(certificate=certificate) as there:
        streams.run(posted(streams, there, hidden(), authorities=certificate))
    assert sent(there) == [list(range(1, streams.last + 1))]
    assert there.requests[0].headers["authorization"] == CANARY
    with pytest.raises(StreamProblem, match=r"nosuch\.pem"):
        posted(streams, there, authorities=tmp_path / "nosuch.pem")


def hidden(value: str = CANARY) -> dict[str, Hidden]:
    return {"authorization": lambda: Secret({"secret": value})}


def test_a_secret_crosses_no_network_in_clear(streams: Streams) -> None:
    with pytest.raises(StreamProblem, match="not https"):
        opened(streams, "http://collector.example.com:4318/v1/logs", hidden())
    opened(streams, "http://collector.example.com:4318/v1/logs", {})
    opened(streams, "http://[::1]:4318/v1/logs", hidden())


def test_a_secret_is_read_anew_for_each_request_and_is_shown_nowhere(
    streams: Streams, there: HttpCollector, tmp_path: Path
) -> None:
    values = iter(f"{CANARY}{number}\n" for number in range(9))
    receiver = posted(streams, there, {"authorization": lambda: Secret({"secret": next(values)})})
    for _ in range(2):
        streams.add()
        streams.run(receiver)
    told = [each.headers["authorization"] for each in there.requests]
    assert len(set(told)) == 2
    assert all(each.startswith(CANARY) for each in told)
    there.reply = lambda request: partly(0, f"hello, {request.headers['authorization'].partition(' ')[2]}")
    streams.add()
    streams.run(receiver)
    assert streams.said.pop().endswith("hello, [removed by Keyleash]."), "though the next one is another"
    there.reply = lambda request: partly(1, f"not {request.headers['authorization']} {CANARY.split()[1]}")
    receiver = posted(streams, there, hidden())
    streams.add()
    streams.run(receiver)
    problems = list[str]()
    for reply in (
        Reply(400, CANARY.encode()),
        Reply(301, b"", {"Location": f"/{CANARY.split()[1]}"}),
        Reply(hang_up=True),
    ):
        there.reply = lambda _, reply=reply: reply
        streams.add()
        with pytest.raises((StreamProblem, Done)) as found:
            streams.run(receiver)
        frames = traceback.TracebackException.from_exception(found.value, capture_locals=True).stack
        problems += [str(found.value), *(repr(each.locals) for each in frames if "/server/audit/" in each.filename)]
    assert len(problems) > 6
    said = "\n".join([*streams.said, *problems, repr(vars(receiver))])
    assert "[removed by Keyleash]" in said
    assert CANARY.split()[1] not in said
    assert CANARY.split()[1].encode() not in b"".join(each.read_bytes() for each in tmp_path.rglob("*.json"))
    assert CANARY.split()[1] not in repr(streams.place.events())


@pytest.mark.parametrize("value", ["one\ntwo", "é", "", "\0", "x" + "\r\nx-other: y"])
def test_a_secret_that_no_header_can_hold_is_refused_unquoted_and_nothing_is_sent(
    streams: Streams, there: HttpCollector, value: str
) -> None:
    with pytest.raises(StreamProblem, match="header authorization cannot be used") as refused:
        streams.run(posted(streams, there, hidden(value)))
    assert there.requests == []
    assert not value or value not in str(refused.value)
    assert streams.noted.read() is None


def test_a_secret_that_cannot_be_read_ends_a_beginning_and_is_waited_for_later(
    streams: Streams, there: HttpCollector
) -> None:
    def away() -> Secret:
        raise CannotResolve("The file is not there.")

    with pytest.raises(StreamProblem, match="The file is not there"):
        streams.run(posted(streams, there, {"authorization": away}))
    assert (there.requests, streams.waited) == ([], [])
    turns = iter([False, True, True, False])

    def now_and_then() -> Secret:
        return away() if next(turns, False) else Secret({"secret": CANARY})

    streams.on_wait = lambda _: None
    streams.run(posted(streams, there, {"authorization": now_and_then}))
    assert streams.waited == [AGAIN_S, 2 * AGAIN_S]
    assert sent(there) == [list(range(1, streams.last + 1))]
