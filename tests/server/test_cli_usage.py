"""`keyleash usage`, `budget` and `connection limit`: what each prints, for whom; and no value is more than text."""

import asyncio
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from connectors.definition import Pace
from server.app import running
from server.call import call
from server.charting import bars
from server.clock import now_ms
from server.errors import ApprovalRequired
from server.identity import system_user
from server.pacing import paces_in
from server.usage import day_of
from tests.agents import Nobody, execute
from tests.commandline import CommandLine
from tests.installed import SECRET, Place, add_org
from tests.upstream import Answer, Upstream

READ = "stripe_list_charges"


def today() -> str:
    return day_of(now_ms())


def calls(place: Place, *tools: tuple[str, dict[str, Any]], agent: str = "reconciler") -> None:
    async def run() -> None:
        async with running(place.installation) as parts:
            for tool, arguments in tools:
                try:
                    await call(parts, place.caller(agent), tool, arguments, Nobody())
                except ApprovalRequired:
                    continue

    asyncio.run(run())


@pytest.fixture
def used(place: Place, upstream: Upstream) -> Place:
    """Three reads, a held refund, and an answer of a model."""
    place.connect(upstream.url, connector="openai")
    upstream.answer = lambda request: Answer(
        {"usage": {"input_tokens": 30, "output_tokens": 4}}, headers={"x-ratelimit-remaining-requests": "99"}
    )
    asked = {"model": "m", "input": "hello"}
    calls(place, *[(READ, {})] * 3, ("stripe_create_refund", {"charge": "ch_1"}), ("openai_create_response", asked))
    return place


def test_usage_is_shown_by_connection_with_what_is_left(used: Place, owner: CommandLine) -> None:
    shown = owner("usage", "--json").json
    stripe, openai = shown["rows"]
    assert (shown["by"], shown["until"]) == ("connection", None)
    assert {name: stripe[name] for name in ("connection", "account", "ownership", "calls", "held", "tokens_in")} == {
        "connection": "stripe",
        "account": "acct_test",
        "ownership": "own",
        "calls": 3,
        "held": 1,
        "tokens_in": None,
    }
    assert (openai["tokens_in"], openai["tokens_out"], openai["cost"]) == (30, 4, {})
    assert openai["quota_left"]["requests"]["left"] == 99
    ran = owner("usage")
    assert [line.split()[:4] for line in ran.out.splitlines()[1:3]] == [
        ["stripe", "acct_test", "own", "3"],
        ["openai", "acct_test", "own", "1"],
    ]
    assert "Left of openai (acct_test): 99 requests at" in ran.out
    assert "what the providers reported" in ran.err


@pytest.mark.parametrize("by", ["org", "member", "agent", "connection", "tool", "day"])
def test_every_way_to_look_at_it_gives_the_same_whole(used: Place, owner: CommandLine, by: str) -> None:
    rows = owner("usage", "--by", by, "--json").json["rows"]
    assert (sum(row["calls"] for row in rows), sum(row["held"] for row in rows)) == (4, 1)
    named = {"member": "alice", "agent": "reconciler", "tool": READ, "day": today(), "connection": "stripe"}
    assert by == "org" or named[by] in {row[by] for row in rows}
    assert owner("usage", "--by", by).code == 0


def test_a_member_sees_their_own_agents_alone(used: Place, owner: CommandLine) -> None:
    carol = used.member("carol")
    used.owner, alice = carol, used.owner
    used.agent("carols")
    used.owner = alice
    calls(used, (READ, {}), ("openai_create_response", {"model": "m", "input": "hello"}), agent="carols")
    ran = owner("usage", "--by", "agent", "--json", "--as", "carol")
    assert [row["agent"] for row in ran.json["rows"]] == ["carols"]
    assert "reconciler" not in ran.out
    assert "Of the agents that act for carol" in ran.err
    connections = owner("usage", "--json", "--as", "carol").json["rows"]
    left = {row["connection"]: row["quota_left"] for row in connections}
    assert left == {"stripe": {}, "openai": {}}, "how much is left tells of everybody's calls"
    assert owner("usage", "--recount", "--as", "carol").code == 1
    assert {row["agent"] for row in owner("usage", "--by", "agent", "--json").json["rows"]} == {"reconciler", "carols"}


def test_the_operator_sees_every_org(used: Place, owner: CommandLine) -> None:
    other = add_org(used.installation, "globex")
    other.agent()
    rows = owner("usage", "--all-orgs", "--by", "org", "--json").json["rows"]
    assert [(row["org"], row["calls"]) for row in rows] == [("acme", 4)]
    assert owner("usage", "--org", "globex", "--as", "alice").out == ""
    assert owner("usage", "--all-orgs", "--recount").code == 2


