"""Nothing reads or writes an org's rows without the org, as the code stands and as it runs.

What is not about one org is the operator's, or the installation's, and stands in `NOT_OF_ONE_ORG` with its reason.
"""

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

import server.http
import server.protocol
from server.app import running
from server.approval import Decision, State
from server.approval.tending import empty_old, tend
from server.audit import Event, append
from server.audit.entry import RESERVED
from server.call import call
from server.clock import now_ms
from server.connections import Connection, connection_named
from server.errors import ApprovalRequired, CallRefused, Refused
from server.held import held_of, looked_at
from server.identity import system_user
from server.recorded import sweep
from server.telemetry import standing
from tests.agents import Nobody, decide
from tests.commandline import CommandLine
from tests.consenting import run_out, signed_in, with_ledger
from tests.installed import Place, make
from tests.pinning import READ, WRITE, changed, held, with_file
from tests.provider import Provider
from tests.serving import NO_TLS, serving
from tests.telling import Clock, a_server, called, delivered, hooked
from tests.tenancy import KEYS, Watching, functions, lacks
from tests.upstream import Answer, Upstream
from tests.walk.walking import Walked, walk

ROOT_KEY = "the root key is the installation's, and wraps the key of every org"
HANDED_ON = "it keeps the database for methods that take the org"
LAYER = "the database itself: it runs what it is given, for the org that `of` was told"
SCHEMA = "it looks at the schema, or at the files, and at no rows"
BACKUP = "a backup is of the whole installation, and only the operator makes or restores one"
NOTED = "how far every log goes is noted by the server itself, and shown to the operator"
ERASING = "what was removed is erased from the files by the server itself, whichever org it was of"
OWN_TIME = "what a server does by itself, for one org after another"
FINDING = "names and ids of orgs, for the operator, and to find the one that a person has named"
PRUNED = "only entries that are a month old are ever pruned"
CONDITIONS = "a page of the rows that `rows` selects, whose first condition is the org"

NOT_OF_ONE_ORG: dict[str, str] = {
    "server.app.open_vault": ROOT_KEY,
    "server.app.kept_by_one": ROOT_KEY,
    "server.approval.gate.Approvals.__init__": HANDED_ON,
    "server.approval.grants.Grants.__init__": HANDED_ON,
    "server.approval.register.Register.__init__": HANDED_ON,
    "server.approval.tending.tending": OWN_TIME,
    "server.approval.unknown.Unknown.__init__": HANDED_ON,
    "server.approval.work.Works.__init__": HANDED_ON,
    "server.connections.Workspaces.__init__": HANDED_ON,
    "server.identity.Directory.__init__": HANDED_ON,
    "server.keys.Keys.__init__": HANDED_ON,
    "server.database.Database.*": LAYER,
    "server.sqlite.*": LAYER,
    "server.postgres.*": LAYER,
    "server.wall.*": LAYER,
    "server.moving.*": "the move to PostgreSQL is of the whole installation, and only the operator makes it",
    "server.app.require_kept_apart": SCHEMA,
    "server.database.schema_of": SCHEMA,
    "server.database.require_schema": SCHEMA,
    "server.duty.*": NOTED,
    "server.audit.reading._page": CONDITIONS,
    "server.audit.reading._page_as_bytes": CONDITIONS,
    "server.backup.*": BACKUP,
    "server.comparing.*": BACKUP,
    "server.copies.copy_database": BACKUP,
    "server.replacing.*": BACKUP,
    "server.restore.*": BACKUP,
    "server.rollback._set_all_right": BACKUP,
    "server.cli.recovery.*": ROOT_KEY,
    "server.cli.setup._record_upgrade": "an upgrade is of the whole installation",
    "server.recovery.*": ROOT_KEY,
    "server.rotation.*": ROOT_KEY,
    "server.sealed.texts_under": ROOT_KEY,
    "server.delivery.Delivery.due": OWN_TIME,
    "server.delivery.delivering": OWN_TIME,
    "server.readiness.Readiness.*": SCHEMA,
    "server.telemetry.everything": "what is measured of every org goes to the operator alone",
    "server.recorded.sweep_all": OWN_TIME,
    "server.recorded.sweeping": OWN_TIME,
    "server.erasure.pending": ERASING,
    "server.erasure.attempt": ERASING,
    "server.erasure.retrying": ERASING,
    "server.identity.Directory.orgs": FINDING,
    "server.identity.Directory.removed_orgs": FINDING,
    "server.oauth.renewal.Renewals.__init__": HANDED_ON,
    "server.signing.signing": HANDED_ON,
    "server.signing._Reading.__init__": HANDED_ON,
    "server.oauth.revoking.pending": OWN_TIME,
    "server.oauth.revoking.retrying": OWN_TIME,
    "server.oauth.revoking._retry": OWN_TIME,
    "vault.generations.*": ROOT_KEY,
    "vault.orgkeys.OrgKeys.installation": ROOT_KEY,
    "vault.orgkeys.OrgKeys._unwrapped": "it unwraps a key that its caller has found by the org",
    "vault.rotation.*": ROOT_KEY,
    "vault.store.Vault.start": ROOT_KEY,
    "vault.store.Vault.install": ROOT_KEY,
    "vault.store.Vault.check_root": ROOT_KEY,
    "vault.store.Vault.status": ROOT_KEY,
}
"""Functions that take no org, and why. `*` stands for all of a module or class that take none."""

