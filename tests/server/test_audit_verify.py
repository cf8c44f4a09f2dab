"""Whatever is done to a log, on the database or on an export, is found, or the report says in words that it cannot be.

The log under attack has seven entries: an attempt with its outcome, one left open, and four others.
"""

import hashlib
import io
import json
import os
import re
import sqlite3
import tempfile
import tracemalloc
from pathlib import Path

import pytest

from server.audit import (
    Event,
    Head,
    Report,
    Status,
    append,
    export_file,
    export_lines,
    select,
    verify_database,
    verify_export,
)
from server.audit.entry import MAX_BODY, canonical, column, entry_hash, log_hash
from server.audit.proof import Proofs
from server.sqlite import SqliteDatabase
from tests.proving import both, checkpoint, signer

# The key stands for what an intruder can do: the real table has triggers and NOT NULL, which he can drop.
TABLE = """CREATE TABLE audit_entry (
    org TEXT, seq INTEGER, at INTEGER, event TEXT, body TEXT, previous TEXT, hash TEXT,
    agent TEXT, connection TEXT, tool TEXT, outcome TEXT, PRIMARY KEY (org, seq))"""
SIGNED = (
    "CREATE TABLE audit_key (org TEXT, origin TEXT, public TEXT)",
    "CREATE TABLE audit_stub (org TEXT, seq INTEGER, note TEXT)",
)
ORG = "org_1"
LAST = 7
CALL = {
    "agent": "reconciler",
    "member": "tess",
    "connection": "stripe",
    "tool": "stripe_create_refund",
    "effect": "spend",
    "rules": ["preset:default#2"],
    "arguments": {"charge": "h1:00", "amount": "h1:01"},
}
FIELDS = ["v", "org", "seq", "at", "event", *CALL, "attempt", "outcome", "status", "milliseconds", "request_id"]
COLUMNS = ["org", "seq", "at", "event", "body", "previous", "hash", "agent", "connection", "tool", "outcome"]
PLACES = [1, 4, LAST]


class Log:
    """A log in a database file; `sql` is what an intruder with write access has."""

    def __init__(self, path):
        self.path = path
        self.sql = sqlite3.connect(path, isolation_level=None)
        self.sql.execute("PRAGMA journal_mode=WAL")
        self.sql.execute("PRAGMA synchronous=OFF")
        for table in (TABLE, *SIGNED):
            self.sql.execute(table)
        self.db = SqliteDatabase(path)

    def fill(self):
        attempt = append(self.sql, ORG, Event.CALL_ATTEMPT, at_ms=1_000, **CALL)
        done = {"outcome": "succeeded", "status": 200, "milliseconds": 87, "request_id": "req_1"}
        append(self.sql, ORG, Event.CALL_OUTCOME, at_ms=2_000, attempt=attempt.seq, **CALL, **done)
        append(self.sql, ORG, Event.CALL_ATTEMPT, at_ms=3_000, **CALL)
        append(self.sql, ORG, Event.CALL_OUTCOME, at_ms=4_000, attempt=99, **CALL, **done)
        for at in (5_000, 6_000, 7_000):
            append(self.sql, ORG, Event.CALL_OUTCOME, at_ms=at, attempt=98, **CALL, **done)

    def verify(self, *known):
        return verify_database(self.db, ORG, known=known)

    def set(self, seq, /, **columns):
        changes = ", ".join(f"{name} = ?" for name in columns)
        self.sql.execute(f"UPDATE audit_entry SET {changes} WHERE org = ? AND seq = ?", (*columns.values(), ORG, seq))

    def head(self, seq):
        return Head(*self.sql.execute("SELECT seq, hash FROM audit_entry WHERE seq = ?", (seq,)).fetchone())

    def body(self, seq):
        return json.loads(self.sql.execute("SELECT body FROM audit_entry WHERE seq = ?", (seq,)).fetchone()[0])

    def forge(self, seq, body, *, onwards=False):
        """Put another body there with a fresh hash and true columns; `onwards`, chain all that follow again."""
        last = self.sql.execute("SELECT hash FROM audit_entry WHERE seq = ?", (seq - 1,)).fetchone()
        previous = last[0] if last else log_hash(ORG)
        text = body if isinstance(body, str) else canonical(body)
        columns = {name: column(body.get(name)) for name in COLUMNS[7:]} if isinstance(body, dict) else {}
        own = entry_hash(bytes.fromhex(previous), text.encode()).hex()
        self.set(seq, body=text, previous=previous, hash=own, **columns)
        if onwards and seq < LAST:
            self.forge(seq + 1, self.body(seq + 1), onwards=True)

    def close(self):
        self.sql.close()
        self.db.close()


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path / "log.db")
    log.fill()
    yield log
    log.close()


