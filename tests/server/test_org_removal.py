"""An org that is removed takes everything with it but its log, which still verifies; whoever worked for it stops."""

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from sqlmodel import SQLModel

import server.tables
import vault.tables
from connectors.definition import Pace
from server import budgets, usage
from server.app import running
from server.approval import Decision
from server.approval.unknown import Look
from server.approval.work import Plan, covered
from server.call import Outcome, Parts, call
from server.clock import now_ms
from server.connections import connection_named, remove
from server.database import Rows
from server.ending import OF_AN_ORG
from server.erasure import attempt
from server.errors import ApprovalRequired, CallRefused, NoLongerValid, Question
from server.identity import IdentityProblem, Org, remove_org, system_user
from server.looking import claim
from server.pacing import count, set_pace
from server.policy import Condition, Ruling, Verdict
from server.rotation import rotate_org
from tests.agents import Nobody, Person, connected
from tests.commandline import CommandLine
from tests.consenting import noted
from tests.installed import SECRET, Place, add_org
from tests.leaks import leak
from tests.offering import THEIRS, offered_by_operator
from tests.pinning import READ, held
from tests.processes import holding
from tests.remnants import remnants, sealed_of
from tests.serving import NO_TLS, serving
from tests.telling import hooked
from tests.upstream import Answer, Upstream
from vault import VaultError

assert server.tables, vault.tables

REFUND = {"charge": "ch_1", "amount": 1200}
LEAVES = {"audit_entry", "audit_key", "audit_stub", "erasure"}
"""The tables by org that a removal leaves alone."""


def the_org(place: Place) -> Org:
    return next(org for org in place.installation.directory.orgs() if org.id == place.org)


def take_away(place: Place) -> None:
    org = the_org(place)
    place.database.write_now(lambda rows: remove_org(rows, org, by="the operator"))


def rows_of(place: Place) -> dict[str, int]:
    """How many rows the org has in each table by org that there is."""
    tables = [name for name, table in SQLModel.metadata.tables.items() if "org" in table.columns]
    read = place.database.read
    return {
        table: read(f"SELECT COUNT(*) FROM {table} WHERE org = ?", (place.org,))[0][0]
        for table in sorted(tables)
        if table not in LEAVES
    }


async def full(place: Place, parts: Parts, upstream: Upstream) -> None:
    """Give the org something in every table: calls held and lost, grants, work, a rule, a channel, people, agents."""
    chat = place.connect(upstream.url, connector="slack", name="chat")
    noted(place, chat)
    held(place, chat, READ, None)
    place.database.write_now(lambda rows: claim(rows, chat, 1))
    hooked(place, "http://127.0.0.1:9/nobody/listens/there")
    place.member("bob", ("auditor",))
    place.agent("robot", standalone=True)
    place.rule(who="everyone", tools=["stripe.get_balance"], then="allow")
    upstream.answer = lambda request: Answer({"ok": True, "ts": "1", "id": "re_1"})
    message = {"channel": "C1", "text": "kestrel over the pier"}
    assert (await call(parts, place.caller(), "chat_post_message", message, Person(Decision.APPROVE_HOUR))).ok
    with pytest.raises(ApprovalRequired):
        await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
    prepare_work(place)
    place.database.write_now(lambda rows: count_in_every_way(rows, place))
    look = Look(0, {1: {"tool": "chat_post_message", "effect": "send", "at": "2026-11-26T00:00:00.000Z"}}, 1, 1)
    approvals, database = place.installation.approvals, place.database
    assert database.write_now(lambda rows: approvals.unknown.write_down(rows, place.org, look, now_ms()))
    rotate_org(place.database, place.installation.vault, place.org, by="alice")  # keeps derived keys
    assert attempt(place.database) == []