ALSO_ACROSS: dict[str, str] = {"server.identity.create_org": "no two orgs of an installation have the same name"}
"""Functions that take the org, and have one statement that is not about its rows alone."""


def reason(name: str) -> str | None:
    """Why a function may take no org; None where nothing says that it may."""
    if name in NOT_OF_ONE_ORG:
        return NOT_OF_ONE_ORG[name]
    parts = name.split(".")
    groups = (".".join(parts[:count]) + ".*" for count in range(len(parts) - 1, 0, -1))
    return next((NOT_OF_ONE_ORG[group] for group in groups if group in NOT_OF_ONE_ORG), None)


def test_every_function_that_has_the_database_is_told_for_which_org() -> None:
    found = functions()
    assert len(found) > 200, "the modules were not read"
    assert [each.name for each in found.values() if not each.takes_org and reason(each.name) is None] == []


def test_what_is_excused_from_it_is_there_and_needs_it() -> None:
    names = [each.name for each in functions().values() if not each.takes_org]
    for excused in NOT_OF_ONE_ORG:
        beginning = excused.removesuffix("*")
        assert any(name == excused or (excused.endswith("*") and name.startswith(beginning)) for name in names), excused


# -- as it runs


ON_SQLITE = pytest.mark.sqlite_only("SQLite's driver tells of every statement; PostgreSQL keeps orgs apart itself")


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Walked, Watching]]:
    """A short walk, then what it seldom comes to, and every statement that these came to."""
    with Watching() as watching:
        come_of = walk(1_500, 10, seed=7)
        _tour(tmp_path_factory.mktemp("tour"))
        yield come_of, watching