@pytest.fixture
def lines(log):
    """The seven lines of an export, with its header as line 0."""
    return [line.encode() for line in export_lines(log.db, ORG)]


def verified(lines, *known, **more):
    """By ours; where nothing else is asked, once the verifier that stands alone has come to the same."""
    if not known and not more:
        with tempfile.TemporaryDirectory() as folder:
            return both(b"".join(lines), Path(folder))
    return verify_export(io.BytesIO(b"".join(lines)), known=known, **more)


def found_at(report, seq):
    """Altered from there on, in numbers and in words."""
    assert report.status is Status.ALTERED
    assert report.exit_code == 1
    assert report.first_bad == seq
    assert {seq, seq - 1, report.line} & {
        int(number) for number in re.findall(r"(?:entry|line) (\d+)", report.problem.lower())
    }
    assert report.entries < seq
    return True


def says(report, *words):
    """Intact as far as it goes, and the rest is said."""
    assert report.status is Status.INTACT
    said = " ".join(report.cannot_exclude)
    assert all(word in said for word in words), said
    return True


def edited(line, **changes):
    """An export's line with other fields in its body, and its old hashes."""
    whole = json.loads(line)
    whole["entry"] |= changes
    return line_of(whole["hash"], whole["previous"], canonical(whole["entry"]))


def line_of(own, previous, text):
    return f'{{"hash":"{own}","previous":"{previous}","entry":{text}}}\n'.encode()


def forged(line, previous, body):
    """A line with another body and a hash that is right for it."""
    text = body if isinstance(body, str) else canonical(body)
    return line_of(entry_hash(bytes.fromhex(previous), text.encode()).hex(), previous, text)


def rechained(lines, start):
    """All lines from `start` on with fresh hashes, and the header to match: what a skilled forger hands over."""
    done = list(lines[:start])
    previous = json.loads(done[-1])["hash"] if start > 1 else log_hash(ORG)
    for line in lines[start:]:
        done.append(forged(line, previous, json.loads(line)["entry"]))
        previous = json.loads(done[-1])["hash"]
    return with_header(done)


def with_header(lines):
    header = json.loads(lines[0]) | {"entries": len(lines) - 1, "head": json.loads(lines[-1])["hash"]}
    return [f"{canonical(header)}\n".encode(), *lines[1:]]


# -- untouched


def test_an_untouched_log_is_intact_and_its_limits_are_said(log, lines):
    for report in (log.verify(), verified(lines), verified(lines, org=ORG)):
        assert says(report, "fresh hashes", "after entry 7 were removed")
        assert (report.exit_code, report.entries, report.head) == (0, LAST, log.head(LAST))
        assert (report.first_bad, report.line, report.problem, report.org) == (None, None, "", ORG)


def test_a_log_that_matches_what_was_noted_elsewhere_leaves_less_to_exclude(log, lines):
    assert log.verify(log.head(7)).cannot_exclude == ("that entries after entry 7 were removed",)
    assert says(log.verify(log.head(3), log.head(5)), "after entry 5, the last one noted elsewhere")
    assert verified(lines, log.head(7)).cannot_exclude == ("that entries after entry 7 were removed",)


def test_attempts_without_an_outcome_are_counted_and_named(log, lines):
    for report in (log.verify(), verified(lines)):
        assert (report.unknown, report.unknown_at) == (1, (3,))


