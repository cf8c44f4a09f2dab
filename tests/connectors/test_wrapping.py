"""The file of a wrapped server loads whole, or is refused with its line and the mend."""

from typing import Any

import pytest

from connectors.definition import Call, Connector, Effect
from connectors.effects import derive_wrapped, raised
from connectors.errors import DefinitionError
from connectors.loading import parse
from connectors.request import prepare, sent_arguments

PIN = "a" * 64
GOOD = f"""\
id: notes
title: Notes
kind: mcp
reviewed: true
base_url: https://notes.example
endpoint: /mcp/
headers: {{X-Region: eu}}
credentials:
  key: {{label: Key, help: There., scheme: bearer}}
tools:
  add:
    title: Add a note
    description: It adds a note.
    upstream: notes.add
    pinned: {PIN}
    annotations: {{readOnlyHint: false, idempotentHint: true}}
    effect: write
    ask: Add {{noteText}} to {{folder}}
    grant: [folder]
    plain: [folder]
    absent: {{folder: the first folder}}
    fixed: {{format: plain}}
    input:
      type: object
      properties:
        folder: {{type: string}}
        noteText: {{type: string, minLength: 1}}
        format: {{enum: [plain, rich]}}
        tags: {{type: array, items: {{type: string}}}}
      required: [noteText, format]
      additionalProperties: true
    output: {{select: "{{id: id}}", redact: [token]}}
  list:
    title: List
    description: All.
    upstream: list_notes
    pinned: {PIN}
    effect: read
    input: {{type: object}}
"""

REACHED = "base_url: https://notes.example\nendpoint: /mcp/\nheaders: {X-Region: eu}\n"


def call_of(connector: Connector, tool: str, arguments: dict[str, Any]) -> Call:
    return Call("notes", connector, connector.tools[tool], f"notes_{tool}", arguments)


def test_the_good_file_loads_as_written() -> None:
    notes = parse(GOOD)
    add = notes.tools["add"]
    assert notes.server is not None
    assert (notes.server.transport, notes.server.endpoint) == ("http", "/mcp/")
    assert (add.upstream, add.pinned, add.effect) == ("notes.add", PIN, Effect.WRITE)
    assert [(a.name, a.required) for a in add.arguments] == [("noteText", True), ("folder", False), ("tags", False)]
    assert add.input_schema["additionalProperties"] is False
    assert "format" not in add.input_schema["properties"]
    assert add.summary({"noteText": "x"}) == "Add x to the first folder"
    assert not add.safe
    assert notes.tools["list"].safe


def test_what_is_sent_is_what_the_agent_wrote_and_what_the_file_fixes() -> None:
    call = call_of(parse(GOOD), "add", {"noteText": "x"})
    assert sent_arguments(call) == {"noteText": "x", "format": "plain"}
    request = prepare(call, base_url="https://notes.example")
    assert (request.method, request.url) == ("tools/call notes.add", "https://notes.example/mcp/")
    assert request.origin == "https://notes.example"
    assert not request.safe


def test_a_started_servers_address_is_its_command() -> None:
    text = GOOD.replace(
        "base_url: https://notes.example\nendpoint: /mcp/\nheaders: {X-Region: eu}\n", "command: [n, -x]\n"
    )
    notes = parse(text.replace("scheme: bearer", "scheme: env, name: NOTES_KEY"))
    assert notes.base_url == 'stdio:["n","-x"]'
    assert notes.server is not None
    assert notes.server.transport == "stdio"
    assert notes.credentials[0].fields[0].variable == "NOTES_KEY"
    assert prepare(call_of(notes, "list", {}), base_url=notes.base_url).origin == "stdio:n"
    assert (notes.limits.concurrent, parse(GOOD).limits.concurrent) == (4, None), "no agent starts a hundred programs"


def test_a_server_without_credentials_has_one_kind_that_is_nothing() -> None:
    text = GOOD.replace("credentials:\n  key: {label: Key, help: There., scheme: bearer}\n", "")
    assert [kind.scheme for kind in parse(text).credentials] == ["none"]