def _tour(folder: Path) -> None:
    """Every change of an org's rows once, at the command line."""
    with Upstream() as upstream, Provider() as provider:
        upstream.answer = lambda request: Answer({"ok": True, "ts": "1", "id": "acct_1"})
        place = with_file(with_ledger(make(folder / "home")), READ, WRITE)
        for name in ("ledger", "books"):
            signed_in(place, provider, name=name)
        for connector in ("stripe", "slack"):
            place.connect(upstream.url, connector=connector)
        _definitions_change(place, place.connect(upstream.url, connector="things"))
        place.database.write_now(
            lambda rows: rows.execute("UPDATE member SET os_user = ? WHERE name = 'alice'", (system_user(),))
        )
        grant = asyncio.run(_held_and_counted(place))
        asyncio.run(_tokens_end(place, provider))
        provider.answering = lambda path, said: Answer({}, 503) if path == "/oauth/revoke" else said
        (folder / "person").mkdir()
        line = CommandLine(folder / "home", folder / "person")
        work = line(*WORK, "--yes", "--json").json["grant"]
        lost = asyncio.run(_lost(place))
        asyncio.run(_told(place, upstream))
        budget = line("budget", "create", "--calls", "1", "--per", "month", "--connection", "slack", "--json").json[
            "id"
        ]
        assert line("connection", "limit", "slack", "--per-minute", "100").code == 0
        asyncio.run(_budgeted(place))
        place.installation.close()
        rules = folder / "rules.yaml"
        rules.write_text(line("policy", "export").out)
        for words in (
            *(f"approvals resolve {each} --did-not" for each in lost),
            f"grant show {work}",
            f"grant revoke {work}",
            "usage --by connection",
            "usage --recount",
            "usage --all-orgs",
            "budget list",
            f"budget change {budget} --calls 3",
            f"budget remove {budget} --yes",
            "connection limit slack --none",
            "connection remove books --yes",
            f"channel add webhook bell --url {upstream.url}/x {LOCAL}",
            "channel list",
            "channel test bell",
            "channel rotate bell",
            "channel remove bell --yes",
            "policy add --who everyone --tools slack.* --then deny",
            f"policy apply {rules} --yes",
            f"policy replay {rules} --since 1d",
            "policy versions",
            "policy export --version 1",
            "member create bob",
            "member change bob --role owner",
            "member remove bob --yes",
            "policy preset strict",
            "approvals list --all",
            "connector review --yes",
            "connection test slack",
            "connection remove ledger --yes --no-revoke",
            "connection rotate slack --keep-secret",
            "vault rotate-org acme --yes",
            "connection rotate stripe --no-verify --secret-stdin",
            f"grant revoke {grant}",
            "connection remove slack --yes",
            f"managed offer openai --to acme --no-verify --secret-stdin --base-url {upstream.url} {LOCAL}",
            "managed rotate openai --no-verify --secret-stdin",
            "managed test openai",
            "managed show openai",
            "managed limit openai 2",
            "connection remove openai --yes",
            "connection use-managed openai",
            f"connect openai --secret-stdin --base-url {upstream.url} {LOCAL}",
            "connection remove openai --yes",
            "connection show openai",
            "managed withdraw openai --yes",
            "agent narrow reconciler --effect read",
            "agent rotate reconciler --yes",
            "freeze",
            "audit checkpoint --output -",
            "audit key",
            "agent remove reconciler --yes",
            "org remove acme --yes",
        ):
            ran = line(*words.split(), stdin=b"sk-proj-0123456789" if "openai" in words else b"rk_test_0123456789")
            assert ran.code == 0, ran


LOCAL = "--allow-private 127.0.0.1/32"


def _definitions_change(place: Place, connection: Connection) -> None:
    """A tool of a wrapped server is held, and is as it was again, where another has changed."""
    connector, now = place.installation.catalogue.connector("things"), [READ, changed(WRITE, title="Else")]
    assert held(place, connection, READ, changed(READ, title="Else")) == ["read_it"]
    place.database.write_now(lambda rows: looked_at(rows, connection, connector, now, by="alice"))
    assert [each.tool for each in held_of(place.database, place.org)] == ["change_it"]


async def _held_and_counted(place: Place) -> str:
    """One of two who have to agree has; and there is a grant, whose id is returned."""
    place.agent()
    place.rule(who="everyone", tools=["stripe.*"], then="approve", count=2)
    async with running(place.installation) as parts:
        held: list[str] = []
        for tool, given in (
            ("stripe_get_balance", {}),
            ("slack_post_message", {"channel": "C0123456789", "text": "a"}),
        ):
            with pytest.raises(ApprovalRequired) as required:
                await call(parts, place.caller(), tool, given, Nobody())
            held.append(required.value.approval)
        assert decide(place, held[0], Decision.APPROVE) is State.PENDING
        assert decide(place, held[1], Decision.APPROVE_HOUR) is State.APPROVED
        assert (await call(parts, place.caller(), tool, given, Nobody())).ok
        assert (await call(parts, place.caller(), tool, {**given, "text": "b"}, Nobody())).ok
        denied = [{"argument": "charge", "op": "prefix", "value": "ch_no"}]
        place.rule(who="everyone", tools=["stripe.create_refund"], when=denied, then="deny")
        with pytest.raises(Refused):
            await call(parts, place.caller(), "stripe_create_refund", {"charge": "ch_no1"}, Nobody())
        place.rule(who="everyone", tools=["slack.*"], when=[{**denied[0], "argument": "text"}], then="deny")
        with pytest.raises(Refused):  # which ends the grant as well
            await call(parts, place.caller(), tool, {**given, "text": "ch_no"}, Nobody())
        with pytest.raises(ApprovalRequired) as required:
            await call(parts, place.caller(), tool, {**given, "text": "c"}, Nobody())
        assert decide(place, required.value.approval, Decision.APPROVE_HOUR) is State.APPROVED
        assert (await call(parts, place.caller(), tool, {**given, "text": "c"}, Nobody())).ok
    return str(place.installation.approvals.grants(place.org)[0]["id"])