def count_in_every_way(rows: Rows, place: Place) -> None:
    """A budget, a pace and a call in its minute, and what a provider says of cost and of what is left."""
    budgets.create(
        rows, place.org, agent="", connection="", measure="calls", unit="", per="day", most=9, warn=80, by="alice"
    )
    set_pace(rows, place.org, "stripe", Pace(per_minute=9), by="alice")
    count(rows, place.org, "stripe", Pace(per_minute=9))
    entry = {"agent": "reconciler", "connection": "stripe", "tool": "stripe_get_balance"}
    slot = usage.attempted(rows, place.org, now_ms(), entry)
    facts = {"usage": {"cost": 1, "cost_unit": "USD"}, "quota": {"requests": 9}}
    usage.ended(rows, place.org, now_ms(), slot, facts, outcome="succeeded")


def prepare_work(place: Place) -> None:
    """Work that waits for a decision."""
    tools = covered(place.installation.workspaces.of(place.caller()), ["stripe_create_refund"])
    bounds = (Condition("amount", "max", 5),)
    work = Plan("monday refunds", tools, bounds, f"agent:{place.caller().agent}", "an agent", 3, now_ms() + 60_000)
    approvals, verdict = place.installation.approvals, Verdict(Ruling.CONFIRM, "")
    place.database.write_now(
        lambda rows: approvals.prepare(
            rows, place.org, work, place.actor(), verdict=verdict, prompt="kestrels over the pier"
        )
    )


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


@pytest.fixture
async def whole(place: Place, parts: Parts, upstream: Upstream) -> Place:
    await full(place, parts, upstream)
    offered_by_operator(place, upstream.url)
    return place


# -- what goes, and what stays


def test_every_table_by_org_is_one_that_goes_or_one_that_is_left_alone() -> None:
    by_org = {name for name, table in SQLModel.metadata.tables.items() if "org" in table.columns}
    assert set(OF_AN_ORG) | LEAVES == by_org
    assert not set(OF_AN_ORG) & LEAVES