WRONG = [
    ("base_url: https://notes.example\n", "", 1, "Nothing says where"),
    ("base_url: https://notes.example", "base_url: http://notes.example", 5, "https"),
    ("endpoint: /mcp/", "endpoint: /../mcp", 6, "endpoint"),
    ("endpoint: /mcp/", "endpoint: /mcp?x=1", 6, "endpoint"),
    ("endpoint: /mcp/", "command: [n]", 5, "'base_url'"),
    ("scheme: bearer", "scheme: env, name: KEY", 9, "The scheme"),
    (f"pinned: {PIN}\n    annotations", "pinned: abc\n    annotations", 15, "The pin"),
    ("readOnlyHint: false", "readOnly: false", 16, "readOnlyHint"),
    ("readOnlyHint: false", 'readOnlyHint: "no"', 16, "true or false"),
    ("fixed: {format: plain}", "fixed: {format: fat}", 22, "does not take this value"),
    ("fixed: {format: plain}", "fixed: {fmt: plain}", 22, "no argument 'fmt'"),
    ("absent: {folder: the first folder}", "absent: {format: x}", 21, "no argument that is offered"),
    ("input:\n      type: object", "input:\n      type: array", 23, "type: object"),
    ("folder: {type: string}", "folder: {$ref: '#/x'}", 26, "'$ref'"),
    ("items: {type: string}", "items: {if: {type: string}}", 29, "'if'"),
    ("folder: {type: string}", "fol.der: {type: string}", 26, "No argument can be called"),
    ("required: [noteText, format]", "required: [noteText, other]", 30, "'other' is required"),
    ("noteText: {type: string, minLength: 1}", "noteText: {type: text}", 23, "JSON Schema"),
    ("upstream: list_notes", "upstream: delete_notes", 38, "milder than destroy"),
    ("ask: Add {noteText} to {folder}", "ask: Add a note", 18, "names no argument"),
    ("effect: write\n", "effect: write\n    call: POST /x\n", 18, "no key 'call'"),
    ("headers: {X-Region: eu}", "headers: {Authorization: x}", 7, "set by Keyleash"),
    ("kind: mcp", "kind: mcp\nverify: {call: GET /x}", 4, "no key 'verify'"),
]


@pytest.mark.parametrize(("old", "new", "line", "says"), WRONG, ids=[new[:30] for _, new, _, _ in WRONG])
def test_what_is_wrong_is_refused_with_its_line(old: str, new: str, line: int, says: str) -> None:
    assert old in GOOD
    with pytest.raises(DefinitionError) as refused:
        parse(GOOD.replace(old, new, 1), "notes.yaml")
    assert says in str(refused.value)
    assert refused.value.line == line


@pytest.mark.parametrize("name", ["PATH", "HOME", "LD_PRELOAD", "PYTHONPATH", "lower", "A B"])
def test_a_secret_stands_in_no_variable_that_decides_how_programs_run(name: str) -> None:
    text = GOOD.replace(REACHED, "command: [n]\n")
    with pytest.raises(DefinitionError, match=r"variable"):
        parse(text.replace("scheme: bearer", f'scheme: env, name: "{name}"'))


@pytest.mark.parametrize(
    ("credential", "says"),
    [
        ("fields: {a: {label: A}}", "has its `variable`"),
        ("fields: {a: {label: A, variable: PATH}}", "variable"),
        ("name: KEY, fields: {a: {label: A, variable: A_KEY}}", "Remove the name"),
    ],
)
def test_each_field_of_a_started_servers_credential_has_a_variable_of_its_own(credential: str, says: str) -> None:
    text = GOOD.replace(REACHED, "command: [n]\n")
    with pytest.raises(DefinitionError, match=says):
        parse(text.replace("scheme: bearer", f"scheme: env, {credential}"))


