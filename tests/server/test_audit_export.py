"""An export holds every entry once, on one line each, whatever is in it, and appears whole or not at all."""

import csv
import json
import math
import os
import sqlite3
import stat
import tracemalloc

import pytest

from server.audit import (
    FORMATS,
    CannotRead,
    Damaged,
    Event,
    ExportFailed,
    append,
    export_file,
    export_lines,
    head,
    select,
    verify_export,
)
from server.audit.export import CSV_COLUMNS, cell
from server.sqlite import SqliteDatabase

TABLE = """CREATE TABLE audit_entry (
    org TEXT, seq INTEGER, at INTEGER, event TEXT, body TEXT, previous TEXT, hash TEXT,
    agent TEXT, connection TEXT, tool TEXT, outcome TEXT, PRIMARY KEY (org, seq))"""
SIGNED = (
    "CREATE TABLE audit_key (org TEXT, origin TEXT, public TEXT)",
    "CREATE TABLE audit_stub (org TEXT, seq INTEGER, note TEXT)",
)
ORG = "org_1"
HOSTILE = [
    "a\nb\r\nc",
    "a\x85\u2028\u2029b",
    "a\0b",
    "a\ud800b",
    "=cmd|'/c calc'!A1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "  =1",
    "＝1",
    "'quoted",
    '"quoted"',
    'a","b',
    "a;=1;b",
    "[1]",
    '{"a":1}',
    "x" * 100_000,
    "😀 é",
    "",
]


class Log:
    """A log in a database file; `sql` is what an intruder with write access has."""

    def __init__(self, path):
        self.sql = sqlite3.connect(path, isolation_level=None)
        self.sql.execute("PRAGMA journal_mode=WAL")
        self.sql.execute("PRAGMA synchronous=OFF")
        for table in (TABLE, *SIGNED):
            self.sql.execute(table)
        self.db = SqliteDatabase(path)

    def add(self, *, org=ORG, event=Event.CALL_ATTEMPT, **fields):
        return append(self.sql, org, event, **fields)

    def add_many(self, count, **fields):
        self.sql.execute("BEGIN")
        for _ in range(count):
            self.add(**fields)
        self.sql.execute("COMMIT")

    def close(self):
        self.sql.close()
        self.db.close()


@pytest.fixture
def log(tmp_path):
    (tmp_path / "data").mkdir()
    log = Log(tmp_path / "data" / "log.db")
    yield log
    log.close()


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown(text):
    """The value of a CSV cell, by the documented rule."""
    text = text.removeprefix("'")
    return json.loads(text) if text[:1] in ('"', "[", "{") else text


def headings(kind):
    """How many lines come before the entries."""
    return int(FORMATS[kind].first is not None)


# -- every format


@pytest.mark.parametrize("kind", FORMATS)
def test_each_entry_is_one_line_whatever_it_holds(log, tmp_path, kind):
    for value in HOSTILE:
        log.add(tool=value, reason=value, plain={"value": value, value: 1})
    path = tmp_path / "log.out"
    done = export_file(log.db, ORG, path, format=kind)
    assert done.entries == len(HOSTILE)
    assert len(path.read_bytes().split(b"\n")) == headings(kind) + len(HOSTILE) + 1  # what is after the last line's end
    assert len(path.read_text(encoding="utf-8").splitlines()) == headings(kind) + len(HOSTILE)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pipe_gets_what_a_file_gets(log, tmp_path, kind):
    for value in HOSTILE:
        log.add(reason=value)
    export_file(log.db, ORG, tmp_path / "log.out", format=kind)
    written = (tmp_path / "log.out").read_bytes()
    assert "".join(export_lines(log.db, ORG, format=kind)).encode() == written