@pytest.mark.anyio
async def test_nothing_of_the_org_is_left_but_its_log_and_other_orgs_keep_everything(
    whole: Place, owner: CommandLine, upstream: Upstream
) -> None:
    other = add_org(whole.installation, "globex")
    other.connect(upstream.url, secret="rk_test_of_globex_0123456789")
    other.agent()
    theirs = rows_of(other)
    assert all(rows_of(whole).values()), "a table by org is empty, and its removal not tested"
    sealed = sealed_of(whole.database, whole.org)
    count = len(whole.events())
    ran = owner("org", "remove", "acme", "--yes", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["erased"] is True
    assert ran.json["had"] == {
        "members": 2,
        "agents": 2,
        "connections": 3,
        "rules": 1,
        "approvals": 3,
        "grants": 1,
        "channels": 1,
        "keys": 1,
    }
    assert not any(rows_of(whole).values())
    assert remnants(whole.home, sealed) == []
    assert rows_of(other) == theirs
    assert len(whole.events()) > count
    async with running(whole.installation) as parts:
        assert (await call(parts, other.caller(), "stripe_get_balance", {}, Nobody())).ok is False
    assert upstream.requests[-1].headers["authorization"] == "Bearer rk_test_of_globex_0123456789"


@pytest.mark.anyio
async def test_no_secret_and_no_prompt_is_in_the_files(whole: Place, owner: CommandLine) -> None:
    assert owner("org", "remove", "acme", "--yes").code == 0
    whole.installation.close()
    for path in whole.home.rglob("*"):
        if path.is_file():
            for canary in (SECRET, THEIRS, "kestrel over the pier"):
                assert leak(path.read_bytes(), canary, layers=2) is None, path


@pytest.mark.anyio
async def test_what_ended_is_on_record_and_the_removal_is_the_last_administrative_entry(
    whole: Place, owner: CommandLine
) -> None:
    before = len(whole.events())
    assert owner("org", "remove", "acme", "--yes").code == 0
    made, *added = whole.events()[before:]
    assert made["event"] == "audit.key_made", "the log was never signed before"
    events = [entry["event"] for entry in added]
    ended = ["approval.cancelled"] * 2 + ["grant.revoked"] * 2
    assert events == [*ended, "org.removed", "erasure.completed"]
    gone, erased = added[-2:]
    assert (gone["name"], gone["had"]["agents"]) == ("acme", 2)
    assert gone["by"] == added[0]["by"] == f"the operator (system user {system_user()})"
    assert (erased["erased"], erased["name"]) == ("org", "acme")


@pytest.mark.anyio
async def test_the_values_in_its_log_can_be_searched_by_nobody_any_more(whole: Place, owner: CommandLine) -> None:
    vault = whole.installation.vault
    database = whole.database
    assert len(database.query(lambda rows: vault.derive(rows, whole.org, "audit-values"))) == 32
    assert owner("org", "remove", "acme", "--yes").code == 0
    with pytest.raises(VaultError):
        database.query(lambda rows: vault.derive(rows, whole.org, "audit-values"))
    hashes = [value for entry in whole.events("call.attempt") for value in entry["arguments"].values()]
    assert hashes
    assert all(value.startswith("h1:") for value in hashes)


def test_removing_is_asked_about_and_says_what_goes(place: Place, owner: CommandLine) -> None:
    with owner.at_terminal("org", "remove", "acme") as terminal:
        asked = terminal.until("[y/N]")
        terminal.type("n\n")
        assert terminal.end() == 1
    assert "1 member, 1 agent, 1 connection, 1 key" in asked
    ran = owner.alone("org", "remove", "acme")
    assert ran.code == 1
    assert "--yes" in ran.err
    assert the_org(place).name == "acme"
    assert place.events("org.removed") == []


def test_only_the_operator_removes_an_org(place: Place, owner: CommandLine) -> None:
    key = owner.home / "keys" / "root.key"
    kept = key.read_bytes()
    key.unlink()
    ran = owner("org", "remove", "acme", "--yes")
    assert ran.code == 1
    assert "Only the operator" in ran.err
    assert the_org(place).name == "acme"
    key.write_bytes(kept)
    assert owner("org", "remove", "nosuch", "--yes").code == 1
    assert the_org(place).name == "acme"


def test_who_removes_it_second_is_told_and_changes_nothing(place: Place) -> None:
    org = the_org(place)
    take_away(place)
    count = len(place.events())
    with pytest.raises(IdentityProblem, match="meanwhile"):
        place.database.write_now(lambda rows: remove_org(rows, org, by="another"))
    assert len(place.events()) == count
    assert [gone.removed_by for gone in place.installation.directory.removed_orgs()] == ["the operator"]


def test_after_the_last_org_commands_say_how_to_make_one(place: Place, owner: CommandLine) -> None:
    ran = owner("org", "remove", "acme", "--yes")
    assert ran.code == 0
    assert "keyleash org create NAME" in ran.err
    for command in (("connection", "list"), ("connect", "stripe"), ("audit", "list"), ("agent", "create", "x")):
        ran = owner(*command)
        assert ran.code == 1, command
        assert "keyleash org create NAME" in ran.err
    assert owner("org", "list", "--json").json == []
    assert owner("doctor").code == 0
    assert owner("vault", "status").code == 0
    assert owner("org", "create", "acme").code == 0
    (again,) = owner("org", "list", "--json").json
    assert again["id"] != place.org
    assert owner("connection", "list", "--json").json == []


# -- its log


def test_a_removed_orgs_log_is_read_exported_and_verified_by_the_operator(
    place: Place, owner: CommandLine, tmp_path: Path
) -> None:
    assert owner("org", "remove", "acme", "--yes").code == 0
    for named in ("acme", place.org):
        ran = owner("audit", "verify", "--org", named, "--json")
        assert (ran.code, ran.json["status"]) == (0, "intact"), ran.err
    listed = owner("audit", "list", "--org", "acme", "--json").json
    assert "org.removed" in [entry["event"] for entry in listed]
    assert listed[-1]["event"] == "audit.listed"
    assert listed[-1]["by"] == f"the operator (system user {system_user()})"
    assert listed[-1]["known_by"] == "operator"
    file = tmp_path / "log.jsonl"
    assert owner("audit", "export", "--org", place.org, "--output", str(file)).code == 0
    away = CommandLine(tmp_path / "nowhere", owner.person)
    offline = away("audit", "verify", "--export", str(file), "--org", place.org, "--json")
    assert (offline.code, offline.json["status"]) == (0, "intact")
    bodies = [json.loads(line)["entry"]["event"] for line in file.read_text().splitlines()[1:]]
    assert bodies[0] == "org.created"
    assert "org.removed" in bodies


def test_an_altered_log_of_a_removed_org_is_found(place: Place, owner: CommandLine) -> None:
    assert owner("org", "remove", "acme", "--yes").code == 0
    place.unlock_the_log()
    place.database.write_now(
        lambda rows: rows.execute("UPDATE audit_entry SET body = replace(body, 'alice', 'malice') WHERE seq = 2")
    )
    ran = owner("audit", "verify", "--org", place.org)
    assert ran.code == 1
    assert "First bad entry: 2" in ran.out


def test_nobody_but_the_operator_reads_it(place: Place, owner: CommandLine) -> None:
    assert owner("org", "remove", "acme", "--yes").code == 0
    count = len(place.events())
    assert owner("audit", "list", "--org", "acme", "--as", "alice").code == 2
    (owner.home / "keys" / "root.key").unlink()
    for command in (("list",), ("export", "--output", "-"), ("verify",)):
        ran = owner("audit", *command, "--org", place.org)
        assert ran.code == (3 if command == ("verify",) else 1)
        assert ran.out == ""
        assert "operator" in ran.err
    assert len(place.events()) == count


def test_a_name_that_is_used_again_is_the_new_orgs(place: Place, owner: CommandLine) -> None:
    assert owner("org", "remove", "acme", "--yes").code == 0
    assert owner("org", "create", "acme").code == 0
    new = owner("audit", "list", "--org", "acme", "--json").json
    assert {entry["org"] for entry in new} != {place.org}
    old = owner("audit", "list", "--org", place.org, "--json").json
    assert {entry["org"] for entry in old} == {place.org}
    assert owner("org", "remove", "acme", "--yes").code == 0
    unclear = owner("audit", "verify", "--org", "acme")
    assert unclear.code == 3
    removed = owner("org", "list", "--removed", "--json").json
    assert [org["name"] for org in removed] == ["acme", "acme"]
    assert all(org["id"] in unclear.err for org in removed)
    assert all(owner("audit", "verify", "--org", org["id"]).code == 0 for org in removed)


def test_removed_orgs_are_listed_and_every_other_command_says_where_the_log_is(
    place: Place, owner: CommandLine
) -> None:
    assert owner("org", "list", "--removed", "--json").json == []
    assert owner("org", "remove", "acme", "--yes").code == 0
    (shown,) = owner("org", "list", "--removed", "--json").json
    assert (shown["id"], shown["name"], shown["erased"]) == (place.org, "acme", True)
    assert "gone" in owner("org", "list", "--removed").out
    ran = owner("connection", "list", "--org", "acme")
    assert ran.code == 1
    assert f"--org {place.org}" in ran.err


# -- who reads, and what waits


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_while_a_process_reads_the_key_is_pending_shown_and_later_gone(place: Place, owner: CommandLine) -> None:
    sealed = sealed_of(place.database, place.org)
    with holding(place.database.path) as let_go:
        ran = owner("org", "remove", "acme", "--yes")
        assert ran.code == 0
        assert "when the process that is reading the database lets go" in ran.out
        (shown,) = owner("org", "list", "--removed", "--json").json
        assert shown["erased"] is False
        assert "pending" in owner("org", "list", "--removed").out
        (warned,) = [one for one in owner("doctor", "--json").json if one["check"] == "erasures"]
        assert warned["status"] == "warn"
        assert "the org acme was removed" in warned["message"]
        assert owner("audit", "verify", "--org", place.org).code == 0
        assert remnants(place.home, sealed) != []
        let_go()
        assert owner("org", "create", "next").code == 0
        assert owner("org", "remove", "next", "--yes", "--json").json["erased"] is True
        assert remnants(place.home, sealed) == []
    assert all(org["erased"] for org in owner("org", "list", "--removed", "--json").json)
    assert [entry["erased"] for entry in place.events("erasure.completed")] == ["org"]


def test_a_connections_removal_that_waits_is_completed_in_the_log_of_the_removed_org(
    place: Place, owner: CommandLine
) -> None:
    installation = place.installation
    connection = connection_named(place.database, place.org, "stripe")
    place.database.write_now(lambda rows: remove(rows, installation.vault, connection, by="alice"))
    assert owner("org", "remove", "acme", "--yes").code == 0
    assert [entry["erased"] for entry in place.events("erasure.completed")] == ["connection", "org"]


# -- who works for it


@pytest.mark.anyio
async def test_agents_stop_at_their_next_call_and_other_orgs_agents_do_not(place: Place, upstream: Upstream) -> None:
    other = add_org(place.installation, "globex")
    other.connect(upstream.url)
    other.agent()
    async with connected(place, "http", "auto") as mine, connected(other, "http", "auto") as theirs:
        assert (await mine.list_tools()).tools
        take_away(place)
        with pytest.raises(Exception, match=r"."):
            await mine.call_tool("stripe_get_balance", {})
        assert (await theirs.list_tools()).tools
        assert not (await theirs.call_tool("stripe_get_balance", {})).is_error
    assert len(upstream.requests) == 1
    assert [entry["event"] for entry in place.events()][-1] == "org.removed"


@pytest.mark.anyio
async def test_a_stream_of_changes_ends_and_the_server_goes_on(place: Place, upstream: Upstream) -> None:
    other = add_org(place.installation, "globex")
    other.connect(upstream.url)
    other.agent()
    async with serving(place.installation) as url:

        def client_of(org: Place) -> tuple[Any, Any]:
            headers = {"Authorization": f"Bearer {org.tokens['reconciler']}"}
            http = httpx2.AsyncClient(verify=NO_TLS, headers=headers, timeout=30, trust_env=False)
            return http, Client(streamable_http_client(url, http_client=http), mode="auto")

        (http, mine), (http_too, theirs) = client_of(place), client_of(other)
        async with http, http_too, mine, theirs, mine.listen(tools_list_changed=True) as stream:
            take_away(place)
            with anyio.fail_after(30):
                async for _ in stream:
                    raise AssertionError("nothing changed that it may hear of")
            assert (await theirs.list_tools()).tools
        async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as anyone:
            assert (await anyone.get(url.replace("/agent/mcp", "/health"))).status_code == 200


async def in_flight(
    place: Place, upstream: Upstream, calling: Callable[[], Awaitable[Outcome]], meanwhile: Callable[[], None]
) -> Outcome:
    """Make a call, do something while the upstream has it and has not answered, and return what came of the call."""
    gate = threading.Event()
    upstream.answer = lambda request: Answer({"id": "re_1", "available": []}, wait=gate)
    came: list[Outcome] = []

    async def run() -> None:
        came.append(await calling())

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            while not upstream.requests:
                await anyio.lowlevel.checkpoint()
            meanwhile()
            gate.set()
    return came[0]


@pytest.mark.anyio
async def test_a_call_under_way_when_its_connection_is_removed_finishes_and_the_next_is_refused(
    place: Place, parts: Parts, upstream: Upstream, owner: CommandLine
) -> None:
    caller = place.caller()
    sealed = sealed_of(place.database, place.org, place_connection(place))

    def meanwhile() -> None:
        ran = owner.alone("connection", "remove", "stripe", "--yes", "--json")
        assert ran.json["erased"] is True, ran.err
        assert remnants(place.home, sealed) == []

    came = await in_flight(place, upstream, lambda: call(parts, caller, "stripe_get_balance", {}, Nobody()), meanwhile)
    assert came.ok
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["succeeded"]
    with pytest.raises(CallRefused):
        await call(parts, place.caller(), "stripe_get_balance", {}, Nobody())
    assert len(upstream.requests) == 1


def place_connection(place: Place) -> str:
    return connection_named(place.database, place.org, "stripe").id


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["stripe_get_balance", "stripe_create_refund"])
async def test_a_call_under_way_when_its_org_is_removed_finishes_on_record_and_the_next_is_refused(
    place: Place, parts: Parts, upstream: Upstream, name: str
) -> None:
    """The refund runs under an approval, whose record and key go while it runs."""
    caller = place.caller()
    arguments = REFUND if name == "stripe_create_refund" else {}
    person = Person(Decision.APPROVE)
    came = await in_flight(
        place, upstream, lambda: call(parts, caller, name, arguments, person), lambda: take_away(place)
    )
    assert came.ok
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["succeeded"]
    assert place.database.read("SELECT 1 FROM approval") == []
    for again in ("stripe_get_balance", "stripe_list_charges"):
        with pytest.raises(CallRefused):
            await call(parts, caller, again, {}, Nobody())
    assert len(upstream.requests) == 1


