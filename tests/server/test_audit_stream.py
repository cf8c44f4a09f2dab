"""A stream hands on every entry at least once and goes on where it stopped, whatever is killed, moved or away."""

import errno
import json
import math
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from server.audit import FORMATS, CannotRead, Entry, receivers, streaming
from server.audit import wire as wires
from server.audit.receivers import AppendedFile, Pipe
from server.audit.streaming import (
    AGAIN_S,
    AT_MOST_S,
    BATCH,
    LOOK_S,
    Away,
    Position,
    Stream,
    StreamProblem,
    batches,
    beginning,
)
from server.audit.wire import Target, Wire
from tests.certificates import self_signed
from tests.installed import Place
from tests.server.collectors import Collector
from tests.server.streams import Done, Kept, Killed, Streams


@pytest.fixture
def streams(place: Place, tmp_path: Path) -> Streams:
    return Streams(place, tmp_path)


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["entry"]["seq"] for line in path.read_bytes().splitlines()]


def lines_to(path: Path, kind: str = "jsonl") -> AppendedFile:
    return AppendedFile(path, FORMATS[kind], "org")


# -- at least once


@pytest.mark.both_databases
def test_every_entry_is_handed_on_once_and_the_next_run_goes_on_after_it(streams: Streams) -> None:
    streams.add(3)
    first = Kept()
    assert streams.run(first).sent == len(first.seqs)
    assert first.seqs == list(range(1, streams.last + 1))
    before = streams.last
    streams.add(2)
    again = Kept()
    streams.run(again)
    assert again.seqs == [before + 1, before + 2]


def test_it_follows_the_log_and_what_it_waits_for_is_handed_on(streams: Streams) -> None:
    kept, rounds = Kept(), iter(range(3))

    def on_wait(seconds: float) -> None:
        assert seconds == LOOK_S
        if next(rounds, None) is None:
            raise Done
        streams.add(2)

    streams.on_wait = on_wait
    with pytest.raises(Done):
        streams.run(kept, once=False)
    assert kept.seqs == list(range(1, streams.last + 1))
    assert streams.waited == [LOOK_S] * 4


@pytest.mark.parametrize("filters", [{}, {"tool": "a"}], ids=["all", "filtered"])
def test_what_is_written_during_a_run_that_ends_does_not_keep_it_going(
    streams: Streams, filters: dict[str, str]
) -> None:
    streams.add(tool="a")

    class Growing:
        def read(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
            found = database.read(sql, params)
            streams.add(tool="a")
            return found

    database = streams.place.installation.database.of(streams.place.org)
    kept, before = Kept(), streams.last
    assert streams.run(kept, db=Growing(), **filters).position.seq == before < streams.last
    assert kept.seqs == list(range(before if filters else 1, before + 1))


def test_it_writes_no_entry_of_its_own(streams: Streams) -> None:
    before, rounds = streams.last, iter(range(3))

    def on_wait(_: float) -> None:
        if next(rounds, None) is None:
            raise Done

    streams.on_wait = on_wait
    with pytest.raises(Done):
        streams.run(Kept(), once=False)
    assert streams.last == before


@pytest.mark.both_databases
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_killed_around_a_batch_nothing_is_lost_and_only_that_batch_comes_twice(
    streams: Streams, moment: str, batch: int
) -> None:
    streams.add(2 * BATCH + 50)
    killed, batches_seen = Kept(), iter(range(1, 10))

    def kill(_: Sequence[Entry]) -> None:
        if next(batches_seen) == batch:
            raise Killed

    setattr(killed, moment, kill)
    with pytest.raises(Killed):
        streams.run(killed)
    noted = streams.noted.read()
    assert noted is not None
    assert noted.seq == (batch - 1) * BATCH
    again = Kept()
    streams.run(again)
    assert again.seqs == list(range(noted.seq + 1, streams.last + 1))
    assert sorted({*killed.seqs, *again.seqs}) == list(range(1, streams.last + 1))


def test_a_place_that_cannot_be_noted_ends_it_and_the_batch_comes_again(streams: Streams, tmp_path: Path) -> None:
    streams.run(Kept())
    streams.add()
    kept = Kept()

    def in_the_way(_: Sequence[Entry]) -> None:
        streams.noted.path.rename(tmp_path / "before.json")
        streams.noted.path.mkdir()

    kept.after = in_the_way
    with pytest.raises(StreamProblem, match="cannot be written"):
        streams.run(kept)
    with pytest.raises(StreamProblem, match="begins anew"):
        streams.noted.read()
    streams.noted.path.rmdir()
    (tmp_path / "before.json").rename(streams.noted.path)
    again = Kept()
    streams.run(again)
    assert kept.seqs == again.seqs == [streams.last]


WHOLE = b'{"format":"keyleash-stream","version":1,"org":"o","to":"","form":"","selection":{},"seq":1,"hash":""}'
ALMOST = [
    WHOLE.replace(*pair) for pair in ((b'sion":1', b'sion":2'), (b"h-stream", b"h-other"), (b':1,"h', b':"1","h'))
]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"1", b'{"format":"keyleash-stream"}', b"\xff", *ALMOST])
def test_a_note_that_is_none_is_refused_with_what_to_do(streams: Streams, content: bytes) -> None:
    streams.noted.path.write_bytes(content)
    with pytest.raises(StreamProblem, match="begins anew"):
        streams.run(Kept())
    assert streams.noted.path.read_bytes() == content


