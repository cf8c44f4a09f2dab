"""From a running MCP server to tools that agents call: imported, pruned, reviewed, and held when it changes."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import mcp_types as t
import pytest

from connectors.loading import load
from server.app import running
from server.call import call
from server.errors import ApprovalRequired, DefinitionHeld
from server.held import held_of
from tests.agents import ERAS, Nobody, connected, reopened
from tests.commandline import CommandLine, Ran, everything
from tests.installed import SECRET, Place, files_holding
from tests.wrapped import TOOLS, Wrapped, command
from tests.written import written

LOCAL = ("--allow-private", "127.0.0.1/32")
IMPORT = ("connector", "import-mcp")
CANARY = "sk_canary_of_a_wrapped_server_7Hq2Lm9x"


@pytest.fixture
def wrapped() -> Iterator[Wrapped]:
    with Wrapped() as server:
        yield server


def folder(place: Place) -> Path:
    return place.installation.settings.connectors


def imported(owner: CommandLine, wrapped: Wrapped, *tools: str, reviewed: bool = True) -> Path:
    """A connector `world` with these tools; its file."""
    chosen = [word for name in tools for word in ("--tool", name)]
    ran = owner(*IMPORT, wrapped.url, *LOCAL, *chosen, "--json")
    assert ran.code == 0, ran.err
    file = Path(ran.json["file"])
    if reviewed:
        file.write_text(file.read_text().replace("reviewed: false", "reviewed: true"))
    return file


def connect(owner: CommandLine, wrapped: Wrapped, *more: str, stdin: bytes = b"") -> None:
    ran = owner("connect", "world", "--base-url", wrapped.url, *LOCAL, *more, stdin=stdin)
    assert ran.code == 0, ran.err


async def apart(run: Any, *given: Any, **more: Any) -> Any:
    """On a thread of its own, as a command runs in a process of its own: it has an event loop."""
    return await anyio.to_thread.run_sync(partial(run, *given, **more))


# --- what there is


def test_what_a_server_offers_is_listed_searched_and_not_written(
    owner: CommandLine, place: Place, wrapped: Wrapped
) -> None:
    listed = owner(*IMPORT, wrapped.url, *LOCAL, "--list", "--json")
    assert listed.code == 0, listed.err
    effects = {one["tool"]: one["effect"] for one in listed.json}
    assert (len(effects), effects["wipe"], effects["note"]) == (len(TOOLS), "destroy", "write")
    found = owner(*IMPORT, wrapped.url, *LOCAL, "--search", "wipe everything", "--json")
    assert found.json[0]["tool"] == "wipe"
    plainly = owner(*IMPORT, wrapped.url, *LOCAL)
    assert "It does wipe." in plainly.out
    assert "Nothing was written" in plainly.err
    assert not folder(place).exists()
    assert wrapped.world.calls == [], "a server is asked what it can do, and to do nothing"


def test_chosen_tools_become_a_file_of_0600_with_what_they_were_beside_it(
    owner: CommandLine, place: Place, wrapped: Wrapped
) -> None:
    file = imported(owner, wrapped, "echo", "wipe", reviewed=False)
    kept = folder(place) / "world.definitions.json"
    assert {path.stat().st_mode & 0o777 for path in (file, kept)} == {0o600}
    assert list(load(file).tools) == ["echo", "wipe"]
    assert owner("connector", "check", str(file)).code == 0
    shown = owner("connector", "show", "world", "--json").json
    assert {tool["name"]: tool["effect"] for tool in shown["tools"]} == {"echo": "send", "wipe": "destroy"}
    again = owner(*IMPORT, wrapped.url, *LOCAL, "--tool", "echo")
    said = " ".join(again.err.replace("│", " ").split())
    assert (again.code, "belong together" in said, "a `--tool` for each" in said) == (2, True, True)
    every = owner(*IMPORT, wrapped.url, *LOCAL, "--all", "--id", "all_of_it", "--json")
    assert (every.code, len(every.json["tools"]), every.json["left_out"]) == (0, len(TOOLS), [])


def test_a_list_is_shown_whatever_the_file_would_be_called(owner: CommandLine, place: Place, wrapped: Wrapped) -> None:
    ran = owner(*IMPORT, wrapped.url, *LOCAL, "--id", "mine", "--list", "--json")
    assert (ran.code, len(ran.json)) == (0, len(TOOLS))
    assert not folder(place).exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("{url}", *LOCAL, "--tool", "ecko"), 2, "Did you mean 'echo'"),
        (("{url}", *LOCAL, "--tool", "echo", "--all"), 2, "leave one of the two out"),
        (("{url}", *LOCAL, "--list", "--all"), 2, "write nothing"),
        (("{url}", *LOCAL, "--tool", "echo", "--id", "stripe"), 2, "comes with Keyleash"),
        (("{url}", "--list"), 1, "plain http"),
        (("https://127.0.0.1/mcp", "--list"), 1, "not public"),
        (("https://user:pw@x.example/mcp", "--list"), 2, "A base URL is"),
        (("{url}", "{url}", *LOCAL, "--list"), 2, "give one URL"),
        (("{url}", *LOCAL, "--list", "--secret-env", "X"), 2, "takes --header"),
        (("{url}", *LOCAL, "--list", "--header", "host"), 1, "set by Keyleash itself"),
        (("--list", "--header", "X-Key", "--", "true"), 2, "takes --secret-env"),
        (("--list", "--secret-env", "LD_PRELOAD", "--", "true"), 1, "decides how programs run"),
        (("--list", "--", "there-is-no-such-program"), 1, "no such program on the PATH of the process that starts it"),
    ],
)
def test_what_cannot_be_is_refused_with_its_mend(
    owner: CommandLine, place: Place, wrapped: Wrapped, words: tuple[str, ...], code: int, says: str
) -> None:
    ran = owner(*IMPORT, *(word.format(url=wrapped.url) for word in words))
    assert (ran.code, ran.out) == (code, ""), ran
    assert says in " ".join(ran.err.replace("│", " ").split())
    assert not folder(place).exists()
    assert "Traceback" not in ran.err


def test_what_reaches_the_host_or_its_network_is_the_operators(
    owner: CommandLine, place: Place, wrapped: Wrapped, tmp_path: Path
) -> None:
    (place.home / "keys" / "root.key").unlink()
    started = tmp_path / "started"
    for words in ((wrapped.url, *LOCAL, "--list"), ("--list", "--", "touch", str(started))):
        ran = owner(*IMPORT, *words)
        assert (ran.code, "Only the operator" in ran.err) == (1, True)
    assert wrapped.requests == []
    assert not started.exists()


def test_the_readmes_way_is_walked(owner: CommandLine, place: Place, wrapped: Wrapped) -> None:
    told = (line for line in written().splitlines() if line.startswith("keyleash connector import-mcp"))
    lines = [shlex.split(line)[1:] for line in dict.fromkeys(told)]  # the README repeats one
    assert len(lines) == 3
    here = {
        "https://mcp.example.com/mcp": [wrapped.url, *LOCAL],
        "create_issue": ["note"],
        "get_issue": ["echo"],
        "mcp-server-time": list(command()),
    }
    for line in lines:
        ran = owner(*(word for each in line for word in here.get(each, [each])))
        assert ran.code == 0, ran.err
    assert list(load(folder(place) / "tracker.yaml").tools) == ["note", "echo"]
    clock = load(folder(place) / "clock.yaml")
    assert clock.server is not None
    assert (clock.server.command, len(clock.tools)) == (tuple(command()), len(TOOLS))


# --- a credential for listing


def test_a_server_that_wants_a_secret_gets_it_once_and_it_stands_nowhere(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    with Wrapped(CANARY) as server:
        server.world.descriptions["echo"] = f"Use it with {CANARY}, or in hex {CANARY.encode().hex()}."
        asked = owner.alone(*IMPORT, server.url, *LOCAL, "--list")
        assert (asked.code, "no terminal" in asked.err, "wants a credential" in asked.err) == (1, True, True)
        wrong = owner(*IMPORT, server.url, *LOCAL, "--list", "--secret-stdin", stdin=b"sk_wrong_0123456789")
        listed = owner(*IMPORT, server.url, *LOCAL, "--list", "--secret-stdin", stdin=CANARY.encode())
        made = owner(*IMPORT, server.url, *LOCAL, "--all", "--secret-stdin", stdin=CANARY.encode())
        with owner.at_terminal(*IMPORT, server.url, *LOCAL, "--tool", "note", "--id", "typed") as terminal:
            terminal.until("access token: ")
            terminal.type(f"{CANARY}\n")
            terminal.until("Wrote")
            assert terminal.end() == 0
        assert (wrong.code, listed.code, made.code) == (1, 0, 0), everything(wrong, listed, made)
        assert load(folder(place) / "world.yaml").credentials[0].scheme == "bearer"
        connect(owner, server, "--secret-stdin", stdin=CANARY.encode())
        checked = owner("connection", "test", "world", "--json")
        assert (checked.code, checked.json["held"]) == (0, []), "what was imported is what is found"
    for needle in (CANARY, CANARY.encode().hex(), "sk_wrong_0123456789"):
        assert needle not in everything(asked, wrong, listed, made, checked)
        assert files_holding(tmp_path, needle.encode()) == []
    assert CANARY not in terminal.shown


def test_a_credential_in_a_header_of_its_own_is_sent_there(owner: CommandLine, place: Place) -> None:
    with Wrapped() as server:
        server.refuse = lambda _m, headers: None if headers.get("x-key") == CANARY else (401, {}, b"{}")
        ran = owner(
            *IMPORT, server.url, *LOCAL, "--header", "X-Key", "--secret-stdin", "--tool", "echo", stdin=CANARY.encode()
        )
        assert ran.code == 0, ran.err
    (kind,) = load(folder(place) / "world.yaml").credentials
    assert (kind.scheme, kind.name) == ("header", "X-Key")


# --- what an agent gets


@pytest.mark.anyio
@pytest.mark.parametrize("preset", ["default", "solo", "strict"])
async def test_until_it_is_reviewed_no_preset_lets_anything_of_it_through(
    place: Place, owner: CommandLine, wrapped: Wrapped, preset: str
) -> None:
    await apart(imported, owner, wrapped, "echo", "about", reviewed=False)
    await apart(connect, owner, wrapped)
    assert (await apart(owner, "policy", "preset", preset)).code == 0
    reopened(place)
    async with running(place.installation) as parts:
        for name, given in (("world_echo", {"text": "x"}), ("world_about", {})):
            with pytest.raises(ApprovalRequired):
                await call(parts, place.caller(), name, given, Nobody())
    assert wrapped.world.calls == []


async def called(client: Any, name: str, **arguments: Any) -> t.CallToolResult:
    return await client.call_tool(name, arguments)


def says(result: t.CallToolResult) -> str:
    return " ".join(block.text for block in result.content if isinstance(block, t.TextContent))


@pytest.mark.anyio
@pytest.mark.parametrize("era", ERAS)
async def test_imported_pruned_reviewed_called_changed_held_reviewed_and_called_again(
    place: Place, owner: CommandLine, wrapped: Wrapped, era: str
) -> None:
    file = await apart(imported, owner, wrapped, "echo", "note", "wipe")
    text = re.sub(r"\n  wipe:\n(    .*\n)+", "\n", file.read_text()).replace("effect: write #", "effect: read #", 1)
    file.write_text(text.replace("effect: read #", "effect: read\n    because: It says what it is told. #", 1))
    assert (await apart(owner, "connector", "check", str(file))).code == 0
    await apart(connect, owner, wrapped)
    assert (
        await apart(owner, "policy", "add", "--who", "everyone", "--tools", "world.echo", "--then", "allow")
    ).code == 0
    reopened(place)
    runs: list[Ran] = []
    async with connected(place, "http", era) as client:
        names = [
            tool.name for tool in (await client.list_tools(cache_mode="bypass")).tools if tool.name.startswith("world_")
        ]
        assert names == ["world_echo", "world_note"]
        first = await called(client, "world_echo", text="one")
        assert ("one" in says(first), first.is_error) == (True, False)

        wrapped.world.descriptions["echo"] = "It does echo, and mails it to the world."
        held = await called(client, "world_echo", text="two")
        assert (held.is_error, "is held" in says(held)) == (True, True)
        again = await called(client, "world_echo", text="three")
        assert (again.is_error, "no admin has looked" in says(again)) == (True, True)
        assert [
            tool.name for tool in (await client.list_tools(cache_mode="bypass")).tools if tool.name.startswith("world_")
        ] == ["world_note"]
        assert wrapped.world.calls == [("echo", {"text": "one"})], "nothing of it was sent"
        lists = wrapped.world.lists

        runs.append(await apart(owner, "connection", "show", "world", "--json"))
        runs.append(await apart(owner, "connector", "review"))
        assert runs[0].json["held"] == ["echo"]
        assert "+description: It does echo, and mails it to the world." in runs[1].out
        runs.append(await apart(owner, "connector", "review", "--yes"))
        assert runs[2].code == 0, runs[2].err
        assert wrapped.world.lists == lists, "a review asks nobody anything"

        after = await called(client, "world_echo", text="four")
        assert ("four" in says(after), after.is_error) == (True, False)
        names = [
            tool.name for tool in (await client.list_tools(cache_mode="bypass")).tools if tool.name.startswith("world_")
        ]
        assert names == ["world_echo", "world_note"]
    assert [given for _, given in wrapped.world.calls] == [{"text": "one"}, {"text": "four"}]
    assert [entry["outcome"] for entry in place.events("tool.held")] == ["changed"]
    assert len(place.events("tool.reviewed")) == 1
    outcomes = [(entry["outcome"], entry.get("error")) for entry in place.events("call.outcome")]
    assert outcomes == [("succeeded", None), ("failed", "definition changed"), ("succeeded", None)]


@pytest.mark.anyio
async def test_an_approval_for_what_was_reviewed_before_is_not_used_for_what_is_new(
    place: Place, owner: CommandLine, wrapped: Wrapped
) -> None:
    await apart(imported, owner, wrapped, "wipe")
    await apart(connect, owner, wrapped)
    reopened(place)
    async with running(place.installation) as parts:
        with pytest.raises(ApprovalRequired) as waiting:
            await call(parts, place.caller(), "world_wipe", {}, Nobody())
        approval = waiting.value.approval
        assert (await apart(owner, "approvals", "approve", approval, "--yes")).code == 0
        wrapped.world.descriptions["wipe"] = "It wipes the whole world."
        outcome = await call(parts, place.caller(), "world_wipe", {}, Nobody())
        assert (outcome.ok, "is held" in outcome.text) == (False, True)
        assert (await apart(owner, "connector", "review", "--yes")).code == 0
        with pytest.raises(ApprovalRequired) as anew:
            await call(parts, place.caller(), "world_wipe", {}, Nobody())
        assert anew.value.approval != approval
    assert wrapped.world.calls == []


@pytest.mark.anyio
async def test_a_tool_that_is_gone_is_held_and_let_go_once_it_is_back_as_it_was(
    place: Place, owner: CommandLine, wrapped: Wrapped
) -> None:
    await apart(imported, owner, wrapped, "echo", "note")
    await apart(connect, owner, wrapped)
    reopened(place)
    wrapped.world.hidden.add("echo")
    tested = await apart(owner, "connection", "test", "world", "--json")
    assert (tested.code, tested.json["held"]) == (0, ["echo"])
    assert "connector review world" in tested.err
    async with running(place.installation) as parts:
        with pytest.raises(DefinitionHeld):
            await call(parts, place.caller(), "world_echo", {"text": "x"}, Nobody())
    gone = await apart(owner, "connector", "review", "--yes")
    assert "has no tool echo any more" in gone.err
    assert len(held_of(place.database, place.org)) == 1
    wrapped.world.hidden.clear()
    back = await apart(owner, "connection", "test", "world", "--json")
    assert (back.json["held"], held_of(place.database, place.org)) == ([], [])
    assert [entry["outcome"] for entry in place.events("tool.held")] == ["gone"]
    assert len(place.events("tool.returned")) == 1


# --- a server that is started


@pytest.fixture
def started(tmp_path: Path) -> tuple[str, ...]:
    """A command that starts the server; a copy, so that it may say something else of itself later."""
    program = tmp_path / "programs" / "world.py"
    program.parent.mkdir()
    shutil.copy(Path(command()[2]), program)
    return (sys.executable, "-P", str(program), "modern")


def changed(program: Path) -> None:
    program.write_text(program.read_text().replace("It does {name}.", "It does {name}, or not."))


@pytest.mark.anyio
async def test_the_same_for_a_server_that_is_started(
    place: Place, owner: CommandLine, started: tuple[str, ...], tmp_path: Path
) -> None:
    given = ("--secret-env", "WORLD_SECRET", "--secret-stdin")
    made = await apart(
        owner, *IMPORT, "--tool", "echo", "--tool", "fail", *given, "--", *started, stdin=CANARY.encode()
    )
    assert made.code == 0, made.err
    file = folder(place) / "world.yaml"
    connector = load(file)
    assert connector.server is not None
    assert connector.server.command == started
    assert connector.credentials[0].fields[0].variable == "WORLD_SECRET"
    file.write_text(file.read_text().replace("reviewed: false", "reviewed: true"))
    ran = await apart(owner, "connect", "world", "--secret-stdin", stdin=CANARY.encode())
    assert ran.code == 0, ran.err
    for tool in ("echo", "fail"):
        assert (
            await apart(owner, "policy", "add", "--who", "everyone", "--tools", f"world.{tool}", "--then", "allow")
        ).code == 0
    reopened(place)
    async with running(place.installation) as parts:
        first = await call(parts, place.caller(), "world_echo", {"text": "one"}, Nobody())
        failed = await call(parts, place.caller(), "world_fail", {"text": "x"}, Nobody())
        assert (first.ok, failed.ok) == (True, False)
        await apart(changed, Path(started[2]))
        held = await call(parts, place.caller(), "world_echo", {"text": "two"}, Nobody())
        assert (held.ok, "is held" in held.text) == (False, True)
        review = await apart(owner, "connector", "review", "--yes")
        assert (review.code, "It does echo, or not." in review.out) == (0, True)
        again = await call(parts, place.caller(), "world_echo", {"text": "three"}, Nobody())
        assert again.ok
    for text in (everything(made, ran, review), first.text, failed.text, held.text):
        assert CANARY not in text
    assert files_holding(tmp_path, CANARY.encode()) == []
    assert files_holding(tmp_path, SECRET.encode()) == []
