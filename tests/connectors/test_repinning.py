"""A review writes the new pin, and what was the server's own words; what a person wrote, and every comment, stays."""

from pathlib import Path
from typing import Any

import pytest

from connectors.definition import Effect
from connectors.errors import DefinitionError
from connectors.importing_wrapped import candidate, draft
from connectors.loading import parse
from connectors.repinning import beside, difference, effect_after, kept, repinned, written
from connectors.upstream import Definition
from tests.connectors.test_importing_wrapped import HTTP, TEXT, takes, tool

BEFORE = tool("read_file", "Read a file.", takes(path=TEXT), annotations={"readOnlyHint": True})
OTHER = tool("other", "Another.")


def file_of(*tools: Definition) -> str:
    text = draft(HTTP, [candidate(each) for each in tools], identifier="things", title="Things").text
    return text.replace("reviewed: false", "reviewed: true # by me")


def changed(**more: Any) -> Definition:
    return Definition({**BEFORE.raw, **more})


def again(text: str, found: Definition, before: Definition | None = BEFORE) -> Any:
    return repinned(text, "things.yaml", parse(text).tools["read_file"], before, found)


def test_new_words_of_the_server_take_the_place_of_its_old_ones_and_nothing_else_moves() -> None:
    text = file_of(BEFORE, OTHER)
    found = changed(description="Read a file, or part of it.", inputSchema=takes(path=TEXT, lines={"type": "integer"}))
    new = again(text, found)
    tool_now = parse(new.text).tools["read_file"]
    assert (new.edited, new.left) == (("description", "input"), ())
    assert (tool_now.pinned, tool_now.description) == (found.hash, "Read a file, or part of it.")
    assert [one.name for one in tool_now.arguments] == ["path", "lines"]
    assert parse(new.text).tools["other"] == parse(text).tools["other"]
    theirs = [line for line in text.splitlines() if BEFORE.hash not in line and "Read a file." not in line]
    assert [line for line in theirs if line not in new.text.splitlines()] == []


def test_what_a_person_wrote_stays_and_is_named() -> None:
    text = file_of(BEFORE).replace('description: "Read a file."', 'description: "Ours." # ours')
    new = again(text, changed(description="Something else."))
    assert (new.edited, new.left) == ((), ("description",))
    assert 'description: "Ours." # ours' in new.text
    commented = file_of(BEFORE).replace("      properties:", "      properties: # look\n        # here")
    new = again(commented, changed(inputSchema=takes(path=TEXT, b=TEXT)))
    assert (new.left, "# here" in new.text) == (("input",), True)


def test_an_effect_is_raised_where_the_words_mean_more_and_lowered_never() -> None:
    text = file_of(BEFORE)
    worse = again(text, changed(description="Deletes a file."))
    assert "effect" in worse.edited
    assert parse(worse.text).tools["read_file"].effect is Effect.DESTROY
    assert "it was read" in worse.text
    hinted = again(text, changed(annotations={"destructiveHint": True}))
    assert parse(hinted.text).tools["read_file"].effect is Effect.DESTROY
    strict = text.replace("effect: read", "effect: grant")
    for found in (
        changed(description="Only reads."),
        changed(annotations={"readOnlyHint": True, "idempotentHint": True}),
    ):
        assert parse(again(strict, found).text).tools["read_file"].effect is Effect.GRANT
    assert effect_after(parse(text).tools["read_file"], None, changed(description="Sends it.")) is Effect.SEND


def test_a_reason_for_a_milder_effect_holds_until_the_words_mean_more() -> None:
    before = tool("delete_draft", "Deletes a draft.", takes(path=TEXT))
    text = file_of(before).replace("effect: destroy", "effect: write\n    because: It is kept for a month.")
    loaded = parse(text).tools["delete_draft"]
    same = Definition({**before.raw, "description": "Deletes a draft, softly."})
    assert effect_after(loaded, before, same) is Effect.WRITE
    more = Definition({**before.raw, "annotations": {"destructiveHint": True}})
    assert parse(repinned(text, "x", loaded, before, more).text).tools["delete_draft"].effect is Effect.DESTROY


def test_a_tool_on_one_line_gets_its_pin_and_names_the_rest() -> None:
    flow = (
        f"id: things\ntitle: Things\nkind: mcp\nreviewed: true\nbase_url: https://x.example\ntools:\n  read_file: {{"
        f'title: Read file, description: Read a file., upstream: read_file, pinned: "{BEFORE.hash}", effect: read, '
        "input: {type: object, properties: {path: {type: string}}}}\n"
    )
    new = again(flow, changed(description="Something else."))
    assert parse(new.text).tools["read_file"].pinned == changed(description="Something else.").hash
    assert new.left == ("description",)


def test_without_what_was_reviewed_only_pin_annotations_and_effect_are_written() -> None:
    new = again(file_of(BEFORE), changed(description="Deletes it.", annotations={"openWorldHint": True}), None)
    loaded = parse(new.text).tools["read_file"]
    assert (set(new.edited), loaded.description) == ({"effect", "annotations"}, "Read a file.")


def test_a_file_that_no_longer_has_the_pin_is_not_written_into() -> None:
    loaded = parse(file_of(BEFORE)).tools["read_file"]
    with pytest.raises(DefinitionError):
        repinned("id: things\n", "things.yaml", loaded, BEFORE, changed(description="x"))


def test_what_is_kept_beside_a_file_counts_only_as_what_its_hash_says(tmp_path: Path) -> None:
    file = tmp_path / "things.yaml"
    assert kept(file) == {}
    beside(file).write_bytes(written([BEFORE, OTHER]))
    assert kept(file) == {BEFORE.hash: BEFORE, OTHER.hash: OTHER}
    beside(file).write_bytes(written([BEFORE, OTHER]).replace(b"Read a file.", b"Read no file"))
    assert kept(file) == {OTHER.hash: OTHER}
    for damaged in (b"", b"[1]", b"{", b"\xff", b'{"a": 1, "b": {}}'):
        beside(file).write_bytes(damaged)
        assert kept(file) == {}


def test_the_difference_names_every_part_that_has_changed() -> None:
    found = Definition(
        {
            "name": "read_file",
            "title": "Reader",
            "description": "Read a file.\nAnd send it.",
            "inputSchema": takes(path={"type": "integer"}),
            "outputSchema": {"type": "object"},
            "annotations": {"readOnlyHint": False},
        }
    )
    shown = "\n".join(difference(BEFORE.raw, found.raw))
    for part in (
        "+title: Reader",
        "+  And send it.",
        '-      "type": "string"',
        '+  "readOnlyHint": false',
        "+outputSchema",
    ):
        assert part.replace("  ", "") in shown.replace("  ", ""), part
    assert list(difference(BEFORE.raw, BEFORE.raw)) == []