def test_csv_is_one_table_in_which_nothing_is_a_formula(used: Place, owner: CommandLine) -> None:
    used.database.write_now(
        lambda rows: rows.execute("UPDATE usage_day SET account = '=cmd()\"\n' WHERE tool = ?", (READ,))
    )
    out = owner("usage", "--csv").out
    heads, *rows = list(csv.reader(io.StringIO(out)))
    assert {len(row) for row in rows} == {len(heads)}
    by_name = [dict(zip(heads, row, strict=True)) for row in rows]
    hostile = next(row for row in by_name if row["connection"] == "stripe" and row["calls"] == "3")
    assert hostile["account"] == '"=cmd()\\"\\n"'
    assert out.count("\n") == len(rows) + 1
    assert all(cell[:1] not in "=+-@" or cell == "" for row in rows for cell in row)


def test_a_hostile_name_is_text_in_every_form(used: Place, owner: CommandLine) -> None:
    used.database.write_now(
        lambda rows: rows.execute("UPDATE usage_day SET account = ?", ("[bold]\x1b[31m\u202ered\n",))
    )
    for words in ((), ("--csv",), ("--chart", "calls"), ("--json",)):
        ran = owner("usage", *words)
        assert ran.code == 0
        assert "\x1b" not in ran.out
        assert "\u202e" not in ran.out
        assert "[bold]" in ran.out


def test_a_chart_is_plain_text_where_nobody_looks_at_a_terminal(used: Place, owner: CommandLine) -> None:
    lines = owner("usage", "--chart", "calls").out.splitlines()
    assert [line.split()[0] for line in lines] == ["stripe", "openai"]
    assert lines[0].endswith(" 3")
    assert lines[0].count("█") + lines[0].count("#") > 2 * (lines[1].count("█") + lines[1].count("#")) > 0
    assert all(cell_len(line) <= 80 for line in lines)
    assert owner("usage", "--chart", "cost").code == 2


def test_days_on_which_nothing_was_called_are_in_a_chart_of_days(used: Place, owner: CommandLine) -> None:
    earlier = day_of(now_ms() - 3 * 86_400_000)
    used.database.write_now(
        lambda rows: rows.execute("UPDATE usage_day SET day = ? WHERE connection = 'openai'", (earlier,))
    )
    lines = owner("usage", "--by", "day", "--chart", "calls").out.splitlines()
    assert [line.split()[-1] for line in lines] == ["1", "0", "0", "3"]
    assert (lines[0][:10], lines[3][:10]) == (earlier, today())
    assert owner("usage", "--by", "day", "--chart", "calls", "--since", today()).out.splitlines()[0][:10] == today()


@pytest.mark.parametrize("width", [20, 40, 79, 200])
def test_bars_are_never_wider_than_they_may_be(width: int) -> None:
    rows = [("a", 1, "1 ms"), ("使用者" * 40, 10**9, "1000000000 ms"), ("", 0, "0 ms"), ("e\u0301" * 9, 5, "5 ms")]
    lines = bars(rows, width=width)
    assert lines[::2] == [name for name, _, _ in rows], "a name is whole, and above its bar where there is no room"
    drawn = lines[1::2]
    assert all(cell_len(line) <= width for line in drawn)
    assert ["█" in line for line in drawn] == [True, True, False, True]
    assert [line.split()[-2] for line in drawn] == ["1", "1000000000", "0", "5"]
    assert bars([], width=width) == []


@pytest.mark.parametrize("width", [80, None])
def test_a_long_name_stands_whole_before_its_bar(width: int | None) -> None:
    rows = [("stripe_list_balance_transactions_of_yesterday own", 7, "7"), ("use", 1, "1")]
    long, short = bars(rows, width=width)
    assert long.startswith(f"{rows[0][0]}  ██████████")
    assert (cell_len(long), short.split()) == (80, ["use", "███", "1"])
    (piped,) = bars([("x" * 200, 7, "7")], width=None)
    assert piped == f"{'x' * 200}  ██████████ 7"