def test_the_note_is_for_this_user_only_and_nothing_else_is_left(streams: Streams, tmp_path: Path) -> None:
    streams.run(Kept())
    assert streams.noted.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


@pytest.mark.both_databases
def test_filters_narrow_what_is_handed_on_and_the_place_moves_past_the_rest(streams: Streams) -> None:
    streams.add(tool="a")
    streams.add(tool="b")
    kept = Kept()
    streams.run(kept, tool="a")
    assert kept.seqs == [streams.last - 1]
    noted = streams.noted.read()
    assert noted is not None
    assert (noted.seq, noted.selection) == (streams.last, {"tool": "a"})


def test_batches_are_bounded_in_number_and_in_bytes() -> None:
    def entry(size: int) -> Entry:
        return Entry(org="o", seq=1, at=1, event="e", text="x" * size, previous="", hash="")

    assert [len(batch) for batch in batches(entry(1) for _ in range(BATCH + 1))] == [BATCH, 1]
    assert [len(batch) for batch in batches(entry(3_000_000) for _ in range(5))] == [2, 2, 1]


# -- a log that is not as it was


@pytest.mark.both_databases
def test_a_log_that_does_not_begin_with_its_first_entry_is_streamed_from_there_and_that_is_said(
    streams: Streams,
) -> None:
    streams.add(5)
    streams.delete("seq <= 3")
    kept = Kept()
    streams.run(kept)
    assert kept.seqs == list(range(4, streams.last + 1))
    assert streams.said == ["Entries 1 to 3 are not in the log any more, and were not handed on."]


def test_what_was_pruned_after_it_was_handed_on_is_nothing_to_say(streams: Streams) -> None:
    streams.run(Kept())
    at = streams.last
    streams.add(3)
    streams.delete(f"seq <= {at}")
    kept = Kept()
    streams.run(kept)
    assert kept.seqs == [at + 1, at + 2, at + 3]
    assert streams.said == []


def test_an_older_database_that_was_put_back_is_not_followed(streams: Streams) -> None:
    streams.run(Kept())
    streams.delete(f"seq >= {streams.last - 1}")
    kept = Kept()
    with pytest.raises(StreamProblem, match="older database was put back"):
        streams.run(kept)
    streams.add(5, reason="goes on otherwise")
    with pytest.raises(StreamProblem, match="audit verify"):
        streams.run(kept)
    assert kept.seqs == []