async def _tokens_end(place: Place, provider: Provider) -> None:
    """In each of the ways in which tokens do."""

    async def read() -> bool:
        with suppress(CallRefused):
            return (await call(parts, place.caller(), "ledger_list_entries", {}, Nobody())).ok
        return False

    async with running(place.installation) as parts:
        run_out(place)
        assert await read(), "they are renewed"
        provider.expire()
        place.database.write_now(lambda rows: rows.execute("UPDATE oauth_token SET obtained_at = 0"))
        assert not await read(), "they were refused before their time"
        provider.answering = lambda path, said: Answer({}, 503) if path == "/oauth/token" else said
        assert not await read()
        provider.answering = lambda _path, said: said
        place.database.write_now(lambda rows: rows.execute("UPDATE oauth_token SET retry_at = NULL"))
        provider.end_consents()
        assert not await read()
    assert connection_named(place.database, place.org, "ledger").needs_consent_at is not None


WORK = (
    *("grant", "create", "day", "--tool", "slack_post_message", "--runner", "agent:reconciler", "--uses", "3"),
    *("--where", "channel equals C0123456780"),
)


async def _lost(place: Place) -> list[str]:
    """A call under a grant, and one that was allowed, of which nobody knows what became; later, all is old."""
    async with running(place.installation) as parts:
        given = {"channel": "C0123456780", "text": "under the work"}
        assert (await call(parts, place.caller(), "slack_post_message", given, Nobody())).ok
    body = {name: value for name, value in place.events("call.attempt")[-1].items() if name not in RESERVED}
    assert body["work"] == "day"
    for grant in (body["grant"], None):
        facts = {**body, "grant": grant}
        place.database.write_now(
            lambda rows, facts=facts: append(rows, place.org, Event.CALL_ATTEMPT, at_ms=0, **facts)
        )
    await tend(place.installation.database, place.installation.approvals, place.org)
    await empty_old(place.installation.database, place.org, keep_days=0)
    assert sweep(place.installation.database, place.org, keep_days=-1) > 0
    assert standing(place.installation.database, place.org, now_ms()) is not None
    return [each.id for each in place.installation.approvals.unknown.calls(place.org)]


async def _told(place: Place, upstream: Upstream) -> None:
    """A webhook is told; another is gone, and given up after a day."""
    gone = Upstream()
    gone.answer = lambda _request: Answer({}, 410)
    with gone:
        hooked(place, f"{upstream.url}/x", "taken")
        hooked(place, f"{gone.url}/x", "gone")
        with pytest.raises(ApprovalRequired):
            await called(place, "slack_post_message", {"channel": "C0123456781", "text": "told"})
        clock = Clock()
        async with a_server(place, clock) as delivery:
            clock.pass_s(1)
            await delivered(delivery)
            clock.pass_s(2 * 24 * 60 * 60)
            await delivered(delivery)
    assert len(gone.requests) == 1
    assert len(place.events("channel.gave_up")) == 1


async def _budgeted(place: Place) -> None:
    """The last call of a budget, of which people are told."""
    given = {"channel": "C0123456780", "text": "within the budget"}
    assert (await called(place, "slack_post_message", given)).ok
    assert len(place.events("budget.reached")) == 1


@ON_SQLITE
def test_no_org_sees_a_canary_of_another_on_a_short_walk(walked: tuple[Walked, Watching]) -> None:
    """The long one is `python -m tests.walk`."""
    done, recorded = walked[0].done, walked[0].recorded
    assert walked[0].heard > 1_000
    assert walked[0].sent > 150
    assert len(done) >= 22, done
    events = {"call.outcome", "call.held", "call.refused", "call.replayed", "approval.decided", "grant.created"}
    assert {event for event in events if not recorded[event]} == set()