def test_a_recount_says_whether_the_rows_are_what_the_log_gives(used: Place, owner: CommandLine) -> None:
    ran = owner("usage", "--recount")
    assert (ran.code, "every row of usage is what the log gives" in ran.out) == (0, True)
    used.database.write_now(lambda rows: rows.execute("UPDATE usage_day SET calls = calls + 1 WHERE tool = ?", (READ,)))
    ran = owner("usage", "--recount", "--since", today())
    assert (ran.code, ran.out) == (1, f"{today()} reconciler {READ}: calls 4 and by the log 3\n")
    assert f"1 row of usage, from {today()} on, is not what" in " ".join(ran.err.split())
    told = json.loads(owner("usage", "--recount", "--json", "--since", today()).out)
    (one,) = told["differences"]
    assert (told["since"], one["day"], one["tool"], one["ownership"]) == (today(), today(), READ, "own")
    assert (one["kept"]["calls"], one["counted"]["calls"], one["counted"]["cost"]) == (4, 3, {})
    listed = used.events("audit.listed")
    assert [entry["selection"] for entry in listed[1:]] == [{"usage_recounted_since": today()}] * 2
    assert {(entry["by"], entry["known_by"]) for entry in listed} == {("alice", "os user")}


def test_a_row_that_is_missing_is_told_as_one_that_is_too_many(used: Place, owner: CommandLine) -> None:
    execute(used, "UPDATE usage_day SET tool = 'forged', account = '' WHERE tool = ?", READ)
    execute(
        used, "INSERT INTO usage_cost SELECT org, day, line, 'USD', 2500000000 FROM usage_day WHERE tool = 'forged'"
    )
    execute(used, "INSERT INTO usage_cost SELECT org, day, line, 'EUR', 0 FROM usage_day WHERE tool = 'forged'")
    ran = owner("usage", "--recount")
    forged, missing = sorted(ran.out.splitlines())
    assert forged.startswith(f"{today()} reconciler forged: calls 3 and by the log 0; succeeded 3 and by the log 0; ")
    assert forged.endswith("cost 2.5 USD and by the log 0 USD")
    assert "EUR" not in forged, "0 is what the log says as well"
    assert missing.startswith(f"{today()} reconciler {READ}: calls 0 and by the log 3; succeeded 0 and by the log 3; ")
    assert "2 rows of usage" in ran.err
    assert "are not what the log gives" in " ".join(ran.err.split())
    rows = {row["tool"]: row for row in json.loads(owner("usage", "--recount", "--json").out)["differences"]}
    assert (rows["forged"]["account"], rows["forged"]["kept"]["cost"]) == (None, {"USD": 2.5})
    used.unlock_the_log()
    execute(used, "DELETE FROM audit_entry WHERE seq = 1")
    ran = owner("usage", "--recount", "--since", today())
    assert (ran.code, "The log begins later than that was asked for." in ran.err) == (0, True)
    ran = owner("usage", "--recount", "--json", "--since", today())
    tomorrow = day_of(now_ms() + 86_400_000)
    assert (ran.json, ran.err) == ({"since": tomorrow, "differences": []}, "")


def test_what_makes_no_sense_is_refused(used: Place, owner: CommandLine) -> None:
    for words in (
        ("--by", "colour"),
        ("--csv", "--json"),
        ("--chart", "calls", "--csv"),
        ("--since", "yesterday"),
        ("--all-orgs", "--org", "acme"),
    ):
        ran = owner("usage", *words)
        assert (ran.code, ran.out) == (2, ""), words


def test_a_budget_is_set_listed_changed_and_removed(used: Place, owner: CommandLine) -> None:
    made = owner("budget", "create", "--calls", "5", "--per", "day", "--agent", "reconciler", "--json").json
    assert (made["most"], made["measure"], made["warn"], made["agent"], made["connection"]) == (
        *(5, "calls", 80, "reconciler", None),
    )
    cost = owner("budget", "create", "--cost", "2.5 usd", "--per", "month", "--connection", "openai", "--json").json
    assert (cost["most"], cost["unit"]) == (2.5, "USD")
    calls(used, *[(READ, {})] * 4)
    first, second = owner("budget", "list", "--json").json
    assert (first["used"], first["status"], second["used"], second["status"]) == (4, "near end", 0, "ok")
    assert ["4", "near", "end"] in [line.split()[-3:] for line in owner("budget", "list").out.splitlines()]
    ran = owner("doctor")
    assert f"keyleash budget change {made['id']}" in " ".join(ran.out.split())
    assert owner("budget", "change", made["id"], "--calls", "4").code == 0
    assert owner("budget", "list", "--json").json[0]["status"] == "used up"
    assert "calls wait for an approver" in " ".join(owner("doctor").out.split())
    assert owner("budget", "change", made["id"], "--tokens", "4").code == 1
    assert owner("budget", "change", made["id"], "--warn", "50").code == 0
    assert owner("budget", "change", made["id"]).code == 2
    assert owner("budget", "remove", made["id"]).code == 1, "it asks, and there is nobody"
    assert len(owner("budget", "list", "--json").json) == 2
    assert owner("budget", "remove", made["id"], "--yes").code == 0
    assert [one["id"] for one in owner("budget", "list", "--json").json] == [cost["id"]]
    assert owner("budget", "remove", "bud_none", "--yes").code == 1