@pytest.mark.parametrize("effect", list(Effect))
def test_what_a_server_says_of_its_tool_raises_the_effect_and_never_lowers_it(effect: Effect) -> None:
    harmless = {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": True, "openWorldHint": False}
    assert raised(effect, {}) is effect
    assert raised(effect, harmless) is effect
    assert raised(effect, {"readOnlyHint": False}) is max(effect, Effect.WRITE, key=lambda each: each.strictness)
    assert raised(effect, {"readOnlyHint": True, "destructiveHint": True}).strictness >= Effect.DESTROY.strictness


def test_annotations_count_when_the_file_is_loaded() -> None:
    text = GOOD.replace("readOnlyHint: false,", "readOnlyHint: false, destructiveHint: true,")
    assert parse(text).tools["add"].effect is Effect.DESTROY
    assert parse(text).tools["add"].definition_hash != parse(GOOD).tools["add"].definition_hash


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("get_note", Effect.READ),
        ("listNotes", Effect.READ),
        ("git_status", Effect.WRITE),
        ("delete_note", Effect.DESTROY),
    ],
)
def test_a_name_suggests_the_strict_side(name: str, effect: str) -> None:
    assert derive_wrapped(name) is Effect(effect)


@pytest.mark.parametrize(
    ("old", "new"),
    [(PIN, "b" * 64), ("endpoint: /mcp/", "endpoint: /mcp"), ("fixed: {format: plain}", "fixed: {format: rich}")],
)
def test_the_definitions_hash_changes_with_whatever_decides_what_is_sent(old: str, new: str) -> None:
    assert parse(GOOD.replace(old, new, 1)).tools["add"].definition_hash != parse(GOOD).tools["add"].definition_hash


def test_until_a_person_has_read_it_a_read_counts_as_sensitive() -> None:
    text = GOOD.replace("reviewed: true\n", "").replace("effect: read", "effect: read\n    ask: List")
    tools = parse(text.replace("    grant: [folder]\n", "")).tools
    assert (tools["list"].effect, tools["add"].effect) == (Effect.SENSITIVE, Effect.SEND)


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("10m", 600), ("1h", 3600), ("60m", 3600), ("3600s", 3600)])
@pytest.mark.parametrize("where", [REACHED, "command: [notes-server]\n"])
def test_a_file_may_say_for_how_long_a_conversation_is_kept(where: str, text: str, seconds: int) -> None:
    whole = (
        GOOD if where == REACHED else GOOD.replace(REACHED, where).replace("scheme: bearer", "scheme: env, name: KEY")
    )
    kept = parse(whole.replace("reviewed: true\n", f"reviewed: true\nkeep: {text}\n"))
    assert kept.server is not None
    assert kept.server.keep_s == seconds
    without = parse(whole)
    assert without.server is not None
    assert without.server.keep_s == 0
    assert kept.tools["add"].definition_hash == without.tools["add"].definition_hash, "approvals stay good"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("29s", "not kept for 29s"),
        ("61m", "not kept for 61m"),
        ("2h", "Give from 30s to 1h"),
        ("600", "must be text"),
        ("'600'", "Write it as `90s`, `10m` or `1h`"),
        ("'0m'", "Write it as"),
        ("1d", "Write it as"),
        ("10 m", "Write it as"),
        ("true", "must be text"),
        ("'10m\\n'", "Write it as"),
    ],
)
def test_another_time_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=says) as refused:
        parse(GOOD.replace("reviewed: true\n", f"reviewed: true\nkeep: {text}\n"))
    assert refused.value.line == 5


@pytest.mark.parametrize("reviewed", ["", "reviewed: false\n"])
def test_only_what_a_person_has_reviewed_is_kept(reviewed: str) -> None:
    with pytest.raises(DefinitionError, match="say `reviewed: true`") as refused:
        parse(GOOD.replace("reviewed: true\n", f"{reviewed}keep: 10m\n"))
    assert "keep" in GOOD.replace("reviewed: true\n", f"{reviewed}keep: 10m\n").splitlines()[refused.value.line - 1]


def test_no_other_kind_keeps_anything() -> None:
    with pytest.raises(DefinitionError, match="keep"):
        parse("id: x\ntitle: X\nbase_url: https://x.example\nkeep: 10m\n")