@ON_SQLITE
def test_every_statement_about_an_orgs_rows_says_whose_they_are(walked: tuple[Walked, Watching]) -> None:
    asked = walked[1].asked.values()
    wrong = {
        (each.function, each.sql, missing)
        for each in asked
        if (missing := lacks(each.sql)) and reason(each.function) is None and each.function not in ALSO_ACROSS
    }
    assert wrong == set()


UNWALKED: dict[str, str] = {
    "server.approval.register.Register.keyed": "only where an org is removed in the middle of a call",
    "server.audit.noted.hash_at": "what a server notes as it starts and ends",
    "server.cli.proving._last": "the log of an org that was removed",
    "server.rollback.set_right": "a restore",
    "server.approval.outbox.put_checkpoint": "what a server tells as it signs a log",
    "server.signing.signing.sign": "what a server does as it signs a log",
    "server.signing.begin_anew": "a restore or a rollback that was accepted",
    "server.pruning.prune": PRUNED,
    "server.pruning._let_go": PRUNED,
    "server.pruning._older": PRUNED,
    "server.pruning._ended": PRUNED,
}
"""Functions with statements about orgs' rows that neither the walk nor the tour comes to; they are read only."""


@ON_SQLITE
def test_the_walk_comes_to_every_function_that_asks_for_an_orgs_rows(walked: tuple[Walked, Watching]) -> None:
    seen = {each.function for each in walked[1].asked.values()}
    expected = {each.name for each in functions().values() if each.of_orgs and reason(each.name) is None}
    assert sorted(expected - seen - set(UNWALKED)) == []
    assert set(UNWALKED) <= expected
    assert {each.function for each in walked[1].asked.values() if lacks(each.sql)} >= set(ALSO_ACROSS)


RIGHT = [
    "SELECT 1 FROM agent WHERE org = :org1 AND id = :value",
    "SELECT 1 FROM agent a JOIN org o ON o.id = a.org WHERE a.org = :org1 AND a.id = :value",
    "SELECT 1 FROM agent a LEFT JOIN member m ON m.org = a.org AND m.id = a.member WHERE a.org = :org1",
    "INSERT INTO agent (org, id) VALUES (:org1, :value)",
    "UPDATE agent SET name = :value WHERE org = :org1",
    "DELETE FROM agent WHERE org = :org1",
    "UPDATE org SET revision = revision + :number WHERE id = :org1",
    "UPDATE agent SET name = :value WHERE org = :org1 AND EXISTS (SELECT 1 FROM member m WHERE m.org = agent.org)",
    "SELECT id FROM vault_root WHERE id = :number",
]
WRONG = [
    "SELECT 1 FROM agent WHERE id = :value",
    "SELECT 1 FROM agent WHERE org = :value",
    "SELECT 1 FROM agent a JOIN org o ON o.id = a.org WHERE a.id = :value",
    "SELECT 1 FROM agent a LEFT JOIN member m ON m.id = a.member WHERE a.org = :org1",
    "SELECT 1 FROM agent WHERE org = :org1 OR org = :org2",
    "UPDATE agent SET name = :value WHERE org = :org1 AND EXISTS (SELECT 1 FROM member m WHERE m.id = agent.member)",
    "UPDATE agent SET name = :value WHERE id = :value AND EXISTS (SELECT 1 FROM member m WHERE m.org = agent.org)",
    "SELECT 1 FROM agent WHERE org = :org1 AND member IN (SELECT id FROM member)",
    "INSERT INTO agent (id, name) VALUES (:value, :value)",
    "INSERT INTO agent (org, id) VALUES (:value, :value)",
    "UPDATE agent SET org = :value WHERE id = :value",
    "DELETE FROM agent",
    "SELECT COUNT(*) FROM org",
]


@pytest.mark.parametrize("sql", RIGHT)
def test_a_statement_that_is_held_to_one_org_lacks_nothing(sql: str) -> None:
    assert lacks(sql) is None


@pytest.mark.parametrize("sql", WRONG)
def test_a_statement_that_is_not_held_to_one_org_is_found(sql: str) -> None:
    assert lacks(sql) is not None


# -- handlers and routes