def test_a_log_that_goes_back_while_it_is_followed_is_not_followed_on(streams: Streams) -> None:
    streams.on_wait = lambda _: streams.delete(f"seq >= {streams.last - 1}")
    with pytest.raises(StreamProblem, match="older database"):
        streams.run(Kept(), once=False)


def test_nor_one_that_was_put_back_and_has_grown_past_that_while_nobody_looked(streams: Streams) -> None:
    streams.add(3)
    kept = Kept()

    def put_back(_: float) -> None:
        streams.on_wait = streams._done
        streams.delete(f"seq >= {streams.last - 1}")
        streams.add(5, reason="goes on otherwise")

    streams.on_wait = put_back
    last = streams.last
    with pytest.raises(StreamProblem, match="older database"):
        streams.run(kept, once=False)
    assert kept.seqs == list(range(1, last + 1)), "none of another log"


# -- away


def test_while_the_receiver_is_away_it_waits_longer_each_time_says_so_once_and_loses_nothing(streams: Streams) -> None:
    kept, left = Kept(), iter(range(9))

    def away(_: Sequence[Entry]) -> None:
        if next(left, None) is not None:
            raise Away("the receiver is out")

    kept.before = away
    streams.on_wait = lambda _: streams.add()
    streams.run(kept)
    assert kept.seqs == list(range(1, kept.seqs[-1] + 1))
    assert streams.waited == [min(AGAIN_S * 2**n, AT_MOST_S) for n in range(9)]
    assert streams.said == [
        "the receiver is out. It is tried again until it works; nothing is lost meanwhile.",
        "It works again.",
    ]


def test_after_a_connection_that_ended_the_batch_before_goes_again(streams: Streams) -> None:
    kept = Kept()
    streams.add(BATCH + 10)
    states = iter(["taken", "gone", "taken", "taken"])

    def sometimes(_: Sequence[Entry]) -> None:
        if next(states) == "gone":
            raise Away("it is gone", unsure=True)

    noted: list[Position | None] = []
    kept.before = sometimes
    streams.on_wait = lambda _: noted.append(streams.noted.read())
    streams.run(kept)
    assert kept.seqs == [*range(1, BATCH + 1), *range(1, streams.last + 1)]
    assert [position and position.seq for position in noted] == [0], "killed while it waits, it goes again too"


def test_with_filters_too_the_last_batch_goes_again_though_others_were_passed_over_since(streams: Streams) -> None:
    kept = Kept()
    streams.add(3, agent="a")
    wanted = list(range(streams.last - 2, streams.last + 1))
    streams.add(2, agent="b")

    def waits(_: float) -> None:
        streams.on_wait = streams._done
        streams.add(1, agent="a")
        kept.before = gone

    def gone(_: Sequence[Entry]) -> None:
        raise Away("it is gone", unsure=True)

    streams.on_wait = waits
    with pytest.raises(Done):
        streams.run(kept, once=False, agent="a")
    position = streams.noted.read()
    assert kept.seqs == wanted
    assert position is not None and position.seq < wanted[0], "the three may have lain there unread"


def test_while_the_database_is_away_it_waits_and_goes_on(streams: Streams) -> None:
    class Flaky:
        def __init__(self, database: Any) -> None:
            self.database, self.reads = database, 0

        def read(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
            self.reads += 1
            if 2 <= self.reads <= 5:
                raise OSError("gone")
            return self.database.read(sql, params)

    kept = Kept()
    streams.on_wait = lambda _: None
    streams.run(kept, db=Flaky(streams.place.installation.database.of(streams.place.org)))
    assert kept.seqs == list(range(1, streams.last + 1))
    assert "It is tried again" in streams.said[0]
    with pytest.raises(CannotRead):  # at its beginning it says so at once
        streams.run(kept, db=Flaky(None))


def away(_: Sequence[Entry]) -> None:
    raise Away("the receiver is out")


def test_a_run_that_ends_gives_up_when_its_patience_does_and_the_next_goes_on_there(streams: Streams) -> None:
    kept = Kept()
    kept.before = away
    streams.on_wait = lambda _: streams._done(0) if len(streams.waited) > 20 else None
    with pytest.raises(StreamProblem) as given_up:
        streams.run(kept, patience_s=8)
    assert str(given_up.value) == (
        "the receiver is out. Given up after 8 seconds in which it came no further: "
        f"{streams.last} entries after 0 are not delivered. The next run goes on there."
    )
    assert streams.waited == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S, 8 * AGAIN_S, AGAIN_S], "the last try is at the end"
    assert streams.said == ["the receiver is out. It is tried again for 8 seconds; nothing is lost meanwhile."]
    assert kept.seqs == []
    kept.before = lambda _: None
    streams.run(kept, patience_s=8)
    assert kept.seqs == list(range(1, streams.last + 1))


