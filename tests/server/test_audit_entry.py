"""An entry keeps whatever it is given on one line, and anyone can recompute its hash from the documented rule."""

import hashlib
import json
import math
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.audit import Damaged, Event, TooLarge, append, argument_fields, hash_value, select, verify_database
from server.audit.entry import MAX_BODY, TOO_DEEP, canonical, parse
from server.sqlite import SqliteDatabase

TABLE = """CREATE TABLE audit_entry (
    org TEXT, seq INTEGER, at INTEGER, event TEXT, body TEXT, previous TEXT, hash TEXT,
    agent TEXT, connection TEXT, tool TEXT, outcome TEXT, PRIMARY KEY (org, seq))"""
KEY = bytes(range(32))
ORG = "org_1"


def nested(levels):
    value = "bottom"
    for _ in range(levels):
        value = [value]
    return value


def sorted_keys(value):
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(each) for each in value] if isinstance(value, list) else value


KEPT = {
    "newlines": "a\nb\r\nc\x0b\x0c",
    "separators": "a\x1c\x1d\x1e\x85\u2028\u2029b",
    "nul": "a\0b",
    "a lone surrogate": "a\ud800b\udfff",
    "surrogates the wrong way round": "\udc00\ud83d",
    "beyond the basic plane": "😀",
    "a formula": "=HYPERLINK(A1)",
    "what looks like the end of a line": '"}}\n{"hash":"',
    "huge": "x" * 2_000_000,
    "brackets": "[{" * 500,
    "numbers": [0, -0.0, 1e308, 5e-324, 2**70, True, None, 0.1],
    "deep": nested(60),
    "keys": {"": 1, "é": 2, "\ud800": 3, "a.b": 4, '"': 5},
}


@pytest.fixture
def rows():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(TABLE)
    yield connection
    connection.close()


def bodies(rows):
    return [parse(text) for (text,) in rows.execute("SELECT body FROM audit_entry ORDER BY seq")]


def texts(rows):
    return [text for (text,) in rows.execute("SELECT body FROM audit_entry ORDER BY seq")]


# -- the body


@pytest.mark.parametrize("value", KEPT.values(), ids=KEPT.keys())
def test_a_hostile_value_stays_one_line_of_ascii_and_comes_back_as_it_was(rows, value):
    append(rows, ORG, Event.CALL_ATTEMPT, plain={"value": value})
    (text,) = texts(rows)
    assert text.isascii()
    assert text.splitlines() == [text]
    assert repr(sorted_keys(parse(text)["plain"]["value"])) == repr(sorted_keys(value))


def test_a_hostile_tool_name_is_stored_in_full_in_the_body_and_safely_in_its_column(rows):
    hostile = "evil\0\ud800\n" + "x" * 5000
    append(rows, ORG, Event.CALL_REFUSED, tool=hostile)
    ((shown,),) = rows.execute("SELECT tool FROM audit_entry").fetchall()
    assert bodies(rows)[0]["tool"] == hostile
    assert shown.startswith(r"evil\u0000\ud800\nxxx")
    assert len(shown) == 200


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (10**5000, hex(10**5000)),
        ({"a": [1.5, math.nan]}, {"a": [1.5, "NaN"]}),
        ("\ud83d\ude00", "😀"),
    ],
    ids=["nan", "infinity", "minus infinity", "a huge integer", "nan inside", "two halves of a character"],
)
def test_what_json_cannot_say_becomes_the_nearest_thing_that_it_can(rows, value, kept):
    append(rows, ORG, Event.CALL_ATTEMPT, plain=value)
    assert bodies(rows)[0]["plain"] == kept


def test_two_keys_that_become_one_character_when_they_are_read_are_one_key(rows):
    append(rows, ORG, Event.CALL_ATTEMPT, plain={"\ud83d\ude00": 1, "😀": 2, "\uffff": 3})
    (text,) = texts(rows)
    assert parse(text)["plain"].keys() == {"😀", "\uffff"}
    assert canonical(parse(text)) == text