def test_every_handler_of_the_protocol_asks_who_is_calling() -> None:
    """All that `build` registers, found in its own text: each names the caller before it does anything else."""
    (build,) = (
        each
        for each in ast.parse(inspect.getsource(server.protocol)).body
        if isinstance(each, ast.FunctionDef) and each.name == "build"
    )
    text = ast.unparse(build)
    registered = set(re.findall(r"\bon_\w+=masked\((\w+)\)", text))
    assert registered == set(re.findall(r"\bon_\w+=\w*\(?(\w+)", text))
    inside = {each.name: ast.unparse(each) for each in build.body if isinstance(each, ast.AsyncFunctionDef)}
    assert set(inside) == registered == {"list_tools", "call_tool", "listen"}
    for name, body in inside.items():
        assert "identify(ctx)" in body, name
    assert "bind_principal=lambda ctx: _principal(identify, ctx)" in text


@pytest.mark.anyio
async def test_every_route_but_those_for_health_is_shut_to_strangers(place: Place) -> None:
    tree = ast.parse(inspect.getsource(server.http))
    compared = [
        each for each in ast.walk(tree) if isinstance(each, ast.Compare) and "scope['path']" in ast.unparse(each)
    ]
    routes = {ast.unparse(each.comparators[0]) for each in compared}
    assert routes == {"AGENT_PATH", "'/health'", "'/ready'"}, "a new route: say here who may use it"
    matched = re.findall(r"(\w+)\.fullmatch\(scope\['path'\]\)", ast.unparse(tree))
    assert matched == ["APPROVAL_PATH"], "a page that is the same for everybody; any other has to ask who is looking"
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS"):
            assert (await client.request(method, url)).status_code == 401, method
        assert (await client.get(url.replace("/agent/mcp", "/health"))).json() == {"status": "ok"}
        assert set((await client.get(url.replace("/agent/mcp", "/ready"))).json().values()) == {"ok"}


# -- constraints


def test_every_constraint_of_an_orgs_table_begins_with_the_org() -> None:
    """Or two orgs could not have the same, and one would learn by it what another has."""
    from sqlalchemy import UniqueConstraint
    from sqlmodel import SQLModel

    wrong = []
    for table in SQLModel.metadata.sorted_tables:
        if KEYS.get(table.name) != "org":
            continue
        keys = [list(table.primary_key.columns)]
        keys += [list(each.columns) for each in table.constraints if isinstance(each, UniqueConstraint)]
        keys += [list(each.columns) for each in table.indexes if each.unique]
        wrong += [(table.name, [column.name for column in key]) for key in keys if key[0].name != "org"]
    assert wrong == []


def test_the_only_names_that_all_orgs_share_are_their_own() -> None:
    from sqlalchemy import UniqueConstraint
    from sqlmodel import SQLModel

    unique = {
        (table.name, column.name)
        for table in SQLModel.metadata.sorted_tables
        if KEYS.get(table.name) == "id"
        for each in table.constraints
        if isinstance(each, UniqueConstraint)
        for column in each.columns
    }
    assert unique == {("org", "name")}


@pytest.mark.both_databases
def test_what_is_taken_in_one_org_is_free_in_another_and_nothing_says_so(place: Place, owner: CommandLine) -> None:
    """Names, system users, token hashes, and every id."""
    assert owner("org", "create", "globex").code == 0
    other = place.installation.directory.org("globex").id
    place.member("bob", os_user="bobs-user")
    for words in (
        "member create bob --os-user bobs-user --json",
        "agent create reconciler --json",
        "connect stripe --no-verify --secret-stdin --json",
    ):
        ran = owner(*words.split(), "--org", "globex", stdin=b"rk_test_0123456789")
        assert ran.code == 0, ran
        assert place.org not in ran.out + ran.err
        assert "already" not in ran.out + ran.err
    database = place.database
    database.write_now(
        lambda rows: rows.execute(
            "UPDATE agent SET id = (SELECT id FROM agent WHERE org = ?), token_hash = (SELECT token_hash FROM agent "
            "WHERE org = ?) WHERE org = ?",
            (place.org, place.org, other),
        )
    )
    mine, theirs = place.installation.directory.agents(place.org), place.installation.directory.agents(other)
    assert [each.id for each in mine] == [each.id for each in theirs]
    caller = place.installation.directory.by_token(place.tokens["reconciler"])
    assert caller is not None
    assert caller.org == place.org
    assert Path(place.home).exists()