def test_an_empty_log_cannot_be_verified_and_says_why(log):
    report = verify_database(log.db, "org_without_entries")
    assert (report.status, report.exit_code, report.head) == (Status.UNVERIFIABLE, 3, None)
    assert report.cannot_exclude == ("that all entries were removed",)
    assert verified(export_lines_of(log, "org_without_entries")).exit_code == 3


def export_lines_of(log, org):
    return [line.encode() for line in export_lines(log.db, org)]


def test_a_log_longer_than_a_page_is_verified_whole(log):
    log.sql.execute("BEGIN")
    for _ in range(1200):
        append(log.sql, ORG, Event.CALL_HELD)
    log.sql.execute("COMMIT")
    assert log.verify().entries == 1207
    log.set(1100, agent="x")
    assert found_at(log.verify(), 1100)


def test_another_orgs_log_is_not_touched_by_ours(log):
    append(log.sql, "org_2", Event.CALL_HELD)
    log.set(1, body="{}")
    assert verify_database(log.db, "org_2").status is Status.INTACT


# -- edits


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in ("org", "seq")])
def test_every_column_is_covered(log, name):
    for seq in PLACES:
        ((stored,),) = log.sql.execute(f"SELECT {name} FROM audit_entry WHERE seq = ?", (seq,)).fetchall()
        for value in {"other", None, 8, 1.5, b"bytes", "", "0" * 64, 2**62, -(10**14)} - {stored}:
            log.set(seq, **{name: value})
            assert found_at(log.verify(), seq), value
        log.set(seq, **{name: stored})
    assert log.verify().status is Status.INTACT


@pytest.mark.parametrize("value", [99, "other", "", b"bytes", 7.5, 2**62])
def test_an_entry_with_another_number_is_missed_where_it_was(log, value):
    for seq in reversed(PLACES):
        log.set(seq, seq=value)
        assert found_at(log.verify(), seq)
        log.sql.execute("UPDATE audit_entry SET seq = ? WHERE seq = ?", (seq, value))


@pytest.mark.parametrize(("value", "place"), [(None, 1), (0, 1), (-(2**63), 1), (2.5, 3)])
def test_an_entry_moved_forward_is_found_where_it_stands(log, value, place):
    log.set(4, seq=value)
    assert found_at(log.verify(), place)


@pytest.mark.parametrize("name", ["agent", "connection", "tool", "event", "outcome"])
def test_a_column_with_the_same_bytes_that_no_search_would_find_is_found(log, name):
    log.sql.execute(f"UPDATE audit_entry SET {name} = CAST({name} AS BLOB) WHERE seq = 4")
    assert found_at(log.verify(), 4)


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in ("org", "seq", "at")])
def test_bytes_that_are_no_text_are_found_and_do_not_end_in_an_error(log, name):
    log.sql.execute(f"UPDATE audit_entry SET {name} = CAST(X'C3' AS TEXT) WHERE seq = 4")
    assert found_at(log.verify(), 4)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_body_is_covered(log, lines, name):
    for seq in PLACES:
        body = log.body(seq)
        log.set(seq, body=canonical(body | {name: "changed"}))
        assert found_at(log.verify(), seq)
        log.set(seq, body=canonical(body))
        report = verified([*lines[:seq], edited(lines[seq], **{name: "changed"}), *lines[seq + 1 :]])
        assert found_at(report, seq)
        assert report.line == seq + 1


@pytest.mark.parametrize("name", ["hash", "previous"])
def test_both_hashes_of_a_line_are_covered(lines, name):
    for seq in PLACES:
        whole = json.loads(lines[seq]) | {name: hashlib.sha256(b"other").hexdigest()}
        line = line_of(whole["hash"], whole["previous"], canonical(whole["entry"]))
        assert found_at(verified([*lines[:seq], line, *lines[seq + 1 :]]), seq)


def test_no_byte_of_an_export_can_be_changed(lines):
    whole = b"".join(with_header(lines[:3]))
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        assert verified([bytes(changed)]).exit_code in (1, 3), place