@pytest.mark.parametrize("kind", FORMATS)
def test_only_this_orgs_entries_are_exported(log, tmp_path, kind):
    log.add(reason="ours")
    log.add(org="org_2", reason="theirs")
    assert export_file(log.db, ORG, tmp_path / "log.out", format=kind).entries == 1
    assert "theirs" not in (tmp_path / "log.out").read_text()


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_recorded_during_an_export_is_not_in_it(log, kind):
    log.add()
    lines = export_lines(log.db, ORG, format=kind)
    first = next(lines)
    log.add()
    assert len([first, *lines]) == headings(kind) + 1


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_log_exports(log, tmp_path, kind):
    done = export_file(log.db, ORG, tmp_path / "log.out", format=kind)
    assert (done.entries, done.head) == (0, None)
    assert len((tmp_path / "log.out").read_text().splitlines()) == headings(kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_entry_damaged_in_the_database_is_kept_on_one_line_and_hides_no_other(log, tmp_path, kind):
    for _ in range(5):
        log.add()
    log.sql.execute("UPDATE audit_entry SET body = ? WHERE seq = 2", ('{"a":\n1}',))
    log.sql.execute("UPDATE audit_entry SET body = CAST(X'FF' AS TEXT) WHERE seq = 3")
    log.sql.execute("UPDATE audit_entry SET previous = ? WHERE seq = 4", ('","x":"\n',))
    done = export_file(log.db, ORG, tmp_path / "log.out", format=kind)
    assert done.entries == 5
    lines = (tmp_path / "log.out").read_text().splitlines()
    assert len(lines) == headings(kind) + 5
    assert done.head.hash in lines[-1]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_entry_that_lost_its_number_is_exported_all_the_same(log, tmp_path, kind):
    for reason in ("one", "two", "three"):
        log.add(reason=reason)
    log.sql.execute("UPDATE audit_entry SET seq = NULL WHERE seq = 2")
    assert export_file(log.db, ORG, tmp_path / "log.out", format=kind).entries == 3
    assert "two" in (tmp_path / "log.out").read_text()


def test_exports_take_constant_memory(log, tmp_path):
    def peak(kind):
        tracemalloc.start()
        export_file(log.db, ORG, tmp_path / "log.out", format=kind)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    log.add_many(700, reason="x" * 200)
    small = {kind: peak(kind) for kind in FORMATS}
    log.add_many(2100, reason="x" * 200)
    assert all(peak(kind) < small[kind] * 1.5 for kind in FORMATS)


# -- the file


def test_the_file_is_for_this_user_only_and_nothing_else_is_left(log, tmp_path):
    log.add()
    export_file(log.db, ORG, tmp_path / "log.jsonl")
    assert stat.S_IMODE((tmp_path / "log.jsonl").stat().st_mode) == 0o600
    assert {each.name for each in tmp_path.iterdir()} == {"data", "log.jsonl"}


class Interrupted(BaseException):
    """Ctrl-C, as an export meets it."""


def test_an_export_cut_off_leaves_what_was_there_and_nothing_half(log, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("the older export")
    log.add()

    def interrupt(count):
        raise Interrupted

    with pytest.raises(Interrupted):
        export_file(log.db, ORG, path, progress=interrupt)
    assert path.read_text() == "the older export"
    assert {each.name for each in tmp_path.iterdir()} == {"data", "log.jsonl"}


def test_an_older_export_is_replaced_and_a_link_is_not_written_through(log, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "precious")
    log.add()
    export_file(log.db, ORG, tmp_path / "log.jsonl")
    assert (tmp_path / "precious").read_text() == "precious"
    assert verify_export(tmp_path / "log.jsonl").status == "intact"


def test_a_folder_and_a_pipe_are_not_replaced(log, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "data", tmp_path / "pipe"):
        with pytest.raises(ExportFailed, match="not a regular file"):
            export_file(log.db, ORG, path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_place_that_cannot_be_written_is_named(log, tmp_path):
    with pytest.raises(ExportFailed, match="nowhere"):
        export_file(log.db, ORG, tmp_path / "nowhere" / "log.jsonl")


def test_without_its_table_the_log_cannot_be_exported_or_listed_and_the_message_is_ours(log, tmp_path):
    log.sql.execute("DROP TABLE audit_entry")
    with pytest.raises(CannotRead, match="audit log cannot be read"):
        export_file(log.db, ORG, tmp_path / "log.jsonl")
    with pytest.raises(CannotRead):
        next(select(log.db, ORG))
    assert not (tmp_path / "log.jsonl").exists()


def test_an_export_says_so_when_the_end_of_the_log_is_no_end(log, tmp_path):
    log.add()
    log.sql.execute("UPDATE audit_entry SET hash = 'x'")
    with pytest.raises(Damaged, match="audit verify"):
        export_file(log.db, ORG, tmp_path / "log.jsonl")


def test_progress_ends_with_the_number_of_entries(log, tmp_path):
    seen = []
    log.add_many(1001)
    export_file(log.db, ORG, tmp_path / "log.jsonl", progress=seen.append)
    assert seen == [1000, 1001]


# -- JSONL


def test_jsonl_is_lossless_and_any_json_reader_understands_it(log, tmp_path):
    kept = [log.add(reason=value, plain={"x": math.nan}) for value in HOSTILE]
    export_file(log.db, ORG, tmp_path / "log.jsonl")
    header, *lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert header == {"format": "keyleash audit export", "v": 1, "org": ORG, "entries": 21, "head": kept[-1].hash}
    assert [line["entry"]["reason"] for line in lines] == HOSTILE
    assert [(line["hash"], line["previous"]) for line in lines] == [(entry.hash, entry.previous) for entry in kept]


def test_a_selection_says_what_was_selected(log):
    log.add(tool="a", at_ms=5)
    log.add(tool="b", at_ms=6)
    header, *lines = export_lines(log.db, ORG, tool="b", since=6, agent=None)
    assert json.loads(header)["selection"] == {"tool": "b", "since": 6}
    assert "entries" not in json.loads(header)
    assert [json.loads(line)["entry"]["seq"] for line in lines] == [2]


# -- CSV


@pytest.mark.parametrize("value", HOSTILE)
def test_no_csv_cell_is_a_formula_and_its_text_can_be_read_back(log, tmp_path, value):
    log.add(reason=value, agent=value)
    export_file(log.db, ORG, tmp_path / "log.csv", format="csv")
    (row,) = read_csv(tmp_path / "log.csv")
    assert all(text.lstrip()[:1] not in tuple("=+-@＝＋－＠") for text in row.values() if text)
    assert shown(row["reason"]) == shown(row["agent"]) == value


def test_csv_has_fixed_columns_and_keeps_what_has_none_of_its_own(log, tmp_path):
    log.add(tool="t", arguments={"a": "h1:0"}, rules=["r"], preset="solo", status=-5)
    entry = log.add(event=Event.PRESET_CHANGED)
    export_file(log.db, ORG, tmp_path / "log.csv", format="csv")
    raw = (tmp_path / "log.csv").read_text()
    first, second = read_csv(tmp_path / "log.csv")
    assert tuple(first) == tuple(second) == CSV_COLUMNS
    assert (first["arguments"], first["rules"], first["other"]) == ('{"a":"h1:0"}', '["r"]', '{"preset":"solo"}')
    assert first["status"] == "'-5"
    # Unquoted, a spreadsheet that splits at semicolons would find formulas inside a cell.
    assert all(line[0] == line[-1] == '"' and ",," not in line for line in raw.splitlines())
    assert (second["seq"], second["event"], second["hash"]) == ("2", "preset.changed", entry.hash)


def test_every_field_that_the_call_path_records_has_its_column():
    expected = {"agent", "agent_id", "member", "tool", "effect", "verdict", "rules", "approval", "approver", "channel"}
    expected |= {"known_by", "arguments", "plain", "host", "method", "status", "milliseconds", "outcome", "attempt"}
    assert expected <= set(CSV_COLUMNS)
    assert len(set(CSV_COLUMNS)) == len(CSV_COLUMNS)


def test_a_cell_without_a_value_is_empty():
    assert cell(None) == ""


# -- selecting


@pytest.fixture
def mixed(log):
    log.add(agent="ann", agent_id="agt_1", member="mia", member_id="mem_1", connection="stripe", tool="a", at_ms=10)
    log.add(agent="a!%n", agent_id="agt_2", member="m_a", connection="github", tool="b", at_ms=20, outcome="failed")
    log.add(agent="a\ud800\0", event=Event.CALL_OUTCOME, outcome="succeeded", at_ms=30, reason="ann mia agt_1")
    log.add(event=Event.PRESET_CHANGED, at_ms=40, by="ann")
    log.add(org="org_2", agent="ann", tool="a", at_ms=10)
    return log


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, [1, 2, 3, 4]),
        ({"agent": "ann"}, [1]),
        ({"agent": "agt_1"}, [1]),
        ({"agent": "a!%n"}, [2]),
        ({"agent": "a\ud800\0"}, [3]),
        ({"agent": "%"}, []),
        ({"member": "mia"}, [1]),
        ({"member": "mem_1"}, [1]),
        ({"member": "m_a"}, [2]),
        ({"connection": "github"}, [2]),
        ({"tool": "a"}, [1]),
        ({"tool": ""}, []),
        ({"outcome": "succeeded"}, [3]),
        ({"event": Event.PRESET_CHANGED}, [4]),
        ({"event": "call.attempt"}, [1, 2]),
        ({"event": "call.attempt", "outcome": "failed"}, [2]),
        ({"event": ["call.outcome", "preset.changed"]}, [3, 4]),
        ({"agent": ["ann", "agt_2", "nobody"]}, [1, 2]),
        ({"tool": ["a", "b"], "outcome": ["failed", "held"]}, [2]),
        ({"since": 20}, [2, 3, 4]),
        ({"until": 20}, [1]),
        ({"since": 20, "until": 40}, [2, 3]),
        ({"limit": 2}, [1, 2]),
        ({"limit": 0}, []),
        ({"limit": 1, "event": "call.outcome"}, [3]),
        ({"limit": 2, "newest_first": True}, [4, 3]),
    ],
)
def test_select_finds_exactly(mixed, filters, found):
    assert [entry.seq for entry in select(mixed.db, ORG, **filters)] == found


