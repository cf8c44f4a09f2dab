"""Every decided call is kept once, sealed, for as long as it was said; a draft is tried on them, and calls nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from server.app import running
from server.approval import Decision
from server.call import Parts, call
from server.clock import now_ms
from server.database import Rows
from server.errors import ApprovalRequired, BadArguments, NoSuchTool, Refused
from server.identity import Narrowing, create_agent, remove_agent
from server.recorded import BATCH, DAY_MS, LONGEST, Recorded, recorded, sweep, sweeping
from server.rotation import rotate_org
from server.rules import rules_of
from server.settings import SettingsProblem, read_settings
from tests.agents import Nobody
from tests.commandline import CommandLine
from tests.installed import Place, add_org, files_holding
from tests.upstream import Upstream

pytestmark = pytest.mark.anyio
LONG = "x" * LONGEST
REFUND = {"charge": "ch_kestrel_over_the_pier", "amount": 9000}


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


def kept(place: Place) -> list[Recorded]:
    return list(recorded(place.installation.database, place.installation.vault, place.org, since=0))


# -- what is kept


@pytest.mark.both_databases
async def test_what_is_allowed_held_and_refused_by_a_rule_is_kept_once_each(place: Place, parts: Parts) -> None:
    place.rule(
        who="everyone",
        tools=["stripe.create_refund"],
        when=[{"argument": "amount", "op": "max", "value": 1}],
        then="deny",
    )
    assert (await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())).ok
    for _ in range(2):  # the second joins the first
        with pytest.raises(ApprovalRequired):
            await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
    with pytest.raises(Refused):
        await call(parts, place.caller(), "stripe_create_refund", {**REFUND, "amount": 1}, Nobody())
    assert [(one.tool, one.ruling, one.effect) for one in kept(place)] == [
        ("list_charges", "allow", "read"),
        ("create_refund", "confirm", "spend"),
        ("create_refund", "deny", "spend"),
    ]
    first = kept(place)[1]
    assert first.arguments == REFUND
    assert (first.agent_name, first.member, first.roles) == ("reconciler", place.owner.id, ("owner",))
    assert first.rules == ("preset:default#2",)
    assert abs(first.at - now_ms()) < 60_000


async def test_an_approved_call_is_not_kept_again_when_it_is_carried_out(place: Place, parts: Parts) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
    approvals = place.installation.approvals
    record = approvals.find(place.org, held.value.approval)
    assert record is not None
    place.database.write_now(lambda rows: approvals.decide(rows, record, Decision.APPROVE, place.actor()))
    await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
    assert len(place.events("call.attempt")) == 1
    assert [one.ruling for one in kept(place)] == ["confirm"]


async def test_what_rules_did_not_decide_is_not_kept(place: Place, parts: Parts) -> None:
    with pytest.raises(BadArguments):
        await call(parts, place.caller(), "stripe_create_refund", {"chrage": "x"}, Nobody())
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller(), "stripe_nosuch", {}, Nobody())
    place.database.write_now(
        lambda rows: create_agent(
            rows, place.org, name="narrow", member=place.owner, by="x", narrowing=Narrowing(effects=("read",))
        )
    )
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller("narrow"), "stripe_create_refund", REFUND, Nobody())
    assert kept(place) == []


async def test_a_hidden_tool_that_was_called_is_kept_as_denied(place: Place, parts: Parts) -> None:
    place.agent("robot", standalone=True)
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller("robot"), "stripe_create_refund", REFUND, Nobody())
    (one,) = kept(place)
    assert (one.ruling, one.arguments, one.member) == ("deny", REFUND, None)
    assert one.subject.standalone


async def test_arguments_stand_in_no_file_in_clear_and_open_for_their_own_row_only(place: Place, parts: Parts) -> None:
    with pytest.raises(ApprovalRequired):  # of an argument that its file does not let be read in the log
        await call(parts, place.caller(), "stripe_list_customers", {"email": "kestrel_over_the_pier"}, Nobody())
    await call(parts, place.caller(), "stripe_list_charges", {"limit": 3}, Nobody())
    assert files_holding(place.home, b"kestrel_over_the_pier") == []

    def swap(rows: Rows) -> None:
        (one, first), (two, second) = rows.execute(
            "SELECT id, sealed_arguments FROM recorded_call ORDER BY id"
        ).fetchall()
        for name, sealed in ((one, second), (two, first)):
            rows.execute("UPDATE recorded_call SET sealed_arguments = ? WHERE id = ?", (sealed, name))

    place.database.write_now(swap)
    assert [(each.arguments, each.damaged) for each in kept(place)] == [(None, True), (None, True)]


async def test_long_arguments_are_not_kept_and_the_call_is(place: Place, parts: Parts) -> None:
    place.agent("robot", standalone=True)
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller("robot"), "stripe_create_refund", {"charge": LONG}, Nobody())
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    await call(parts, place.caller(), "stripe_create_refund", {"charge": LONG}, Nobody())
    assert [(one.ruling, one.arguments, one.damaged) for one in kept(place)] == [
        ("deny", None, False),
        ("allow", None, False),
    ]


@pytest.mark.both_databases
async def test_a_rotation_of_the_orgs_key_takes_them_along(place: Place, parts: Parts) -> None:
    await call(parts, place.caller(), "stripe_list_charges", {"limit": 3}, Nobody())
    rotate_org(place.database, place.installation.vault, place.org, by="alice")
    assert [one.arguments for one in kept(place)] == [{"limit": 3}]
    ((sealed,),) = place.database.read("SELECT sealed_arguments FROM recorded_call")
    assert int.from_bytes(sealed[:4], "big") == 2


async def test_of_another_org_nothing_is_read_or_swept(place: Place, parts: Parts, upstream: Upstream) -> None:
    other = add_org(place.installation, "globex")
    other.connect(upstream.url)
    other.agent()
    await call(parts, other.caller(), "stripe_list_charges", {}, Nobody())
    assert kept(place) == []
    place.database.write_now(lambda rows: rows.execute("UPDATE recorded_call SET id = 'cal_00000000001a'"))
    assert sweep(place.installation.database, place.org, 1) == 0
    aged(place, 2)
    place.database.write_now(lambda rows: rows.execute("UPDATE recorded_call SET id = 'cal_00000000001a'"))
    assert sweep(place.installation.database, place.org, 1) == 1
    assert len(kept(other)) == 1


# -- for how long


def aged(place: Place, days: float, count: int = 1) -> None:
    """Rows of calls from so many days ago."""
    at = int(now_ms() - days * DAY_MS)

    def insert(rows: Rows) -> None:
        for n in range(count):
            rows.execute(
                "INSERT INTO recorded_call (org, id, at, agent, agent_name, roles, groups, connection, tool, effect, "
                "ruling, rules) VALUES (?, ?, ?, 'agt', 'gone', '[]', '[]', 'stripe', 'list_charges', 'read', "
                "'allow', '[]')",
                (place.org, f"cal_{at:011x}{n:012x}", at),
            )

    place.database.write_now(insert)


@pytest.mark.both_databases
async def test_a_running_server_sweeps_what_is_older_than_the_retention(place: Place) -> None:
    aged(place, 30.1, BATCH + 2)
    aged(place, 29.9)
    async with sweeping(place.installation.database, 30):
        await anyio.wait_all_tasks_blocked()  # it has begun, and leaving the block lets it end
    assert len(kept(place)) == 1
    aged(place, 30.1)
    async with running(place.installation):
        await anyio.wait_all_tasks_blocked()
    assert len(kept(place)) == 1


@pytest.mark.parametrize("wrong", ["0", "366", "-1", "1.5", "many", "", "9999"])
def test_a_retention_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("KEYLEASH_KEEP_DAYS", wrong)
    with pytest.raises(SettingsProblem, match="from 1 to 365"):
        read_settings()


def test_the_retention_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings().keep_days == 30
    monkeypatch.setenv("KEYLEASH_KEEP_DAYS", "365")
    assert read_settings().keep_days == 365


# -- replay


@pytest.fixture
async def history(place: Place, parts: Parts) -> None:
    """Two reads, three held refunds, and one call of a hidden tool."""
    place.agent("robot", standalone=True)
    for limit in (1, 2):
        await call(parts, place.caller(), "stripe_list_charges", {"limit": limit}, Nobody())
    for amount in (10, 20, 9000):
        with pytest.raises(ApprovalRequired):
            await call(parts, place.caller(), "stripe_create_refund", {"charge": "ch_1", "amount": amount}, Nobody())
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller("robot"), "stripe_list_charges", {}, Nobody())


DRAFT = """\
preset: default
rules:
  - {id: small, who: acting, tools: [stripe.create_refund], when: [{argument: amount, op: max, value: 50}], then: allow}
  - {id: robots, who: agent:robot, tools: [stripe.list_*], then: allow}