def test_no_byte_of_an_export_can_be_taken_out_or_put_in(lines):
    whole = b"".join(with_header(lines[:3]))
    for place in range(len(whole)):
        assert verified([whole[:place], whole[place + 1 :]]).exit_code in (1, 3), place
        assert verified([whole[:place], b" ", whole[place:]]).exit_code in (1, 3), place


# -- one entry rewritten with a fresh hash


@pytest.mark.parametrize("seq", [1, 4, 6])
def test_an_entry_rewritten_with_a_fresh_hash_is_named_by_the_one_after_it(log, lines, seq):
    body = log.body(seq) | {"agent": "mallory"}
    previous = json.loads(lines[seq])["previous"]
    log.forge(seq, body)
    report = log.verify()
    assert (report.status, report.first_bad, report.entries, report.head) == (Status.ALTERED, seq, 0, None)
    lines[seq] = forged(lines[seq], previous, body)
    report = verified(lines)
    assert (report.status, report.first_bad, report.line) == (Status.ALTERED, seq, seq + 1)


def test_the_last_entry_rewritten_with_a_fresh_hash_is_found_by_the_header_or_by_a_head_noted_elsewhere(log, lines):
    noted, body = log.head(LAST), log.body(LAST) | {"agent": "mallory"}
    lines[LAST] = forged(lines[LAST], json.loads(lines[LAST])["previous"], body)
    report = verified(lines)
    assert (report.status, report.first_bad, report.entries) == (Status.ALTERED, LAST, 0)
    log.forge(LAST, body)
    assert says(log.verify(), "fresh hashes")
    assert found_at(log.verify(noted), LAST)


