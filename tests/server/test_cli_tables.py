"""What is listed can be copied: ids, paths and names stand whole on a narrow terminal, and nothing is cut in a pipe.

The commands are found by walking the command line itself: one that prints a table or fields, and is not in `LISTED`,
fails.
"""

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from server.budgets import create as create_budget
from server.cli.commands import app
from server.cli.tables import LEAST, Sheet, laid_out, wide
from server.identity import system_user
from tests.agents import Nobody, Person
from tests.commandline import ROOT, CommandLine
from tests.installed import Place, make
from tests.offering import offered_by_operator
from tests.telling import hooked
from tests.upstream import Answer, Upstream
from tests.wrapped import command as wrapped_server

pytestmark = pytest.mark.sqlite_only("it is about what is printed")

SERVER = "{server}"
LONG = "reconciler_of_everything_that_was_charged"
PRINTING = {"show_table", "show_fields", "show_lines"}
LISTED = {
    "doctor": "doctor",
    "usage": "usage --by tool",
    "connection list": "connection list",
    "connection show": "connection show stripe",
    "connection limit": "connection limit stripe --per-minute 100",
    "connector list": "connector list",
    "connector show": "connector show stripe",
    "connector import-openapi": "connector import-openapi {document} --list",
    "connector import-mcp": "connector import-mcp --list -- {server}",
    "connector test": "connector test stripe",
    "managed list": "managed list",
    "managed show": "managed show openai",
    "org list": "org list",
    "org show": "org show",
    "member list": "member list",
    "member show": "member show alice",
    "agent list": "agent list",
    "agent show": "agent show {agent}",
    "policy list": "policy list",
    "policy explain": "policy explain --agent {agent} --tool stripe_create_refund",
    "policy versions": "policy versions",
    "policy replay": "policy replay {rules}",
    "approvals list": "approvals list",
    "approvals show": "approvals show {approval}",
    "grant list": "grant list",
    "grant show": "grant show {grant}",
    "channel list": "channel list",
    "channel show": "channel show team",
    "budget list": "budget list",
    "audit list": "audit list --event call.held",
    "audit hash": "audit hash --argument charge ch_1",
    "audit events": "audit events",
    "vault status": "vault status",
    "database status": "database status",
}
NOT_RUN = {
    "vault rotate-root": "it shows what `vault status` shows, and changes it",
    "vault rewrap": "it shows what `vault status` shows, and changes it",
    "vault backup": "it writes a file each time, and shows its own path",
}
FIRST_OF_RECORD = 2
"""Lines of a record: its parts stand under one another."""


def found_commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for name, under in command.commands.items():
                yield from walk(under, (*path, name))
        else:
            yield " ".join(path), inspect.unwrap(command.callback)

    yield from walk(typer.main.get_command(app), ())


def prints(function: Any, seen: set[Any]) -> bool:
    """Whether it, or a function of the command line that it names, prints a table or fields."""
    if function in seen:
        return False
    seen.add(function)
    for name in names_in(function.__code__):
        named = function.__globals__.get(name)
        if name in PRINTING:
            return True
        ours = isinstance(named, FunctionType) and named.__module__.startswith("server.cli.")
        if ours and named.__module__ != "server.cli.output" and prints(named, seen):
            return True
    return False


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from names_in(part)


def test_every_command_that_lists_is_looked_at() -> None:
    assert {name for name, function in found_commands() if prints(function, set())} == {*LISTED, *NOT_RUN}