def test_how_much_others_use_of_a_budget_is_not_shown_to_a_member(used: Place, owner: CommandLine) -> None:
    carol = used.member("carol")
    used.owner, alice = carol, used.owner
    used.agent("carols")
    used.owner = alice
    for whose in ((), ("--agent", "reconciler"), ("--agent", "carols")):
        owner("budget", "create", "--calls", "977", "--per", "month", *whose)
    calls(used, (READ, {}), (READ, {}), (READ, {}))
    calls(used, (READ, {}), agent="carols")
    seen = {one["agent"]: one["used"] for one in owner("budget", "list", "--json", "--as", "carol").json}
    assert seen == {None: None, "reconciler": None, "carols": 1}
    shown = owner("budget", "list", "--as", "carol").out.splitlines()
    assert [line.split()[-2:] for line in shown[1:]] == [["calls/month", "ok"], ["calls/month", "ok"], ["1", "ok"]]
    every = {one["agent"]: one["used"] for one in owner("budget", "list", "--json").json}
    assert every == {None: 4, "reconciler": 3, "carols": 1}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--per day", 2, "Say how much"),
        ("--per day --calls 1 --tokens 1", 2, "Say how much"),
        ("--per day --cost 5", 2, "50USD"),
        ("--per day --cost 5$", 2, "50USD"),
        ("--per day --cost 1e9USD", 2, "50USD"),
        ("--per week --calls 1", 1, "in an hour, a day, a month"),
        ("--per day --calls 0", 1, "from 1 to"),
        ("--per day --calls 1 --warn 0", 1, "percent from 1 to 100"),
        ("--per day --calls 1 --agent nobody", 1, "no agent called"),
        ("--per day --calls 1 --connection nothing", 1, "no connection"),
    ],
)
def test_what_can_be_no_budget_is_refused_with_the_way_to_mend_it(
    place: Place, owner: CommandLine, words: str, code: int, said: str
) -> None:
    ran = owner("budget", "create", *words.split())
    assert (ran.code, ran.out) == (code, "")
    assert said in " ".join(ran.err.split())
    assert owner("budget", "list", "--json").json == []
    assert place.events("budget.created") == []


def test_a_limit_is_set_shown_and_taken_back(place: Place, owner: CommandLine) -> None:
    assert "no limit" in owner("connection", "limit", "stripe").out
    assert place.events("connection.changed") == []
    shown = owner("connection", "limit", "stripe", "--concurrent", "3", "--per-minute", "60", "--json").json
    assert (shown["concurrent"], shown["per_minute"]) == (3, 60)
    assert place.database.query(lambda rows: dict(paces_in(rows, place.org))) == {"stripe": Pace(3, 60)}
    assert owner("connection", "limit", "stripe", "--none", "--json").json["concurrent"] is None
    assert place.database.query(lambda rows: dict(paces_in(rows, place.org))) == {}
    assert owner("connection", "limit", "stripe", "--none", "--concurrent", "3").code == 2
    assert owner("connection", "limit", "stripe", "--concurrent", "0").code == 2
    assert owner("connection", "limit", "nothing").code == 1
    assert len(place.events("connection.changed")) == 2


def test_no_secret_is_in_what_these_commands_print(used: Place, owner: CommandLine, tmp_path: Path) -> None:
    said = [owner(*words) for words in (("usage",), ("usage", "--json"), ("usage", "--csv"), ("budget", "list"))]
    assert SECRET not in str(said)
    assert system_user() not in str(said)


def test_a_budget_in_which_nothing_would_count_says_so(used: Place, owner: CommandLine) -> None:
    create = ("budget", "create", "--per", "day")
    silent = "Nothing counts in this budget yet"
    assert silent in owner(*create, "--cost", "50USD", "--connection", "openai").err, "it reports tokens and no cost"
    assert silent in owner(*create, "--tokens", "9", "--connection", "stripe").err
    for counts in (("--tokens", "9"), ("--tokens", "9", "--connection", "openai"), ("--calls", "9")):
        ran = owner(*create, *counts)
        assert (ran.code, silent in ran.err) == (0, False), counts