FORGERIES = {
    "a key twice": lambda body: canonical(body)[:-1] + ',"v":1}',
    "a key twice inside": lambda body: canonical(body).replace('"arguments":{', '"arguments":{"charge":"h1:99",'),
    "not a number": lambda body: canonical(body).replace('"spend"', "NaN"),
    "a list": lambda _: "[]",
    "no json": lambda _: "{",
    "another number": lambda body: body | {"seq": 5},
    "no number": lambda body: body | {"seq": "4"},
    "a number with a point": lambda body: body | {"seq": 4.0},
    "yes for a number": lambda body: body | {"seq": True},
    "another org": lambda body: body | {"org": "org_2"},
    "no time": lambda body: body | {"at": None},
    "a time of another form": lambda body: body | {"at": "1970-01-01T00:00:04Z"},
    "digits of another script": lambda body: body | {"at": body["at"].replace("4", "٤")},
    "no event": lambda body: body | {"event": 1},
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_body_that_keyleash_would_not_write_is_found_even_when_all_hashes_are_right(log, lines, forge):
    body = forge(log.body(4))
    log.forge(4, body, onwards=True)
    assert found_at(log.verify(), 4)
    lines[4:5] = [forged(lines[4], json.loads(lines[4])["previous"], body)]
    assert found_at(verified(lines[:5]), 4)


@pytest.mark.parametrize("version", [2, 1.0, True, "1", None])
def test_an_entry_of_another_version_cannot_be_verified(log, lines, version):
    body = log.body(4) | {"v": version}
    log.forge(4, body, onwards=True)
    lines[4] = forged(lines[4], json.loads(lines[4])["previous"], body)
    for report in (log.verify(), verified(lines)):
        assert (report.status, report.exit_code) == (Status.UNVERIFIABLE, 3)
        assert "Entry 4" in report.problem


@pytest.mark.parametrize("name", ["no time", "no event", "a key twice", "another number", "another org"])
def test_the_last_entry_is_looked_at_as_closely_as_the_others(log, name):
    log.forge(LAST, FORGERIES[name](log.body(LAST)))
    assert found_at(log.verify(), LAST)


@pytest.mark.parametrize("table", ["audit_key", "audit_stub"])
def test_a_key_or_a_stub_that_cannot_be_read_is_said(log, table):
    log.sql.execute("DELETE FROM audit_entry WHERE seq = 1")
    log.sql.execute(f"DROP TABLE {table}")
    proofs = Proofs((checkpoint(log.db, ORG, signer(ORG), at=0),))
    report = verify_database(log.db, ORG, proofs=proofs)
    assert (report.status, "cannot be read" in report.problem) == (Status.UNVERIFIABLE, True)


def test_a_public_key_that_was_altered_is_said(log):
    log.sql.execute("INSERT INTO audit_key VALUES (?, 'keyleash/org_1', 'no hex')", (ORG,))
    proofs = Proofs((checkpoint(log.db, ORG, signer(ORG)),))
    report = verify_database(log.db, ORG, proofs=proofs)
    assert (report.status, "was altered. Give the one" in report.problem) == (Status.UNVERIFIABLE, True)
    log.sql.execute("DELETE FROM audit_key")
    assert "There is no key in the database" in verify_database(log.db, ORG, proofs=proofs).problem


# -- deletion


@pytest.mark.parametrize("gone", [[1], [4], [1, 2, 3], [3, 4, 5]])
def test_entries_deleted_at_the_start_or_in_the_middle_are_named(log, lines, gone):
    log.sql.execute(f"DELETE FROM audit_entry WHERE seq IN ({','.join(map(str, gone))})")
    assert found_at(log.verify(), gone[0])
    kept = [line for place, line in enumerate(lines) if place not in gone]
    assert found_at(verified(kept), gone[0])
    assert found_at(verified(with_header(kept)), gone[0])


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_truncated_database_is_found_by_a_head_noted_elsewhere_and_otherwise_declared(log, count):
    noted, left = log.head(LAST), LAST - count
    log.sql.execute("DELETE FROM audit_entry WHERE seq > ?", (left,))
    assert says(log.verify(), f"after entry {left} were removed")
    assert found_at(log.verify(noted), left + 1)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_truncated_export_is_found_by_its_header_and_otherwise_declared(log, lines, count):
    left = LAST - count
    assert found_at(verified(lines[: left + 1]), left + 1)
    assert says(verified(with_header(lines[: left + 1])), f"after entry {left} were removed")
    assert found_at(verified(with_header(lines[: left + 1]), log.head(LAST)), left + 1)


def test_an_export_cut_anywhere_is_never_intact(lines):
    whole = b"".join(with_header(lines[:3]))
    assert all(verified([whole[:length]]).exit_code in (1, 3) for length in range(len(whole)))
    assert verified([whole]).exit_code == 0


def test_an_emptied_log_is_found_by_a_head_noted_elsewhere_and_otherwise_cannot_be_verified(log, lines):
    noted = log.head(LAST)
    log.sql.execute("DELETE FROM audit_entry")
    assert log.verify().status is Status.UNVERIFIABLE
    assert found_at(log.verify(noted), 1)
    assert found_at(verified(lines[:1]), 1)


def test_entries_given_to_another_org_are_missing_here(log):
    log.set(4, org="org_2")
    assert found_at(log.verify(), 4)
    assert found_at(verify_database(log.db, "org_2"), 1)


# -- order, insertion, duplicates


@pytest.mark.parametrize(("one", "two"), [(1, 2), (3, 4), (6, 7), (1, 7)])
def test_two_entries_in_each_others_place_are_named(log, lines, one, two):
    for before, after in ((one, 100), (two, one), (100, two)):
        log.set(before, seq=after)
    assert found_at(log.verify(), one)
    lines[one], lines[two] = lines[two], lines[one]
    assert found_at(verified(lines), one)


@pytest.mark.parametrize("place", [1, 4, 8])
def test_a_forged_entry_put_in_is_named(log, lines, place):
    previous = json.loads(lines[place - 1])["hash"] if place > 1 else log_hash(ORG)
    forgery = forged(b"", previous, {"v": 1, "org": ORG, "seq": place, "at": "1970-01-01T00:00:00.000Z", "event": "x"})
    report = verified([*lines[:place], forgery, *lines[place:]])
    assert report.status is Status.ALTERED
    assert report.first_bad == min(place + 1, 8)
    assert f"Entry {place} " in report.problem
    unchained = forgery.replace(previous.encode(), b"0" * 64)
    assert found_at(verified([*lines[:place], unchained, *lines[place:]]), place)


def test_a_forged_row_put_in_is_named(log):
    log.sql.execute("UPDATE audit_entry SET seq = seq + 100 WHERE seq >= 4")
    log.sql.execute("UPDATE audit_entry SET seq = seq - 99 WHERE seq >= 100")
    copy = "INSERT INTO audit_entry SELECT org, ?, at, event, body, previous, hash, agent, connection, tool, outcome"
    log.sql.execute(f"{copy} FROM audit_entry WHERE seq = 3", (4,))
    assert found_at(log.verify(), 4)


@pytest.mark.parametrize("seq", [None, 0, -5, 8, 99, 3.5, "text", b"bytes"])
def test_a_copied_row_is_named_whatever_its_number(log, seq):
    copy = "INSERT INTO audit_entry SELECT org, ?, at, event, body, previous, hash, agent, connection, tool, outcome"
    log.sql.execute(f"{copy} FROM audit_entry WHERE seq = 4", (seq,))
    place = 1 if seq in (None, 0, -5) else 4 if seq == 3.5 else 8
    assert found_at(log.verify(), place)


@pytest.mark.parametrize("place", [1, 4, LAST])
def test_a_line_that_stands_twice_is_named(lines, place):
    report = verified([*lines[: place + 1], lines[place], *lines[place + 1 :]])
    assert found_at(report, place + 1)
    assert report.line == place + 2
    assert f"Entry {place} stands where entry {place + 1} belongs" in report.problem


def test_entries_added_at_the_end_with_right_hashes_are_declared_or_found_by_the_header(log, lines):
    noted = log.head(LAST)
    append(log.sql, ORG, Event.CALL_HELD)
    assert says(log.verify(), "added entries at the end")
    assert says(log.verify(noted), "after entry 7, the last one noted elsewhere, are new or other ones")
    for _ in range(2):
        longer = export_lines_of(log, ORG)
        assert found_at(verified([lines[0], *longer[1:]]), 8)
        append(log.sql, ORG, Event.CALL_HELD)


def test_two_exports_in_one_file_are_not_one_log(lines):
    assert found_at(verified(lines + lines), 8)


# -- rewriting


@pytest.mark.parametrize("start", PLACES)
def test_everything_rewritten_from_an_entry_on_is_declared_and_found_by_a_head_noted_elsewhere(log, lines, start):
    noted, between = log.head(LAST), log.head(start)
    log.forge(start, log.body(start) | {"agent": "mallory"}, onwards=True)
    lines[start] = edited(lines[start], agent="mallory")
    for check in (log.verify, lambda *known: verified(rechained(lines, start), *known)):
        assert says(check(), "fresh hashes", "nothing noted elsewhere was compared")
        assert found_at(check(noted), LAST)
        assert (check(noted).entries, check(noted).head) == (0, None)
        assert found_at(check(noted, between), start)


def test_a_log_that_is_whole_but_does_not_begin_where_this_orgs_log_begins_is_found(log, lines):
    previous = "0" * 64
    for seq in range(1, LAST + 1):
        lines[seq] = forged(lines[seq], previous, log.body(seq))
        previous = json.loads(lines[seq])["hash"]
        log.set(seq, hash=previous, previous=json.loads(lines[seq])["previous"])
    assert found_at(log.verify(), 1)
    assert found_at(verified(with_header(lines)), 1)


def test_two_different_heads_for_one_entry_are_a_mistake_of_whoever_asks(log):
    with pytest.raises(ValueError, match="only one can be true"):
        log.verify(Head(3, "a" * 64), Head(3, "b" * 64))


# -- what is no export


def test_what_is_not_a_jsonl_export_cannot_be_verified(log, tmp_path, lines):
    export_file(log.db, ORG, tmp_path / "log.csv", format="csv")
    whole = b"".join(lines)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(os.urandom(5000))
    (tmp_path / "crlf").write_bytes(whole.replace(b"\n", b"\r\n"))
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf" + whole)
    (tmp_path / "headless").write_bytes(b"".join(lines[1:]))
    (tmp_path / "deep").write_bytes(b'{"a":' + b"[" * 200_000)
    for name in ("log.csv", "empty", "noise", "crlf", "bom", "headless", "deep", "missing", "."):
        report = verify_export(tmp_path / name)
        assert (report.status, report.exit_code, report.entries) == (Status.UNVERIFIABLE, 3, 0), name
        assert report.problem
    assert "empty" in verify_export(tmp_path / "empty").problem
    assert "CSV" in verify_export(tmp_path / "log.csv").problem


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"format": "other"},
        {"org": 5},
        {"entries": "7"},
        {"entries": True},
        {"entries": -1},
        {"head": None},
        {"more": 1},
        {"selection": {}},
    ],
)
def test_a_header_that_keyleash_would_not_write_cannot_be_verified(lines, change):
    lines[0] = f"{canonical(json.loads(lines[0]) | change)}\n".encode()
    assert verified(lines).status is Status.UNVERIFIABLE