@dataclass(frozen=True)
class Desk:
    line: CommandLine
    names: dict[str, str]

    def words(self, command: str, *options: str) -> list[str]:
        """The words of a command, with options right behind its name."""
        name = len(command.split())
        words = LISTED[command].split()
        filled = [part for word in words[name:] for part in ([*wrapped_server()] if word == SERVER else [word])]
        return [*words[:name], *options, *(word.format(**self.names) for word in filled)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("a folder whose name is as long as such names get in practice")
    person = folder / "person"
    person.mkdir()
    with Upstream() as upstream:
        upstream.answer = lambda request: Answer(
            {"ok": True, "id": "acct_1H2jKl3M4n5O6p7Q", "object": "list", "data": []}
        )
        place = make(folder / "home")
        place.connect(upstream.url)
        place.connect(upstream.url, connector="slack", name="chat")
        offered_by_operator(place, upstream.url, name="openai")
        place.member("carol")
        place.database.write_now(
            lambda rows: rows.execute("UPDATE member SET os_user = ? WHERE name = 'alice'", (system_user(),))
        )
        place.agent(LONG)
        place.rule(who="everyone", tools=["stripe.list_charges", "stripe.retrieve_balance"], then="allow")
        place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2)
        hooked(place, upstream.url, "team")
        place.database.write_now(
            lambda rows: create_budget(rows, place.org, measure="calls", per="month", most=100, by="test")
        )
        line = CommandLine(folder / "home", person)
        settings = place.installation.settings
        settings.connectors.mkdir(mode=0o700)
        mine = (ROOT / "configs" / "connectors" / "stripe.yaml").read_text(encoding="utf-8")
        (settings.connectors / "mine.yaml").write_text(mine.replace("id: stripe", "id: mine", 1), encoding="utf-8")
        kept = {"connector": str(settings.connectors / "mine.yaml"), "database": str(settings.database)}
        names = kept | asyncio.run(called(place)) | files(folder) | {"agent": LONG}
        ran = line(
            *["grant", "create", "monday notes", "--tool", "chat_post_message", "--where", "channel in C0123456789"],
            *["--runner", f"agent:{LONG}", "--uses", "20", "--expires", "8h", "--for-why", "the team knows", "--yes"],
        )
        assert ran.code == 0, ran.err
        (grant,) = line("grant", "list", "--json").json
        place.installation.close()
        yield Desk(line, {**names, "grant": grant["id"]})


async def called(place: Place) -> dict[str, str]:
    from server.app import running
    from server.call import call
    from server.errors import ApprovalRequired

    async with running(place.installation) as parts:
        await call(parts, place.caller(LONG), "stripe_list_charges", {}, Person())
        with pytest.raises(ApprovalRequired) as held:
            await call(parts, place.caller(LONG), "stripe_create_refund", {"charge": "ch_1"}, Nobody())
        return {"approval": held.value.approval}


def files(folder: Path) -> dict[str, str]:
    operation = {"operationId": "listEverythingThatWasEverChargedToAnybody", "summary": "List it, page by page."}
    paths = {"/v1/charges/{charge}/refunds": {"get": operation}}
    (folder / "api.json").write_text(
        json.dumps({"openapi": "3.1.0", "info": {"title": "T", "version": "1"}, "paths": paths}), encoding="utf-8"
    )
    (folder / "rules.yaml").write_text("preset: strict\nrules: []\n", encoding="utf-8")
    return {"document": str(folder / "api.json"), "rules": str(folder / "rules.yaml")}