def test_the_database_reads_no_more_than_what_is_selected(mixed):
    class Counting:
        rows = 0

        def read(self, *query):
            found = mixed.db.read(*query)
            self.rows += len(found)
            return found

    for several in ({"event": ["call.outcome", "preset.changed"]}, {"member": ["mem_1", "m_a"]}, {"tool": "a"}):
        db = Counting()
        assert db.rows == 0 < len(list(select(db, ORG, **several))) == db.rows


def test_two_tools_whose_columns_are_cut_alike_are_told_apart(log):
    log.add(tool="x" * 300)
    log.add(tool="x" * 301)
    assert [entry.seq for entry in select(log.db, ORG, tool="x" * 301)] == [2]


@pytest.mark.parametrize("newest_first", [False, True])
def test_select_goes_on_over_many_pages(log, newest_first):
    log.add_many(1203)
    seqs = [entry.seq for entry in select(log.db, ORG, newest_first=newest_first)]
    assert seqs == sorted(range(1, 1204), reverse=newest_first)


def test_a_damaged_entry_is_listed_as_such(log):
    log.add(reason="x")
    log.add(reason="y")
    log.sql.execute("UPDATE audit_entry SET body = CAST(X'7BFF' AS TEXT) WHERE seq = 1")
    first, second = select(log.db, ORG)
    assert "audit verify" in first.body["damaged"]
    assert second.body["reason"] == "y"


def test_the_head_is_the_last_entry(log):
    assert head(log.db, ORG) is None
    log.add()
    last = log.add()
    assert head(log.db, ORG) == last.head