@pytest.mark.parametrize(("change", "seq"), [({"entries": 6}, 7), ({"entries": 8}, 8), ({"head": "0" * 64}, 7)])
def test_a_header_that_names_another_end_is_found(lines, change, seq):
    lines[0] = f"{canonical(json.loads(lines[0]) | change)}\n".encode()
    report = verified(lines)
    assert (report.status, report.first_bad) == (Status.ALTERED, seq)


def test_a_header_that_names_another_org_is_found(lines):
    lines[0] = lines[0].replace(b"org_1", b"org_2")
    assert found_at(verified(lines), 1)
    assert verified(lines, org=ORG).status is Status.UNVERIFIABLE


def test_the_log_of_another_org_than_expected_is_not_taken_for_it(lines):
    report = verified(lines, org="org_2")
    assert (report.status, report.org) == (Status.UNVERIFIABLE, ORG)
    assert "org_1" in report.problem


def test_an_entry_damaged_before_the_export_is_named_by_the_exports_verification(log):
    log.set(4, body='{"a":\n1}')
    report = verified(export_lines_of(log, ORG))
    assert found_at(report, 4)
    assert "before the export" in report.problem


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"null\n", b'{"entry":{}}\n', b" \n", b"\xff\xfe\n"])
def test_a_line_that_is_no_entry_is_named(lines, line):
    report = verified([*lines[:4], line, *lines[4:]])
    assert found_at(report, 4)
    assert report.line == 5