def plainly(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def cells(text: str) -> list[str]:
    """What stands between gaps, but heads, and numbers, some of which pass with the time."""
    found = [cell for line in text.splitlines() for cell in re.split(r"\s{2,}", line.strip()) if cell]
    return [cell for cell in found if not re.fullmatch(r"[0-9.,]+|[A-Z #(*)]+", cell)]


def left_out(said: str) -> list[str]:
    found = re.search(r"Not shown, for want of room: ([^.]*)\.", " ".join(said.split()))
    return found[1].split(", ") if found else []


def without(piped: str, heads: list[str]) -> str:
    """What a pipe is told, without the columns under these heads."""
    lines = piped.splitlines()
    for head in heads:
        start = re.search(rf"(^|  ){head}(  |$)", lines[0])
        assert start, head
        begin = start.start() + len(start[1])
        end = re.compile(r"\S").search(lines[0], begin + len(head))
        lines = [line[:begin] + (line[end.start() :] if end else "") for line in lines]
    return "\n".join(lines)


def stands(word: str, flowing: str) -> bool:
    """Whole; a time also without its seconds, and without this year."""
    time = re.fullmatch(r"\d{4}-(\d\d-\d\d)T(\d\d:\d\d):[\d.]+Z", word)
    return word in flowing or (time is not None and (f"{time[1]} {time[2]}Z" in flowing or word[:10] in flowing))


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("command", LISTED)
def test_whatever_is_listed_stands_whole_on_a_narrow_terminal(desk: Desk, command: str, columns: int) -> None:
    words = desk.words(command)
    piped, narrow = desk.line(*words), desk.line(*words, columns=columns)
    assert (piped.code, narrow.code) == (0, 0), piped.err + narrow.err
    shown = plainly(narrow.out)
    flowing = " ".join(shown.split())
    for cell in cells(without(piped.out, left_out(narrow.err))):
        assert all(stands(word, flowing) for word in cell.split()), f"a word of {cell!r} is cut"
    for line in (line for line in shown.splitlines() if wide(line) > columns):
        *before, last = re.split(r"\s{2,}", line.strip())
        # A record, or a piece at the end, such as a path, that no width could hold.
        assert len(before) < FIRST_OF_RECORD or (" " not in last and wide(last) > LEAST), f"{line!r} is wide"


TABLES = ("usage", "connection list", "agent list", "policy list", "approvals list", "budget list", "audit list")


@pytest.mark.parametrize("command", [*TABLES, "grant list", "channel list", "managed list", "member list"])
def test_a_list_is_a_table_on_a_terminal_of_80_columns(desk: Desk, command: str) -> None:
    words = desk.words(command)
    heads, first, *_ = plainly(desk.line(*words, columns=80).out).splitlines()
    of_a_pipe = desk.line(*words).out.split("  ")[0]
    assert heads.split("  ")[0] == of_a_pipe
    assert len(re.split(r"\s{2,}", heads)) > FIRST_OF_RECORD
    assert first, "there is a row, or a second line of heads"


def test_only_what_can_be_spared_is_left_out_of_a_list(desk: Desk) -> None:
    narrow = desk.line("connection", "list", columns=80)
    assert set(left_out(narrow.err)) <= {"SECRET IN", "PRIVATE", "VERIFIED"}
    assert left_out(desk.line("connection", "list").err) == []


def test_every_entry_says_what_it_is_about(desk: Desk) -> None:
    subjects = {"org.created": "acme", "member.created": "carol", "agent.created": LONG, "channel.created": "team"}
    for event, name in subjects.items():
        _, _, _, _, what, *_ = re.split(r"\s{2,}", desk.line("audit", "list", "--event", event).out.splitlines()[-1])
        assert what == name, event


@pytest.mark.parametrize("command", LISTED)
def test_nothing_is_cut_or_folded_in_a_pipe(desk: Desk, command: str) -> None:
    words = desk.words(command)
    piped = desk.line(*words).out
    assert "…" not in piped.replace("/…", ""), "but in a webhook's address, whose path is a secret"
    if command.endswith(" list"):
        told = desk.line(*desk.words(command, "--json")).json
        rows = len([*told["rules"], *told["preset_rules"]] if command == "policy list" else told)
        assert rows > 0
        assert len(piped.splitlines()) == 1 + rows, "a row is a line"
    assert not re.search(r"\x1b|[ \t]$", piped, re.MULTILINE)


@pytest.mark.parametrize("columns", [80, 60, None])
@pytest.mark.parametrize("command", ["connector list", "database status"])
def test_a_path_stands_on_one_line_even_with_spaces_in_it(desk: Desk, command: str, columns: int | None) -> None:
    shown = plainly(desk.line(*desk.words(command), columns=columns).out)
    assert desk.names[command.split(maxsplit=1)[0]] in shown


def test_a_real_terminal_of_80_columns_shows_whole_what_a_pipe_shows(desk: Desk) -> None:
    piped = desk.line("connector", "list")
    with desk.line.at_terminal("connector", "list", columns=80) as terminal:
        assert terminal.end() == 0
    shown = plainly(terminal.shown).replace("\r\n", "\n")
    assert all(cell in shown for cell in cells(piped.out) if " " not in cell)
    assert re.search(r"^stripe +Stripe +\d+$", shown, re.MULTILINE), "and as a table"


WORDS = st.text("ab/_é漢", min_size=1, max_size=30)
CELLS = st.lists(WORDS, max_size=4).map(" ".join)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4), st.integers(30, 120))
def test_any_cell_is_whole_and_prose_is_cut_between_words_alone(rows: list[tuple[str, ...]], width: int) -> None:
    sheet = Sheet(heads=("ONE", "TWO", "THREE"), rows=tuple(rows), prose=frozenset([2]))
    lines = ["".join(text for text, _ in line) for line in laid_out(sheet, width)]
    whole = "\n".join(lines)
    for one, two, three in rows:
        assert one in whole
        assert two in whole
        assert all(word in whole for word in three.split())
    pieces = [piece for row in rows for piece in (*row[:2], *row[2].split()) if piece]
    for line in (line for line in lines if wide(line) > width):
        before = min(wide(line) - wide(piece) for piece in pieces if line.endswith(piece))
        assert before <= max(width - LEAST, len("THREE  ")), "only one piece that is too long by itself goes beyond"
    piped = ["".join(text for text, _ in line) for line in laid_out(sheet, None)]
    assert len(piped) == len(rows) + 1