@pytest.mark.anyio
async def test_a_call_that_is_held_when_its_org_is_removed_ends_and_is_never_sent(
    place: Place, parts: Parts, upstream: Upstream
) -> None:
    caller = place.caller()

    class Removing(Person):
        """Someone who says yes when it is too late."""

        async def ask(self, question: Question) -> Decision | None:
            take_away(place)
            return await super().ask(question)

    with pytest.raises(NoLongerValid):
        await call(parts, caller, "stripe_create_refund", REFUND, Removing(Decision.APPROVE))
    assert upstream.requests == []
    assert [entry["event"] for entry in place.events()][-2:] == ["org.removed", "call.refused"]


@pytest.mark.anyio
async def test_an_hours_grant_that_comes_too_late_grants_nothing(
    place: Place, parts: Parts, upstream: Upstream
) -> None:
    place.connect(upstream.url, connector="slack", name="chat")
    caller = place.caller()

    class Removing(Person):
        async def ask(self, question: Question) -> Decision | None:
            take_away(place)
            return await super().ask(question)

    message = {"channel": "C1", "text": "hello"}
    with pytest.raises(NoLongerValid):
        await call(parts, caller, "chat_post_message", message, Removing(Decision.APPROVE_HOUR))
    assert upstream.requests == []
    assert place.database.read("SELECT 1 FROM call_grant") == []


@pytest.mark.anyio
@pytest.mark.parametrize("seen", [True, False], ids=["its tools are known", "its tools are not known yet"])
@pytest.mark.parametrize("name", ["stripe_get_balance", "stripe_create_refund"])
async def test_a_caller_that_was_known_just_before_has_nothing_to_call(
    place: Place, parts: Parts, upstream: Upstream, name: str, seen: bool
) -> None:
    caller = place.caller()
    if seen:
        parts.workspaces.of(caller)
    take_away(place)
    with pytest.raises(CallRefused):
        await call(parts, caller, name, REFUND if name == "stripe_create_refund" else {}, Nobody())
    assert upstream.requests == []
    assert place.events("call.attempt", "approval.opened") == []
    assert [entry["event"] for entry in place.events()][-1] == "call.refused"


def test_no_name_and_no_token_finds_its_agents(place: Place) -> None:
    directory = place.installation.directory
    agent = directory.agent(place.org, "reconciler")
    assert directory.by_agent(place.org, agent.id) is not None
    take_away(place)
    assert directory.by_agent(place.org, agent.id) is None
    assert directory.by_token(place.tokens["reconciler"]) is None