def test_a_database_without_the_log_cannot_be_verified(log):
    log.sql.execute("DROP TABLE audit_entry")
    report = log.verify()
    assert (report.status, report.exit_code) == (Status.UNVERIFIABLE, 3)
    assert "cannot be read" in report.problem


# -- selections


def test_a_selection_is_never_called_intact(log):
    selection = [line.encode() for line in export_lines(log.db, ORG, event=Event.CALL_OUTCOME)]
    report = verified(selection)
    assert (report.status, report.exit_code, report.entries, report.unknown) == (Status.UNVERIFIABLE, 3, 5, 0)
    assert "left out" in " ".join(report.cannot_exclude)
    for noted in (log.head(1), log.head(2), Head(99, "a" * 64)):
        assert verified(selection, noted).status is Status.UNVERIFIABLE
    assert verified(selection, Head(2, "a" * 64)).status is Status.ALTERED


def test_a_selection_does_not_say_that_calls_have_no_outcome(log):
    report = verified([line.encode() for line in export_lines(log.db, ORG, event=Event.CALL_ATTEMPT)])
    assert (report.entries, report.unknown, report.unknown_at) == (2, 0, ())


@pytest.mark.parametrize(("place", "seq"), [(1, 2), (3, 5), (5, 7)])
def test_an_edit_in_a_selection_is_named_by_its_own_number(log, place, seq):
    selection = [line.encode() for line in export_lines(log.db, ORG, event=Event.CALL_OUTCOME)]
    selection[place] = edited(selection[place], agent="mallory")
    report = verified(selection)
    assert (report.status, report.first_bad, report.line) == (Status.ALTERED, seq, place + 1)