def test_however_often_it_was_tried_it_goes_on_trying(streams: Streams) -> None:
    start = beginning("org")
    stream = Stream(
        streams.place.database,
        streams.noted,
        Position("org", "there", "jsonl", {}, start.seq, start.hash),
        Kept(),
        streams.said.append,
        streams.waited.append,
    )
    stream._tries = 5000
    stream._later(Away("the receiver is out"), math.inf, {})
    assert streams.waited == [AT_MOST_S]


def test_patience_is_for_what_comes_no_further_not_for_the_whole(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BATCH", 1)
    kept, turns = Kept(), count()

    def now_and_then(entries: Sequence[Entry]) -> None:
        streams.time += 1
        if next(turns) % 4:
            away(entries)

    kept.before = now_and_then
    streams.on_wait = lambda _: None
    streams.run(kept, patience_s=8)
    assert kept.seqs == list(range(1, streams.last + 1))
    assert streams.time > 2 * 8


def test_one_that_takes_the_same_again_and_again_ends_such_a_run_too(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BATCH", 1)
    kept, turns = Kept(), count()

    def flapping(_: Sequence[Entry]) -> None:
        if next(turns) % 2:
            raise Away("it has ended the connection", unsure=True)

    kept.before = flapping
    streams.on_wait = lambda _: streams._done(0) if len(streams.waited) > 20 else None
    with pytest.raises(StreamProblem, match=f"{streams.last} entries after 0 are not delivered"):
        streams.run(kept, patience_s=8)
    assert set(kept.seqs) == {1}
    assert streams.waited[:4] == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S, 8 * AGAIN_S]


def test_what_is_said_not_to_be_delivered_is_what_would_have_been(streams: Streams) -> None:
    streams.add(tool="a")
    streams.delete("seq <= 2")
    streams.on_wait = lambda _: None
    kept = Kept()
    kept.before = away
    with pytest.raises(StreamProblem, match=": 1 entry after 0 is not delivered"):
        streams.run(kept, patience_s=1, tool="a")
    with pytest.raises(StreamProblem, match=f": {streams.last - 2} entries after 0 are not"):
        streams.run(kept, patience_s=1)

    class Gone:
        def read(self, *_: object) -> Any:
            raise OSError("gone")

    with pytest.raises(StreamProblem, match=": the entries after 0 are not delivered"):
        streams.run(kept, patience_s=1, db=Gone())


# -- a file


@pytest.mark.both_databases
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_gets_the_same_lines_as_an_export(streams: Streams, tmp_path: Path, kind: str) -> None:
    from server.audit import export_lines

    path = tmp_path / "log.out"
    streams.run(lines_to(path, kind))
    database = streams.place.installation.database.of(streams.place.org)
    exported = list(export_lines(database, streams.place.org, format=kind))
    assert path.read_text(encoding="utf-8") == "".join(exported[1:] if kind == "jsonl" else exported)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_others_move_empty_or_remove_is_begun_anew_and_nothing_is_lost(
    streams: Streams, tmp_path: Path
) -> None:
    path, old = tmp_path / "log.csv", tmp_path / "log.csv.1"
    receiver = lines_to(path, "csv")
    steps = iter([lambda: path.rename(old), path.unlink, lambda: path.write_bytes(b"")])
    seen: list[str] = []

    def on_wait(_: float) -> None:
        seen.append(path.read_text())
        step = next(steps, None)
        if step is None:
            raise Done
        step()
        streams.add()

    streams.on_wait = on_wait
    with pytest.raises(Done):
        streams.run(receiver, once=False)
    first = old.read_text()
    assert first == seen[0]
    assert [text.splitlines()[0] for text in seen] == [first.splitlines()[0]] * 4
    rows = [line.split(",")[0] for text in seen for line in text.splitlines()[1:]]
    assert rows == [f'"{seq}"' for seq in range(1, streams.last + 1)]
    path.write_bytes(path.read_bytes() + b'"cut')
    streams.run(lines_to(path, "csv"))
    assert path.read_text() == seen[-1], "it was noted that this file is its own, too"


def test_a_line_that_a_kill_cut_off_is_removed_and_comes_whole(streams: Streams, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    streams.run(lines_to(path))
    whole = path.read_bytes()
    streams.add()
    with path.open("ab") as file:
        file.write(b'{"hash":"' + b"0" * 200_000)
    streams.run(lines_to(path))
    assert path.read_bytes().startswith(whole)
    assert numbers(path) == list(range(1, streams.last + 1))


def test_of_a_file_that_is_not_its_own_nothing_is_removed(streams: Streams, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"a line\nand one without an end")
    streams.run(lines_to(path))
    assert path.read_bytes().startswith(b"a line\nand one without an end\n{")
    assert len(path.read_bytes().splitlines()) == 2 + streams.last


def test_a_line_that_others_cut_off_meanwhile_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    with closing(lines_to(path)) as receiver:
        receiver.resume([])
        receiver.send([hello()])
        line = path.read_bytes()
        os.truncate(path, len(line) - 5)
        receiver.send([hello()])
        receiver.send([hello()])
        assert path.read_bytes() == line[:-5] + b"\n" + 2 * line
        monkeypatch.setattr(receivers, "_read_at", lambda *_: b"")  # they have emptied it since its size was looked at
        receiver.send([hello()])
        assert path.read_bytes() == line[:-5] + b"\n" + 3 * line


def test_while_the_disk_is_full_it_waits_and_no_line_is_left_cut_off(streams: Streams, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    streams.add(20, reason="x" * 1000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen: list[bytes] = []

    def on_wait(_: float) -> None:
        seen.append(path.read_bytes())
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    streams.on_wait = on_wait
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        streams.run(lines_to(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert seen == [b""]
    assert numbers(path) == list(range(1, streams.last + 1))
    assert "cannot be written" in streams.said[0]


def test_a_file_that_others_empty_while_the_disk_is_full_is_not_filled_up_with_nothing(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    streams.run(lines_to(path))
    streams.add(3)
    seen: list[bytes] = []
    write = receivers._write

    def full(_file: int, _text: bytes) -> None:
        os.truncate(path, 0)
        monkeypatch.setattr(receivers, "_write", write)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(receivers, "_write", full)
    streams.on_wait = lambda _: seen.append(path.read_bytes())
    streams.run(lines_to(path))
    assert seen == [b""]
    assert numbers(path) == list(range(streams.last - 2, streams.last + 1))


@pytest.mark.parametrize("what", ["folder", "pipe", "nowhere"])
def test_what_is_no_file_is_refused_before_anything_is_handed_on(streams: Streams, tmp_path: Path, what: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "nowhere" / "log" if what == "nowhere" else tmp_path / what
    with pytest.raises(StreamProblem, match="Name a"):
        streams.run(lines_to(path))
    assert streams.noted.read() is None


def test_what_a_file_has_taken_is_on_the_disk_before_that_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = dict[int, int](), os.fsync

    def seen(file: int) -> None:
        sync(file)
        synced[os.fstat(file).st_ino] = os.fstat(file).st_size

    monkeypatch.setattr(os, "fsync", seen)
    path = tmp_path / "log.jsonl"
    with closing(lines_to(path)) as receiver:
        receiver.resume([])
        assert tmp_path.stat().st_ino in synced, "and so is its name"
        receiver.send([hello()])
    assert synced[path.stat().st_ino] == path.stat().st_size > 0


def test_a_pipe_has_got_what_counts_as_taken(tmp_path: Path) -> None:
    with (tmp_path / "pipe").open("wb") as pipe:
        Pipe(pipe, FORMATS["jsonl"], "org").send([hello()])
        assert (tmp_path / "pipe").read_bytes().endswith(b"\n")


# -- a syslog receiver


@pytest.mark.both_databases
@pytest.mark.parametrize("kind", ["udp", "tcp", "tls"])
def test_a_syslog_receiver_gets_every_entry_whole(streams: Streams, tmp_path: Path, kind: str) -> None:
    certificate = self_signed(tmp_path, "127.0.0.1") if kind == "tls" else None
    streams.add(20, reason='\n"]é😀' * 50)
    with Collector(kind, certificate=certificate) as collector:
        wire = Wire(Target(kind, "127.0.0.1", collector.port), certificate)
        streams.run(wire)
        collector.wait_for(streams.last)
        wire.close()
    assert collector.seqs == list(range(1, streams.last + 1))
    assert json.loads(collector.data(collector.messages[-1])["reason"]) == '\n"]é😀' * 50


@pytest.mark.parametrize(("host", "trusted"), [("127.0.0.1", False), ("localhost", True)])
def test_a_receiver_that_does_not_prove_its_name_gets_nothing(
    streams: Streams, tmp_path: Path, host: str, *, trusted: bool
) -> None:
    certificate = self_signed(tmp_path, "127.0.0.1")
    with Collector("tls", certificate=certificate) as collector, pytest.raises(Done):
        streams.run(Wire(Target("tls", host, collector.port), certificate if trusted else None))
    assert collector.messages == []
    assert "CERTIFICATE_VERIFY_FAILED" in streams.said[0]
    noted = streams.noted.read()
    assert noted is not None
    assert noted.seq == 0
    with pytest.raises(StreamProblem, match=r"nosuch\.pem"):
        Wire(Target("tls", "127.0.0.1", 1), tmp_path / "nosuch.pem")


def test_a_receiver_that_is_not_there_is_waited_for(streams: Streams) -> None:
    with Collector("tcp") as gone:
        port = gone.port
    collectors: list[Collector] = []

    def on_wait(_: float) -> None:
        if len(streams.waited) == 3:
            collectors.append(Collector("tcp", port))

    streams.on_wait = on_wait
    wire = Wire(Target("tcp", "127.0.0.1", port))
    streams.run(wire)
    collectors[0].wait_for(streams.last)
    wire.close()
    collectors[0].stop()
    assert collectors[0].seqs == list(range(1, streams.last + 1))
    assert streams.waited == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S]
    assert "refused" in streams.said[0]


def hello(size: int = 10) -> Entry:
    return Entry(org="o", seq=1, at=1, event="e", text="x" * size, previous="", hash="")


@pytest.mark.parametrize("size", [200_000, 8_000_000])
def test_a_receiver_that_takes_and_never_reads_is_away(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(wires, "SEND_S", 0.1)
    monkeypatch.setitem(wires.MESSAGES, "syslog", lambda entry: str(entry.text))
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        ends = threading.Timer(5, deaf.close)
        ends.start()
        with closing(Wire(Target("tcp", "127.0.0.1", deaf.getsockname()[1]))) as wire:
            with pytest.raises(Away, match=r"does not acknowledge|timed out") as found:
                wire.send([hello(size)])
            assert not found.value.unsure
            assert wire._socket is None
        ends.cancel()


def test_only_of_a_connection_that_ended_is_it_unsure_what_was_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        wire = Wire(Target("tcp", "127.0.0.1", there.getsockname()[1]))
        wire.send([hello()])
        line, _ = there.accept()
        line.close()
    with pytest.raises(Away) as ended:
        wire.send([hello()])
    with pytest.raises(Away) as nobody:
        wire.send([hello()])
    assert (ended.value.unsure, nobody.value.unsure) == (True, False)


@pytest.fixture
def both() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection to a receiver that reads nothing by itself: our end, and its end."""
    with socket.socket() as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        there.bind(("127.0.0.1", 0))
        there.listen()
        with socket.create_connection(there.getsockname()) as ours, there.accept()[0] as its:
            yield ours, its


def seen_by(line: socket.socket, what: int) -> None:
    """Wait until this has come to our end, and leave it there."""
    poll = select.poll()
    poll.register(line, what)
    assert poll.poll(20_000)


def test_a_connection_that_ended_is_sent_nothing(both: tuple[socket.socket, socket.socket]) -> None:
    ours, its = both
    wire = Wire(Target("tcp", "127.0.0.1", 1))
    wire._socket = ours
    its.shutdown(socket.SHUT_WR)
    seen_by(ours, select.POLLIN)
    with pytest.raises(Away, match="it has ended the connection") as found:
        wire.send([hello()])
    assert found.value.unsure
    assert its.recv(1) == b""


def test_one_that_says_something_has_not_ended_and_may_take_its_time(both: tuple[socket.socket, socket.socket]) -> None:
    ours, its = both
    its.send(b"hello")
    seen_by(ours, select.POLLIN)
    assert not wires._ended(ours)
    assert ours.gettimeout() == wires.SEND_S
    its.send(b"farewell")
    its.shutdown(socket.SHUT_WR)
    seen_by(ours, select.POLLRDHUP)
    assert wires._ended(ours), "what it said last hides no end"


@pytest.mark.parametrize("size", [0, 500_000], ids=["acknowledged", "not"])
def test_what_went_to_a_connection_that_ends_is_not_taken(
    both: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(wires, "SEND_S", 1.0)
    ours, its = both
    ours.setblocking(False)
    ours.send(bytes(size))
    its.shutdown(socket.SHUT_WR)
    seen_by(ours, select.POLLIN)
    assert (wires._unacknowledged(ours) > 0) == (size > 0)
    with pytest.raises(ConnectionResetError, match="it has ended the connection"):
        wires._until_taken(ours)


def test_nor_is_it_where_its_last_words_stand_before_the_end(both: tuple[socket.socket, socket.socket]) -> None:
    ours, its = both
    ours.send(b"x")
    seen_by(its, select.POLLIN)
    its.send(b"no more")
    its.close()  # with something unread: a reset
    seen_by(ours, select.POLLHUP)
    with pytest.raises(ConnectionResetError):
        wires._until_taken(ours)


def test_a_receiver_that_says_nothing_to_a_handshake_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        ends = threading.Timer(5, deaf.close)
        ends.start()
        with pytest.raises(Away, match="timed out"):
            Wire(Target("tls", "127.0.0.1", deaf.getsockname()[1])).send([hello()])
        ends.cancel()


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_a_receiver_that_dies_and_comes_back_has_missed_nothing(streams: Streams, kind: str) -> None:
    collectors = [Collector(kind)]
    port, rounds = collectors[0].port, iter(range(6))

    def on_wait(seconds: float) -> None:
        if seconds != LOOK_S:  # it was missed
            if len(collectors) < 2:
                collectors.append(Collector(kind, port))
            return
        match next(rounds, None):
            case None:
                raise Done
            case 1:
                collectors[0].wait_for(streams.last)
                collectors[0].stop()
                streams.add(3)
            case 2 | 3:
                streams.add(2)
            case _:
                pass

    streams.on_wait = on_wait
    wire = Wire(Target(kind, "127.0.0.1", port))
    streams.run_until_done(wire)
    collectors[1].wait_for(7)
    wire.close()
    collectors[1].stop()
    assert {*collectors[0].seqs, *collectors[1].seqs} == set(range(1, streams.last + 1))
    assert collectors[1].seqs[-1] == streams.last