@pytest.mark.parametrize("levels", [65, 500, 100_000])
def test_what_is_nested_too_deep_is_left_out_in_words_and_the_rest_is_kept(rows, levels):
    append(rows, ORG, Event.CALL_ATTEMPT, plain=nested(levels), tool="t")
    (text,) = texts(rows)
    assert TOO_DEEP in text
    assert "bottom" not in text
    assert parse(text)["tool"] == "t"


@pytest.mark.parametrize(
    "value", [b"bytes", {1, 2}, object(), {"a": [*nested(100), object()]}, {(1, 2): 3}, {math.nan: 1}]
)
def test_what_is_not_json_is_refused_and_nothing_is_written(rows, value):
    with pytest.raises(TypeError):
        append(rows, ORG, Event.CALL_ATTEMPT, plain=value)
    assert texts(rows) == []


@pytest.mark.parametrize("name", ["v", "seq", "at"])
def test_a_field_cannot_take_the_place_of_the_entrys_own(rows, name):
    with pytest.raises(TypeError, match=name):
        append(rows, ORG, Event.CALL_ATTEMPT, **{name: 7})
    assert texts(rows) == []


@pytest.mark.parametrize("name", ["org", "event"])
def test_not_even_the_two_that_are_given_by_position(rows, name):
    with pytest.raises(TypeError, match=name):
        append(rows, ORG, Event.CALL_ATTEMPT, **{name: "other"})
    assert texts(rows) == []


def test_an_entry_too_large_to_verify_is_refused(rows):
    with pytest.raises(TooLarge, match="Send less"):
        append(rows, ORG, Event.CALL_ATTEMPT, plain="x" * MAX_BODY)
    assert texts(rows) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
ANY_TEXT = st.text(st.characters(codec=None, categories=None))


@given(JSON | ANY_TEXT | st.dictionaries(ANY_TEXT, st.integers()))
def test_the_canonical_spelling_is_stable_one_line_and_never_has_a_key_twice(value):
    text = canonical({"value": value})
    assert text.isascii()
    assert all(character >= " " for character in text)
    assert canonical(parse(text)) == text


@given(JSON)
def test_every_json_value_round_trips(value):
    assert repr(sorted_keys(parse(canonical({"value": value}))["value"])) == repr(sorted_keys(value))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a":{"b":1,"b":1}}',
        '{"a":NaN}',
        '{"a":-Infinity}',
        "[]",
        "",
        "{",
        '{"a":1}}',
        '{"a":' + "[" * 100_000,
        f'{{"a":{"9" * 5000}}}',
    ],
    ids=["twice", "twice inside", "nan", "infinity", "list", "empty", "open", "more", "deep", "digits"],
)
def test_a_body_that_two_readers_could_read_differently_is_no_body(text):
    with pytest.raises(ValueError):
        parse(text)


# -- the chain


def test_an_entry_written_today_is_the_same_bytes_and_hash_in_every_later_release(rows):
    entry = append(
        rows, ORG, Event.CALL_OUTCOME, at_ms=1_769_847_909_123, tool="stripe_refund", outcome="succeeded", n=None
    )
    assert entry.text == (
        '{"at":"2026-01-31T08:25:09.123Z","event":"call.outcome","org":"org_1","outcome":"succeeded","seq":1,'
        '"tool":"stripe_refund","v":1}'
    )
    log = hashlib.sha256(b"keyleash/audit/log/v1\norg_1").digest()
    body = entry.text.encode()
    rule = b"keyleash/audit/entry/v1\n" + log + len(body).to_bytes(8, "big") + body
    assert entry.previous == log.hex()
    assert entry.hash == hashlib.sha256(rule).hexdigest()
    assert entry.hash == "3b3ecf7424d2f9fbf77e52ba478e4e3f13f118bc875ea35f124f27f18cefb0d4"


def test_every_org_has_its_own_chain_from_one(rows):
    first, other, second = (append(rows, org, Event.CALL_HELD, at_ms=5) for org in (ORG, "org_2", ORG))
    assert [first.seq, other.seq, second.seq] == [1, 1, 2]
    assert second.previous == first.hash
    assert first.previous != other.previous