def test_order_duplicates_and_replaced_neighbours_in_a_selection_are_found(log):
    selection = [line.encode() for line in export_lines(log.db, ORG, event=Event.CALL_OUTCOME)]
    swapped = [*selection[:2], selection[3], selection[2], *selection[4:]]
    twice = [*selection, selection[-1]]
    body = json.loads(selection[3])["entry"] | {"agent": "mallory"}
    replaced = list(selection)
    replaced[3] = forged(selection[3], json.loads(selection[3])["previous"], body)
    assert verified(swapped).status is Status.ALTERED
    assert verified(twice).status is Status.ALTERED
    assert (verified(replaced).status, verified(replaced).first_bad) == (Status.ALTERED, 5)


# -- the report, and how it is made


def test_a_report_is_not_taken_for_a_yes():
    with pytest.raises(TypeError, match="status"):
        bool(Report(Status.ALTERED))


def test_a_head_that_was_noted_is_read_back_and_nothing_else_is(log):
    noted = log.head(LAST)
    assert Head.parse(f" {noted}\n") == Head.parse(str(noted).upper()) == noted
    assert str(noted) in " ".join(log.verify().cannot_exclude)
    for text in ("", "7", f"0:{noted.hash}", f"-7:{noted.hash}", f"7:{noted.hash}0", f"٧:{noted.hash}", noted.hash):
        with pytest.raises(ValueError, match="NUMBER:HASH"):
            Head.parse(text)


def test_a_report_is_json(log):
    log.set(3, agent="x")
    shown = json.loads(json.dumps(log.verify().as_dict()))
    assert shown["status"] == "altered"
    assert shown["first_bad"] == 3
    assert shown["head"]["seq"] == 2
    assert json.loads(json.dumps(verify_database(log.db, "none").as_dict()))["head"] is None


def test_what_is_appended_during_a_verification_does_not_keep_it_busy(log):
    entries = 0

    def more(count):
        nonlocal entries
        entries = count
        append(log.sql, ORG, Event.CALL_HELD)

    log.sql.execute("BEGIN")
    for _ in range(1500):
        append(log.sql, ORG, Event.CALL_HELD)
    log.sql.execute("COMMIT")
    report = verify_database(log.db, ORG, progress=more)
    assert (entries, report.entries, report.status) == (1000, 1507, Status.INTACT)


def test_verification_takes_constant_memory(log, tmp_path):
    path = tmp_path / "log.jsonl"

    def peak(check):
        tracemalloc.start()
        assert check().status is Status.INTACT
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    def grow(count):
        log.sql.execute("BEGIN")
        for _ in range(count):
            append(log.sql, ORG, Event.CALL_HELD, reason="x" * 500)
        log.sql.execute("COMMIT")
        export_file(log.db, ORG, path)

    grow(700)
    small = peak(log.verify), peak(lambda: verify_export(path))
    grow(2100)
    large = peak(log.verify), peak(lambda: verify_export(path))
    assert all(more < less * 1.3 for less, more in zip(small, large, strict=True))
    assert large[1] < 200_000 < path.stat().st_size / 5


class Endless(io.RawIOBase):
    """A file of some lines and then one that goes on for ever."""

    def __init__(self, lines):
        self.given = 0
        self.start = io.BytesIO(b"".join(lines))

    def readable(self):
        return True

    def readinto(self, buffer):
        piece = self.start.read(len(buffer)) or b"x" * len(buffer)
        buffer[: len(piece)] = piece
        self.given += len(piece)
        assert self.given < MAX_BODY * 2, "the verifier reads on and on"
        return len(piece)


def test_a_line_without_an_end_is_not_read_whole(lines):
    report = verify_export(io.BufferedReader(Endless(lines[:3]), 1 << 20))
    assert found_at(report, 3)
    assert report.line == 4
    assert verify_export(io.BufferedReader(Endless([]), 1 << 20)).status is Status.UNVERIFIABLE


def test_select_shows_what_verification_calls_bad(log):
    log.set(4, body="no json")
    assert [("damaged" in entry.body) for entry in select(log.db, ORG)] == [False] * 3 + [True] + [False] * 3
