"""Streaming and hashing at the command line: on record, for those who may read the log, and killed without a loss."""

import json
import math
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cefp
import pytest
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from syslogcef.parsers import parse_rfc5424

from server.audit import Event, append, argument_fields
from server.cli.streaming import _patience
from server.destinations import otlp_headers, otlp_logs
from server.identity import system_user
from tests.certificates import self_signed
from tests.commandline import MAIN, CommandLine, with_environment
from tests.installed import Place, files_holding
from tests.server.collectors import Collector, HttpCollector, Reply

VALUE = "kestrel_over_the_pier"


def entries_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["entry"] for line in path.read_bytes().splitlines()]


def add(place: Place, count: int = 1, **fields: Any) -> None:
    def change(rows: Any) -> None:
        for _ in range(count):
            append(rows, place.org, Event.CALL_OUTCOME, **fields)

    place.database.of(place.org).write_now(change)


# -- stream


@pytest.mark.both_databases
def test_a_stream_goes_on_where_it_stopped_and_each_start_is_on_record(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    first = owner("audit", "stream", "--output", str(file), "--once")
    assert (first.code, first.out) == (0, "")
    add(place, 3)
    second = owner("audit", "stream", "--output", str(file), "--once")
    assert second.err == f"Handed on 4 entries, up to entry {len(place.events())}.\n"
    assert [entry["seq"] for entry in entries_in(file)] == list(range(1, len(place.events()) + 1))
    one, two = place.events("audit.streamed")
    assert (one["by"], one["known_by"], one["format"], one["to"], one["stream"], one["after"]) == (
        *("alice", "os user", "jsonl", str(file), "default", 0),
    )
    assert two["after"] == one["seq"]
    assert (place.home / "streams" / place.org).stat().st_mode & 0o777 == 0o700


def test_a_stream_is_not_mixed_up_with_another(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    file = str(tmp_path / "log.jsonl")
    assert owner("audit", "stream", "-o", file, "--once").code == 0
    before = len(place.events())
    for other in (
        ("-o", str(tmp_path / "other")),
        ("-o", file, "--format", "csv"),
        ("-o", file, "--tool", "x"),
    ):
        ran = owner("audit", "stream", *other, "--once")
        assert ran.code == 2
        assert "another --name" in " ".join(ran.err.replace("│", " ").split())
    assert not (tmp_path / "other").exists()
    assert len(place.events()) == before
    assert (
        owner("audit", "stream", "-o", str(tmp_path / "other"), "--format", "csv", "--name", "two", "--once").code == 0
    )
    assert len((tmp_path / "other").read_text().splitlines()) == 1 + before + 1


def test_a_stream_of_several_events_is_one_stream_in_whatever_order_they_are_named(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    one, two = ("--event", "call.outcome"), ("--event", "audit.streamed")
    assert owner("audit", "stream", "-o", str(file), *one, *two, "--once").code == 0
    add(place)
    assert owner("audit", "stream", "-o", str(file), *two, *one, "--once").code == 0
    assert [entry["event"] for entry in entries_in(file)] == ["audit.streamed", "call.outcome", "audit.streamed"]
    assert place.events("audit.streamed")[0]["selection"] == {"event": ["audit.streamed", "call.outcome"]}


def test_a_run_that_ends_gives_up_on_a_receiver_that_is_away_and_the_next_goes_on(
    owner: CommandLine, place: Place, there: HttpCollector
) -> None:
    there.reply = lambda _: Reply(503, b"", {"Retry-After": "61"})
    stream = ("audit", "stream", "--otlp", "--once")
    ran = otlp(owner, there)(*stream)
    assert ran.code == 1
    assert "Handed on 0 entries, up to entry 0." in ran.err
    assert "asks for 61 seconds, more than are left of 60: 5 entries after 0 are not delivered." in ran.err
    assert "more than are left of 5:" in otlp(owner, there)(*stream, "--patience", "5s").err
    goes_on = owner("audit", "stream", "-o", "x", "--patience", "5s")
    assert (goes_on.code, "goes with --once" in goes_on.err) == (2, True)
    assert _patience(None, once=False) == math.inf
    there.reply = lambda _: Reply()
    there.requests.clear()
    assert otlp(owner, there)(*stream).code == 0
    assert received(there) == list(range(1, len(place.events()) + 1))


def test_only_what_is_new_can_be_asked_for(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert owner("audit", "stream", "-o", str(file), "--only-new", "--once").code == 0
    assert [entry["event"] for entry in entries_in(file)] == ["audit.streamed"]
    add(place)
    assert owner("audit", "stream", "-o", str(file), "--only-new", "--once").code == 0
    assert [entry["event"] for entry in entries_in(file)] == ["audit.streamed", "call.outcome", "audit.streamed"]


def test_one_stream_runs_once_at_a_time(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    with running(owner, "audit", "stream", "-o", str(file)) as process:
        wait_for_lines(file, 1, process)
        before = len(place.events())
        ran = owner("audit", "stream", "-o", str(file), "--once")
        assert ran.code == 1
        assert "running already" in ran.err
        assert len(place.events()) == before


def test_a_pipe_gets_the_lines_of_the_format(owner: CommandLine, place: Place) -> None:
    ran = owner("audit", "stream", "-o", "-", "--format", "csv", "--once")
    assert [line.split(",")[0] for line in ran.out.splitlines()] == [
        '"seq"',
        *(f'"{n}"' for n in range(1, len(place.events()) + 1)),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("-o", "x", "--syslog"),
        ("-o", "x", "--format", "xml"),
        ("--syslog",),
        ("-o", "x", "--name", "../x"),
        ("-o", "x", "--event", "no.such"),
        ("-o", "x", "--argument", "kestrel"),
    ],
)
def test_what_makes_no_sense_is_misuse_and_leaves_nothing(
    owner: CommandLine, place: Place, wrong: tuple[str, ...]
) -> None:
    before = len(place.events())
    assert owner("audit", "stream", *wrong, "--once").code == 2
    assert len(place.events()) == before
    assert not (owner.person / "x").exists()


@pytest.mark.parametrize("name", ["keys/root.key", "data/keyleash.db", "streams/x"])
def test_a_stream_is_never_put_into_keyleashs_own_folder(owner: CommandLine, place: Place, name: str) -> None:
    ran = owner("audit", "stream", "-o", str(place.home / name), "--once")
    assert ran.code == 2
    assert owner("audit", "verify").code == 0


def test_only_the_operators_setting_says_where_the_receiver_is(owner: CommandLine, place: Place) -> None:
    with Collector("tcp") as collector:
        line = with_environment(owner, {"KEYLEASH_SYSLOG": f"tcp://127.0.0.1:{collector.port}"})
        assert line("audit", "stream", "--syslog", "--format", "ocsf", "--once").code == 2
        ran = line("audit", "stream", "--syslog", "--once")
        assert ran.code == 0, ran.err
        collector.wait_for(len(place.events()))
    assert collector.seqs == list(range(1, len(place.events()) + 1))
    assert place.events("audit.streamed")[0]["to"] == f"tcp://127.0.0.1:{collector.port}"


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_a_syslog_receiver_of_cef_gets_cef(owner: CommandLine, place: Place, kind: str) -> None:
    add(place, reason="x=y|z\nnext")
    with Collector(kind) as collector:
        line = with_environment(owner, {"KEYLEASH_SYSLOG": f"{kind}://127.0.0.1:{collector.port}"})
        ran = line("audit", "stream", "--syslog", "--format", "cef", "--once")
        assert ran.code == 0, ran.err
        collector.wait_for(len(place.events()))
        other = line("audit", "stream", "--syslog", "--once")
        assert (other.code, "another --name" in " ".join(other.err.replace("│", " ").split())) == (2, True)
    read = [parse_rfc5424(message.decode()) for message in collector.messages]
    assert all(each is not None and not each.sd for each in read)
    records = [cefp.parse(each.msg) for each in read if each is not None]
    assert [record["extension"]["externalId"] for record in records] == [
        str(seq) for seq in range(1, len(place.events()) + 1)
    ]


# -- an OpenTelemetry receiver


HEADER = "canary-of-a-header-0815"


@pytest.fixture
def there() -> Iterator[HttpCollector]:
    with HttpCollector() as made:
        yield made


def otlp(line: CommandLine, there: HttpCollector, **more: str) -> CommandLine:
    return with_environment(line, {"KEYLEASH_OTLP_LOGS": f"{there.url}/v1/logs", **more})


def received(there: HttpCollector) -> list[int]:
    read = [Parse(request.body, ExportLogsServiceRequest()) for request in there.requests]
    records = [
        log for each in read for whole in each.resource_logs for scope in whole.scope_logs for log in scope.log_records
    ]
    return [json.loads(record.body.string_value)["seq"] for record in records]


@pytest.mark.both_databases
def test_an_opentelemetry_receiver_gets_the_log_and_the_headers_secret_is_nowhere(
    owner: CommandLine, place: Place, tmp_path: Path, there: HttpCollector
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"Bearer {HEADER}\n")
    file.chmod(0o600)
    line = otlp(owner, there, KEYLEASH_OTLP_HEADERS=f"Authorization=file:{file}, X-Scope-OrgID=env:SCOPE", SCOPE="acme")
    first = line("audit", "stream", "--otlp", "--once")
    assert (first.code, first.out) == (0, ""), first.err
    add(place, 2)
    second = otlp(owner, there)(
        "audit", "stream", "--otlp", "--header-stdin", "api-key", "--once", stdin=HEADER.encode() + b"\n"
    )
    assert (second.code, second.err) == (0, f"Handed on 3 entries, up to entry {len(place.events())}.\n")
    assert received(there) == list(range(1, len(place.events()) + 1))
    told = [request.headers for request in there.requests]
    assert (told[0]["authorization"], told[0]["x-scope-orgid"], told[1]["api-key"]) == (
        *(f"Bearer {HEADER}", "acme"),
        HEADER,
    )
    assert place.events("audit.streamed")[0]["to"] == f"{there.url}/v1/logs"
    shown = first.out + first.err + second.out + second.err + repr(place.events())
    assert HEADER not in shown
    assert [path for path in files_holding(tmp_path, HEADER.encode()) if path != file] == []


def test_receivers_over_tls_are_checked_against_the_authorities_that_the_operator_names(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    certificate = self_signed(tmp_path, "127.0.0.1")
    with HttpCollector(certificate=certificate) as there, Collector("tls", certificate=certificate) as syslog:
        line = otlp(
            owner,
            there,
            KEYLEASH_OTLP_CA_FILE=str(certificate),
            KEYLEASH_SYSLOG=f"tls://127.0.0.1:{syslog.port}",
            KEYLEASH_SYSLOG_CA_FILE=str(certificate),
        )
        for to in ("--otlp", "--syslog"):
            ran = line("audit", "stream", to, "--once", "--patience", "1s", "--name", to.strip("-"))
            assert ran.code == 0, ran.err
        syslog.wait_for(len(place.events()))
    assert received(there)[0] == 1


def test_what_an_opentelemetry_receiver_rejects_ends_in_an_error(
    owner: CommandLine, place: Place, there: HttpCollector
) -> None:
    there.reply = lambda _: Reply(body=b'{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"too old"}}')
    ran = otlp(owner, there)("audit", "stream", "--otlp", "--once")
    assert ran.code == 1
    assert "rejected 1 of the entries 1 to 5 for good: too old." in ran.err
    assert "Handed on 4 entries, up to entry 5." in ran.err
    there.reply = lambda _: Reply(401)
    ran = otlp(owner, there)("audit", "stream", "--otlp", "--once")
    assert (ran.code, "HTTP 401" in ran.err, "Traceback" in ran.err) == (1, True, False)
    there.reply = lambda _: Reply()
    assert otlp(owner, there)("audit", "stream", "--otlp", "--once").code == 0
    assert received(there)[-1] == len(place.events())


@pytest.mark.parametrize(
    "words",
    [
        ("--otlp", "--syslog"),
        ("--otlp", "-o", "x"),
        ("--otlp", "--format", "jsonl"),
        ("--otlp", "--header-stdin", "Content-Type"),
        ("--otlp", "--header-stdin", "not a name"),
        ("-o", "x", "--header-stdin", "authorization"),
    ],
)
def test_what_makes_no_sense_of_it_is_misuse_and_sends_nothing(
    owner: CommandLine, place: Place, there: HttpCollector, words: tuple[str, ...]
) -> None:
    before = len(place.events())
    assert otlp(owner, there)("audit", "stream", *words, "--once", stdin=b"secret").code == 2
    assert owner("audit", "stream", "--otlp", "--once").code == 2, "nothing says where it is"
    assert (len(place.events()), there.requests, (owner.person / "x").exists()) == (before, [], False)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *[
            ("LOGS", url)
            for url in ("h:4318", "ftp://h/v1/logs", f"https://u:{HEADER}@h/v1/logs", "https://h:0/v1/logs")
        ],
        *[("LOGS", url) for url in (f"https://h/v1/logs?key={HEADER}", "https://h/v1/logs#x", "https://h:99999/")],
        *[("HEADERS", text) for text in (HEADER, f"authorization={HEADER}", f"authorization=Bearer {HEADER}")],
        *[
            ("HEADERS", text)
            for text in ("host=env:X", "a=env:X,A=env:Y", "a b=env:X", "=env:X", "a=env:", "a=env:X,b")
        ][:5],
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_and_not_quoted(owner: CommandLine, name: str, given: str) -> None:
    ran = with_environment(owner, {f"KEYLEASH_OTLP_{name}": given})("audit", "list")
    assert ran.code == 1
    assert f"KEYLEASH_OTLP_{name} makes no sense" in ran.err
    assert HEADER not in ran.err + ran.out


def test_settings_that_make_sense_are_read() -> None:
    assert otlp_logs("https://h") == otlp_logs("https://h/") == "https://h/v1/logs"
    assert otlp_logs("http://[::1]:4318/otlp/v1/logs") == "http://[::1]:4318/otlp/v1/logs"
    assert otlp_headers("A=cmd:print a,b=c,D=env:X") == (("a", "cmd:print a,b=c"), ("d", "env:X"))


@pytest.mark.parametrize(
    "given",
    ["127.0.0.1:514", "http://h:1", "tcp://", "udp://h:x", "tcp://h:0", "tls://h/p", "tcp://u@h", "tcp://h:1?a"],
)
def test_a_receiver_that_makes_no_sense_is_refused_by_every_command(owner: CommandLine, given: str) -> None:
    ran = with_environment(owner, {"KEYLEASH_SYSLOG": given})("audit", "list")
    assert ran.code == 1
    assert "KEYLEASH_SYSLOG" in ran.err
    assert "tcp://HOST:PORT" in ran.err


# -- killed


class running:
    """A command in a process of its own, killed at the end of the block if it still runs."""

    def __init__(self, line: CommandLine, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=line.environment,
            cwd=line.person,
        )

    def __enter__(self) -> "subprocess.Popen[bytes]":
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def wait_for_lines(file: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    tick = threading.Event()
    for _ in range(3000):
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        tick.wait(0.01)
    raise AssertionError(f"{file} has not come to {count} lines")


@pytest.mark.slow
@pytest.mark.both_databases
def test_a_stream_that_is_killed_again_and_again_loses_nothing_and_repeats_only_at_the_seam(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    file, rng, stop = tmp_path / "log.jsonl", random.Random(6), threading.Event()

    def write() -> None:
        while not stop.is_set():
            add(place, 40, reason="x" * rng.randrange(2000))

    writer = threading.Thread(target=write)
    writer.start()
    seams = [0]
    try:
        for _ in range(3):
            with running(owner, "audit", "stream", "-o", str(file)) as process:
                wait_for_lines(file, seams[-1] + rng.randrange(1, 400), process)
                process.send_signal(signal.SIGKILL)
                process.wait()
            seams.append(file.read_bytes().count(b"\n"))
    finally:
        stop.set()
        writer.join()
    assert owner("audit", "stream", "-o", str(file), "--once").code == 0
    seqs = [entry["seq"] for entry in entries_in(file)]
    assert sorted(set(seqs)) == list(range(1, len(place.events()) + 1))
    back = [at for at in range(1, len(seqs)) if seqs[at] != seqs[at - 1] + 1]
    assert set(back) <= set(seams)


# -- hash


@pytest.fixture
def searched(owner: CommandLine, place: Place) -> Iterator[CommandLine]:
    key = place.database.query(lambda rows: place.installation.vault.derive(rows, place.org, "audit-values"))
    for arguments in (
        {"note": VALUE, "amount": 5000},
        {"note": "other", "amount": 5000.0},
        {"text": VALUE, "tags": ["a", "b"]},
    ):
        add(place, **argument_fields(key, arguments))
    yield owner


def hashes(line: CommandLine, value: str, *arguments: str) -> dict[tuple[str, str], str]:
    ran = line(
        "audit", "hash", "-", *(part for name in arguments for part in ("-a", name)), "--json", stdin=value.encode()
    )
    assert ran.code == 0, ran.err
    return {(each["argument"], each["form"]): each["hash"] for each in ran.json}


@pytest.mark.both_databases
def test_a_value_is_found_by_its_hash(searched: CommandLine, place: Place) -> None:
    def found(*filters: str) -> list[int]:
        return [entry["seq"] for entry in searched("audit", "list", "--json", *filters).json]

    one, two, three = (entry["seq"] for entry in place.events("call.outcome"))
    of = hashes(searched, VALUE + "\n", "note", "text")
    assert set(of) == {("note", "text"), ("text", "text")}
    assert found("--argument", f"note={of['note', 'text']}") == [one]
    assert found("--argument", of["text", "text"]) == [three]
    both = found("--argument", f"note={of['note', 'text']}", "--argument", of["text", "text"])
    assert both == [one, three]
    assert found("--argument", f"other={of['text', 'text']}") == []
    amount = hashes(searched, "5000", "amount")
    assert found("--argument", amount["amount", "whole number"]) == [one]
    assert found("--argument", amount["amount", "number with a point"]) == [two]
    assert found("--argument", amount["amount", "text"]) == []
    assert found("--argument", hashes(searched, '[ "a","b" ]', "tags")["tags", "list"]) == [three]
    assert found("--argument", "h1:" + "0" * 32) == []


def test_the_search_is_on_record_and_the_value_is_nowhere(searched: CommandLine, place: Place, tmp_path: Path) -> None:
    before = place.events()
    ran = searched("audit", "hash", "-", "-a", "note", stdin=VALUE.encode())
    assert VALUE not in ran.out + ran.err
    (entry,) = place.events("audit.hashed")
    assert (entry["named"], entry["by"], entry["known_by"]) == (["note"], "alice", "os user")
    assert not {"hash", "hashes", "value"} & set(entry)
    assert len(place.events()) == len(before) + 1
    assert not any(VALUE.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_value_in_the_command_line_is_taken_with_a_warning_and_a_key_is_not(searched: CommandLine) -> None:
    ran = searched("audit", "hash", VALUE, "-a", "note")
    assert ran.code == 0
    assert "shell's history" in ran.err
    assert searched("audit", "hash", "sk_live_0123456789abcdefghij", "-a", "note").code == 2
    asked = searched.alone("audit", "hash", "-a", "note")
    assert asked.code == 1
    assert "standard input" in asked.err


def test_a_value_is_asked_for_unseen(searched: CommandLine) -> None:
    with searched.at_terminal("audit", "hash", "-a", "note", "--json") as terminal:
        terminal.until("The value:")
        terminal.type(VALUE + "\r")
        assert terminal.end() == 0
    assert VALUE not in terminal.shown
    assert "h1:" in terminal.shown


def test_without_the_root_key_there_is_no_hash_and_nothing_is_on_record(searched: CommandLine, place: Place) -> None:
    before = len(place.events())
    (place.home / "keys" / "root.key").unlink()
    ran = searched("audit", "hash", "-", "-a", "note", stdin=VALUE.encode())
    assert (ran.code, ran.out) == (1, "")
    assert VALUE not in ran.err
    assert len(place.events()) == before


def test_the_hash_of_a_value_stays_the_same_when_the_orgs_key_is_rotated(searched: CommandLine) -> None:
    before = hashes(searched, VALUE, "note")
    assert searched("vault", "rotate-org", "acme", "--yes").code == 0
    assert hashes(searched, VALUE, "note") == before


@pytest.mark.parametrize("command", ["list", "export"])
def test_a_value_in_place_of_a_hash_is_refused(searched: CommandLine, place: Place, command: str) -> None:
    before = len(place.events())
    more = ("--output", "-") if command == "export" else ()
    assert searched("audit", command, *more, "--argument", f"note={VALUE}").code == 2
    assert len(place.events()) == before


# -- who may, and events


@pytest.mark.parametrize(
    ("role", "may"), [("owner", True), ("admin", True), ("auditor", True), ("approver", False), ("member", False)]
)
@pytest.mark.parametrize("words", ["audit stream -o log --once", "audit hash - -a note"])
def test_who_may_read_the_log_may_hand_it_on_and_nobody_else(
    keyleash: CommandLine, place: Place, words: str, role: str, may: bool
) -> None:
    place.member("somebody", (role,), os_user=system_user())
    before = len(place.events())
    ran = keyleash(*words.split(), stdin=b"x")
    assert ran.code == (0 if may else 1), ran.err
    assert len(place.events()) == before + may
    assert (keyleash.person / "log").exists() == (may and "stream" in words)


def test_every_event_is_listed_with_what_it_means(keyleash: CommandLine) -> None:
    listed = keyleash("audit", "events", "--json").json
    assert [each["event"] for each in listed] == [event.value for event in Event]
    assert all(each["meaning"] for each in listed)
    shown = keyleash("audit", "events").out
    assert all(each["event"] in shown and each["meaning"] in shown for each in listed)