def test_the_columns_say_what_the_body_says(rows):
    append(rows, ORG, Event.CALL_OUTCOME, at_ms=-1, agent="a", connection="c", tool="t", outcome="failed")
    columns = "org, seq, at, event, agent, connection, tool, outcome"
    assert rows.execute(f"SELECT {columns} FROM audit_entry").fetchall() == [
        (ORG, 1, -1, "call.outcome", "a", "c", "t", "failed")
    ]
    assert bodies(rows)[0]["at"] == "1969-12-31T23:59:59.999Z"


@pytest.mark.parametrize(("column", "value"), [("hash", "0" * 63), ("hash", None), ("hash", "G" * 64), ("seq", "x")])
def test_nothing_is_added_behind_a_last_entry_that_was_altered(rows, column, value):
    append(rows, ORG, Event.CALL_HELD)
    rows.execute("DROP TABLE IF EXISTS loose")
    rows.execute("CREATE TABLE loose AS SELECT * FROM audit_entry")
    rows.execute("DROP TABLE audit_entry")
    rows.execute("ALTER TABLE loose RENAME TO audit_entry")
    rows.execute(f"UPDATE audit_entry SET {column} = ?", (value,))
    with pytest.raises(Damaged, match="audit verify"):
        append(rows, ORG, Event.CALL_HELD)
    assert len(texts(rows)) == 1


def test_several_writers_make_one_chain(tmp_path):
    path = tmp_path / "log.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(TABLE)
    connection.close()

    def write(name):
        mine = sqlite3.connect(path, isolation_level=None, timeout=30)
        mine.execute("PRAGMA synchronous=OFF")
        for _ in range(25):
            mine.execute("BEGIN IMMEDIATE")
            append(mine, ORG, Event.CALL_ATTEMPT, agent=name)
            append(mine, ORG, Event.CALL_OUTCOME, agent=name)
            mine.execute("COMMIT")
        mine.close()

    threads = [threading.Thread(target=write, args=(f"agent {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database = SqliteDatabase(path)
    report = verify_database(database, ORG)
    agents = {entry.body["agent"] for entry in select(database, ORG)}
    database.close()
    assert (report.status, report.entries) == ("intact", 200)
    assert len(agents) == 4


# -- argument values


def test_the_hash_of_a_value_is_the_same_in_every_later_release():
    assert hash_value(KEY, "amount", 1200) == "h1:b97dc61111c373f581586aa0b508eb94"


def test_another_key_name_or_value_gives_another_hash():
    given = [
        hash_value(KEY, "amount", 1200),
        hash_value(bytes(32), "amount", 1200),
        hash_value(KEY, "amounts", 1200),
        hash_value(KEY, "amount", "1200"),
        hash_value(KEY, "amount", 1200.0),
        hash_value(KEY, "a", "b"),
        hash_value(KEY, 'a"b', ""),
        hash_value(KEY, "amount", None),
        hash_value(KEY, "amount", True),
        hash_value(KEY, "\ud800", math.nan),
    ]
    assert len(set(given)) == len(given)


def test_the_order_of_keys_does_not_change_a_values_hash():
    assert hash_value(KEY, "a", {"x": 1, "y": 2}) == hash_value(KEY, "a", {"y": 2, "x": 1})


def test_a_short_key_is_refused():
    with pytest.raises(ValueError, match="32"):
        hash_value(bytes(31), "amount", 1)


def test_only_the_arguments_that_the_definition_names_are_in_plain():
    fields = argument_fields(KEY, {"amount": 1200, "note": "private"}, plain=("amount", "absent"))
    assert fields["plain"] == {"amount": 1200}
    assert fields["arguments"].keys() == {"amount", "note"}
    assert "private" not in json.dumps(fields)
    assert argument_fields(KEY, {"note": "private"})["plain"] is None


# -- the room


def test_recording_and_verifying_need_nothing_but_the_standard_library():
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); import server.audit;"
        "print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'server', '__main__'})"
    )
    found = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_event_names_are_a_noun_and_what_happened_to_it():
    assert all(len(event.value.split(".")) == 2 and event.value.isascii() for event in Event)
    assert all(event.name == event.value.upper().replace(".", "_") for event in Event)