"""


@pytest.fixture
def draft(tmp_path: Path) -> str:
    return written(str(tmp_path / "draft.yaml"), DRAFT)


def written(file: str, text: str) -> str:
    Path(file).write_text(text, encoding="utf-8")
    return file


@pytest.mark.usefixtures("history")
@pytest.mark.both_databases
async def test_a_draft_says_which_calls_would_flip_and_calls_nothing(
    owner: CommandLine, place: Place, upstream: Upstream, draft: str
) -> None:
    sent, entries = len(upstream.requests), len(place.events())
    ran = owner("policy", "replay", draft, "--since", "1d", "--examples", "1", "--json")
    assert ran.code == 0, ran.err
    told = ran.json
    assert (told["calls"], told["unchanged"], told["not_judged"]) == (6, 3, [])
    assert [(f["tool"], f["from"], f["to"], f["rules"], f["count"]) for f in told["flips"]] == [
        ("stripe.create_refund", "confirm", "allow", ["small"], 2),
        ("stripe.list_charges", "deny", "allow", ["robots"], 1),
    ]
    (example,) = told["flips"][0]["examples"]
    assert (example["agent"], example["arguments"]) == ("reconciler", {"charge": "ch_1", "amount": 10})
    assert len(upstream.requests) == sent
    (entry,) = place.events("rules.replayed")
    assert (entry["by"], len(place.events())) == ("alice", entries + 1)
    assert rules_of(place.database, place.org) == []
    shown = owner("policy", "replay", draft)
    assert "stripe.create_refund" in shown.out
    assert '"amount": 10' in shown.out


@pytest.mark.usefixtures("history")
async def test_what_the_rules_of_now_say_already_is_not_the_drafts_doing(
    owner: CommandLine, place: Place, draft: str
) -> None:
    place.rule(who="agent:" + place.installation.directory.agent(place.org, "robot").id, tools=["*"], then="allow")
    flips = owner("policy", "replay", draft, "--json").json["flips"]
    assert {f["tool"]: f["so_by_the_rules_of_now"] for f in flips} == {
        "stripe.create_refund": 0,
        "stripe.list_charges": 1,
    }


@pytest.mark.usefixtures("history")
async def test_what_cannot_be_judged_is_said_with_the_reason(owner: CommandLine, place: Place, draft: str) -> None:
    def change(rows: Rows) -> None:
        ids = [row[0] for row in rows.execute("SELECT id FROM recorded_call ORDER BY id").fetchall()]
        rows.execute("UPDATE recorded_call SET tool = 'gone' WHERE id = ?", (ids[0],))
        rows.execute("UPDATE recorded_call SET effect = 'grant' WHERE id = ?", (ids[1],))
        rows.execute("UPDATE recorded_call SET sealed_arguments = NULL WHERE id = ?", (ids[2],))
        rows.execute("UPDATE recorded_call SET sealed_arguments = ? WHERE id = ?", (b"\x00\x00\x00\x01\xff", ids[3]))
        rows.execute("UPDATE recorded_call SET tool = 'get_balance' WHERE id = ?", (ids[4],))
        rows.execute("UPDATE recorded_call SET effect = 'read' WHERE id = ?", (ids[4],))

    place.database.write_now(change)
    told = owner("policy", "replay", draft, "--json").json
    assert {one["because"]: (one["count"], one["tools"]) for one in told["not_judged"]} == {
        "the tool is gone": (1, ["stripe.gone"]),
        "the tool's definition has changed: its effect was grant": (1, ["stripe.list_charges"]),
        "its arguments were too long to keep": (1, ["stripe.create_refund"]),
        "its arguments cannot be opened": (1, ["stripe.create_refund"]),
        "its arguments do not fit the tool": (1, ["stripe.get_balance"]),
    }
    assert [f["count"] for f in told["flips"]] == [1]
    assert "cannot be judged, the tool is gone: stripe.gone" in owner("policy", "replay", draft).err


@pytest.mark.usefixtures("history")
async def test_callers_are_judged_as_they_were_then(owner: CommandLine, place: Place, draft: str) -> None:
    robot = place.installation.directory.agent(place.org, "robot")

    def change(rows: Rows) -> None:
        rows.execute("UPDATE member SET roles = '[\"owner\", \"auditor\"]' WHERE name = 'alice'")
        remove_agent(rows, place.org, robot, by="alice")

    place.database.write_now(change)
    written(draft, "preset: default\nrules:\n  - {id: a, who: role:auditor, tools: ['*'], then: deny}\n")
    told = owner("policy", "replay", draft, "--json").json
    assert told["flips"] == []
    assert told["by_roles_of_then"] == {"agent_removed": 1, "roles_changed_since": 5}


@pytest.mark.usefixtures("history")
async def test_a_replay_sweeps_first_and_looks_no_further_back_than_it_is_told(
    owner: CommandLine, place: Place, draft: str
) -> None:
    aged(place, 31)
    aged(place, 2)
    assert owner("policy", "replay", draft, "--since", "1d", "--json").json["calls"] == 6
    assert owner("policy", "replay", draft, "--since", "60d", "--json").json["calls"] == 7
    assert owner("policy", "replay", draft, "--since", "soon").code == 2


@pytest.mark.usefixtures("history")
async def test_a_draft_that_is_wrong_is_refused_and_not_on_record(owner: CommandLine, place: Place, draft: str) -> None:
    written(draft, DRAFT.replace("agent:robot", "agent:nobody"))
    ran = owner("policy", "replay", draft)
    assert (ran.code, ran.out) == (1, "")
    assert ":4: There is no agent called 'nobody'" in ran.err
    assert place.events("rules.replayed") == []
