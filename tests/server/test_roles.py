"""Every command there is, as every role: who gets in, and that a refused one has changed nothing.

The commands are found by walking the command line itself: one that is not stated in `STATED` fails here.
"""

import asyncio
import contextlib
import re
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from server.approval import Decision
from server.budgets import create as create_budget
from server.cli.acting import EVERYONE, MAY
from server.cli.commands import app
from server.connections import connection_named
from server.identity import system_user
from server.managed import remove
from server.policy import ROLES
from tests.agents import Nobody, decide
from tests.commandline import CommandLine, Ran
from tests.installed import make
from tests.offering import offered_by_operator
from tests.telling import hooked
from tests.upstream import Answer, Upstream

pytestmark = pytest.mark.sqlite_only("it puts the whole installation back as it was, by its files")

Words = tuple[str, ...]
ALL = frozenset(ROLES)
ADMINS = frozenset({"owner", "admin"})
OWNER = frozenset({"owner"})
AT_WORK = ALL - {"auditor"}
DECIDERS = frozenset({"owner", "admin", "approver"})
AUDITORS = frozenset({"owner", "admin", "auditor"})


@dataclass(frozen=True)
class Case:
    """A command with what it needs, and the roles of which one lets a person in."""

    words: str
    roles: frozenset[str]
    stdin: bytes = b""
    says: str = ""
    """What those who are let in are told, where it does not come to exit code 0: a test has no terminal, say."""


@dataclass(frozen=True)
class Operators:
    """What reaches the host, every org or the root key: no role of an org lets anybody in, and none keeps out."""

    words: str
    says: str = ""


@dataclass(frozen=True)
class Unowned:
    """What shows and changes nothing of any org. Run where `words` are given."""

    why: str
    words: str = ""


STATED: dict[str, list[Case | Operators | Unowned]] = {
    "serve": [Unowned("the system user who can read the installation serves it; an agent's token says who calls")],
    "demo": [Unowned("it makes an installation of its own and removes it")],
    "init": [Unowned("it makes an installation, and refuses where there is one")],
    "upgrade": [Unowned("it migrates the files of whoever owns them")],
    "vault restore": [Unowned("it takes the root key, or the recovery file and its passphrase")],
    "doctor": [Unowned("it looks at files that whoever runs it can read")],
    "connector list": [Unowned("connectors are the installation's", "connector list --json")],
    "connector show": [Unowned("connectors are the installation's", "connector show stripe")],
    "connector check": [Unowned("it reads the file that it is given", "connector check {connector}")],
    "connector new": [Unowned("it writes a file that is not there yet, where whoever runs it can write one")],
    "connector import-openapi": [Unowned("it writes files that are not there yet; they offer nothing until connected")],
    "connector import-mcp": [
        Operators("connector import-mcp http://127.0.0.1:9/mcp --list --allow-private 127.0.0.1/32", says="127.0.0.1:9")
    ],
    "connector review": [Case("connector review", ADMINS)],
    "org list": [Unowned("names of orgs, for whoever can read the database", "org list --json")],
    "vault status": [Unowned("where the root key is, for whoever can read the database", "vault status --json")],
    "client show": [Unowned("it prints what to write, and writes nothing", "client show cursor")],
    "database status": [Unowned("which database it is, for whoever can read the settings", "database status --json")],
    "database migrate": [Operators("database migrate --to postgresql://nobody@127.0.0.1:9/none --yes", says="9")],
    "org create": [Operators("org create globex")],
    "org remove": [Operators("org remove acme --yes")],
    "vault rotate-root": [Operators("vault rotate-root --yes")],
    "vault rewrap": [Operators("vault rewrap --to file:{folder}/new.key --yes")],
    "vault drop-root": [Operators("vault drop-root 1 --yes", says="generation")],
    "vault rotate-org": [Operators("vault rotate-org acme --yes")],
    "vault backup": [Operators("vault backup {folder}/backup.db")],
    "managed offer": [
        Operators("managed offer openai --to acme --name two --no-verify --secret-stdin", says="API key")
    ],
    "managed list": [Operators("managed list")],
    "managed show": [Operators("managed show openai")],
    "managed limit": [Operators("managed limit openai 3")],
    "managed rotate": [Operators("managed rotate openai --no-verify --secret-stdin", says="API key")],
    "managed test": [Operators("managed test openai")],
    "managed withdraw": [Operators("managed withdraw openai --yes")],
    "vault export-recovery": [Operators("vault export-recovery {folder}/recovery.json --passphrase-stdin")],
    "vault accept-rollback": [Operators("vault accept-rollback --yes", says="nothing to accept")],
    "freeze": [Case("freeze", ADMINS)],
    "unfreeze": [Case("unfreeze", ADMINS)],
    "connect": [
        Case("connect stripe --name two --no-verify --secret-stdin", ADMINS, stdin=b"rk_test_0123456789"),
        Case("connect stripe --name two --no-verify --secret-from env:HOME", ADMINS),
    ],
    "connector test": [Case("connector test stripe", ADMINS)],
    "connection list": [Case("connection list", ALL)],
    "connection show": [Case("connection show stripe", ALL)],
    "connection test": [Case("connection test stripe", ADMINS)],
    "connection rotate": [
        Case("connection rotate stripe --no-verify --secret-stdin", ADMINS, stdin=b"rk_test_0123456789")
    ],
    "connection remove": [Case("connection remove stripe --yes", ADMINS)],
    "connection use-managed": [Case("connection use-managed spare", ADMINS)],
    "org show": [Case("org show", ALL)],
    "member list": [Case("member list", ALL)],
    "member show": [Case("member show carol", ALL)],
    "member create": [Case("member create bob", ADMINS), Case("member create olaf --role owner", OWNER)],
    "member change": [
        Case("member change carol --role approver --group finance", ADMINS),
        Case("member change carol --role owner", OWNER),
        Case("member change dora --take-role owner", OWNER),
        Case("member change dora --os-user mallory", OWNER),
    ],
    "member remove": [Case("member remove carol --yes", ADMINS), Case("member remove dora --yes", OWNER)],
    "agent list": [Case("agent list", ALL)],
    "agent show": [Case("agent show reconciler", ALL)],
    "agent create": [
        Case("agent create mine", AT_WORK),
        Case("agent create hers --for alice", ADMINS),
        Case("agent create robot --standalone", ADMINS),
    ],
    "agent narrow": [
        Case("agent narrow reconciler --effect read", ADMINS),
        Case("agent narrow own --any-effect --expires never", AT_WORK),
    ],
    "agent rotate": [Case("agent rotate reconciler --yes", ADMINS), Case("agent rotate own --yes", AT_WORK)],
    "agent remove": [Case("agent remove reconciler --yes", ADMINS), Case("agent remove own --yes", AT_WORK)],
    "policy list": [Case("policy list", ALL)],
    "policy explain": [Case("policy explain --agent reconciler --tool stripe_get_balance", ALL)],
    "policy add": [Case("policy add --who everyone --tools stripe.* --then deny", ADMINS)],
    "policy remove": [Case("policy remove {rule} --yes", ADMINS)],
    "policy preset": [Case("policy preset", ALL), Case("policy preset strict", ADMINS)],
    "policy export": [Case("policy export", ALL)],
    "policy versions": [Case("policy versions", ALL)],
    "policy apply": [Case("policy apply {rules} --yes", ADMINS), Case("policy apply {rules} --dry-run", ADMINS)],
    "policy replay": [Case("policy replay {rules} --since 1d", ADMINS)],
    "channel list": [Case("channel list", ALL)],
    "channel show": [Case("channel show team", ALL)],
    "channel add": [Case("channel add webhook pager --url-stdin", ADMINS, stdin=b"https://hooks.example.com/in")],
    "channel test": [Case("channel test team", ADMINS)],
    "channel rotate": [Case("channel rotate team", ADMINS)],
    "channel remove": [Case("channel remove team --yes", ADMINS)],
    "approvals list": [Case("approvals list", ALL)],
    "approvals show": [Case("approvals show {approval}", DECIDERS | {"auditor"})],
    "approvals approve": [Case("approvals approve {approval} --yes", DECIDERS)],
    "approvals deny": [Case("approvals deny {approval} --yes", DECIDERS)],
    "approvals watch": [Case("approvals watch", ALL, says="terminal")],
    "approvals resolve": [Case("approvals resolve {lost} --did-not", DECIDERS)],
    "grant list": [Case("grant list", ALL)],
    "grant show": [Case("grant show {grant}", DECIDERS | {"auditor"})],
    "grant create": [
        Case("grant create day --tool chat_post_message --runner agent:reconciler --uses 3 --yes", DECIDERS),
        Case("grant create day --tool chat_post_message --runner agent:own --uses 3 --yes", AT_WORK),
    ],
    "grant revoke": [Case("grant revoke {grant}", DECIDERS)],
    "budget list": [Case("budget list", ALL)],
    "budget create": [Case("budget create --calls 9 --per day", ADMINS)],
    "budget change": [Case("budget change {budget} --calls 9", ADMINS)],
    "budget remove": [Case("budget remove {budget} --yes", ADMINS)],
    "connection limit": [Case("connection limit stripe", ALL), Case("connection limit stripe --concurrent 2", ADMINS)],
    "usage": [Case("usage", ALL), Case("usage --recount", AUDITORS), Operators("usage --all-orgs")],
    "audit list": [Case("audit list", AUDITORS)],
    "audit verify": [Case("audit verify", AUDITORS)],
    "audit export": [Case("audit export --output -", AUDITORS)],
    "audit key": [Case("audit key", AUDITORS)],
    "audit checkpoint": [Case("audit checkpoint --output -", AUDITORS)],
    "audit prune": [Operators("audit prune --keep 400d --yes", says="nothing to prune")],
    "audit verifier": [Unowned("it prints a program", "audit verifier")],
    "audit stream": [Case("audit stream --output {folder}/log.jsonl --once", AUDITORS)],
    "audit hash": [Case("audit hash - --argument charge", AUDITORS, stdin=b"ch_1")],
    "audit events": [Unowned("it lists what every log can hold", "audit events --json")],
    "client add": [Case("client add cursor", AT_WORK), Case("client add cursor --agent reconciler", ADMINS)],
    "client remove": [Case("client remove cursor", AT_WORK)],
}


_NO = {"audit verify": 3}
"""The exit code of a refusal where it is not 1: a log that was not looked at could not be verified."""


def commands(command: Any = None, path: Words = ()) -> Iterator[tuple[str, list[str]]]:
    """Every command there is, with its options."""
    found = typer.main.get_command(app) if command is None else command
    if not hasattr(found, "commands"):
        yield " ".join(path), [option for parameter in found.params for option in parameter.opts]
        return
    for name, below in found.commands.items():
        yield from commands(below, (*path, name))


EVERY = dict(commands())
CASES = [case for cases in STATED.values() for case in cases if isinstance(case, Case)]
OPERATORS = [case for cases in STATED.values() for case in cases if isinstance(case, Operators)]
UNOWNED = [case for cases in STATED.values() for case in cases if isinstance(case, Unowned) and case.words]


def test_every_command_states_who_may() -> None:
    assert sorted(STATED) == sorted(EVERY)
    assert EVERYONE == ROLES
    assert all(roles and set(roles) <= set(ROLES) for roles in MAY.values())


def test_every_command_that_belongs_to_an_org_is_a_members() -> None:
    """`--as` is offered by exactly those that somebody's roles are asked for."""
    by_role = {name for name, cases in STATED.items() if isinstance(cases[0], Case)}
    assert {name for name, options in EVERY.items() if "--as" in options} == by_role


@dataclass
class Standing:
    """A whole installation that is put back as it was before each command."""

    line: CommandLine
    kept: Path
    names: dict[str, str]

    @property
    def database(self) -> Path:
        return self.line.home / "data" / "keyleash.db"

    def put_back(self, role: str, *, operator: bool = True) -> None:
        """As it was made; whoever is at the terminal is `somebody`, with this role, and can or cannot read the key."""
        for folder in (self.line.home, self.line.person):
            shutil.rmtree(folder)
            shutil.copytree(self.kept / folder.name, folder)
        if not operator:
            (self.line.home / "keys" / "root.key").unlink()
        with contextlib.closing(sqlite3.connect(self.database)) as database, database:
            database.execute("UPDATE member SET roles = ? WHERE name = 'somebody'", (f'["{role}"]',))

    def __call__(self, words: str, stdin: bytes = b"") -> Ran:
        return self.line(*(word.format(**self.names) for word in words.split()), stdin=stdin)

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything that stands in the database."""
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    folder = tmp_path_factory.mktemp("roles")
    home, person = folder / "home", folder / "person"
    person.mkdir()
    with Upstream() as upstream:
        upstream.answer = lambda request: Answer({"ok": True, "ts": "1", "id": "acct_test"})
        place = make(home)
        place.connect(upstream.url)
        place.connect(upstream.url, connector="slack", name="chat")
        for offered in ("openai", "spare"):
            offered_by_operator(place, upstream.url, name=offered)
        place.agent()
        place.member("carol")
        place.member("dora", ("owner", "member"))
        somebody = place.member("somebody", ("owner",), os_user=system_user())
        place.owner, owner = somebody, place.owner
        place.agent("own")
        place.owner = owner
        rule = place.rule(who="everyone", tools=["stripe.list_charges"], then="allow")
        hooked(place, upstream.url, "team")
        approval, lost, grant = asyncio.run(_held_and_granted(place))
        spare = connection_named(place.database, place.org, "spare")
        place.database.write_now(lambda rows: remove(rows, place.installation.vault, spare, by="test"))
        place.installation.database.write_now(
            lambda rows: rows.execute("UPDATE approval SET state = 'unknown' WHERE id = ?", (lost,))
        )
        budget = place.database.write_now(
            lambda rows: create_budget(rows, place.org, measure="calls", per="month", most=100, by="test")
        )
        rules = folder / "rules.yaml"
        rules.write_text("preset: strict\nrules: []\n", encoding="utf-8")
        place.installation.close()
        with contextlib.closing(sqlite3.connect(place.installation.settings.database)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        kept = folder / "kept"
        kept.mkdir()
        shutil.copytree(home, kept / "home")
        shutil.copytree(person, kept / "person")
        names = {
            "rule": rule,
            "approval": approval,
            "lost": lost,
            "grant": grant,
            "budget": budget.id,
            "folder": str(folder),
            "rules": str(rules),
            "connector": str(Path(__file__).parents[2] / "configs" / "connectors" / "stripe.yaml"),
        }
        yield Standing(CommandLine(home, person), kept, names)


async def _held_and_granted(place: Any) -> tuple[str, str, str]:
    from server.app import running
    from server.call import call
    from server.errors import ApprovalRequired

    async with running(place.installation) as parts:
        found = []
        for tool, given in (
            ("chat_post_message", {"channel": "C0123456789", "text": "a"}),
            ("stripe_create_refund", {"charge": "ch_1"}),
            ("stripe_create_refund", {"charge": "ch_2"}),
        ):
            with pytest.raises(ApprovalRequired) as held:
                await call(parts, place.caller(), tool, given, Nobody())
            found.append(held.value.approval)
        decide(place, found[0], Decision.APPROVE_HOUR)
    return found[1], found[2], place.installation.approvals.grants(place.org)[0]["id"]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_in_where_it_may_and_changes_nothing_where_it_may_not(standing: Standing, role: str) -> None:
    wrong: dict[str, Any] = {}
    for case in CASES:
        standing.put_back(role)
        before = standing.rows()
        ran = standing(case.words, case.stdin)
        after = standing.rows()
        let_in = ran.code == 0 if not case.says else case.says in ran.err
        refused = ran.code != 0 and ran.out == "" and after == before and _why(ran)
        if let_in is not (role in case.roles) or refused is let_in:
            wrong[case.words] = (ran, [table for table in before if before[table] != after.get(table)])
        log = [row for row in after["audit_entry"] if row in before["audit_entry"]]
        assert log == before["audit_entry"], f"{case.words} has touched what was on record"
    assert wrong == {}


def _why(ran: Ran) -> bool:
    """Whether a person is told that it is not theirs to do, or nothing of what is not theirs to see."""
    return bool(re.search(r"may not|Only an owner|There is no (approval|grant)|cannot decide this", ran.err))


@pytest.mark.parametrize("role", ROLES)
def test_what_is_the_operators_no_role_can_do(standing: Standing, role: str) -> None:
    for case in OPERATORS:
        standing.put_back(role, operator=False)
        before = standing.rows()
        ran = standing(case.words, b"a long passphrase for the recovery file\n")
        assert (ran.code, ran.out) == (1, ""), (case.words, ran)
        assert "Only the operator" in ran.err, case.words
        assert standing.rows() == before, case.words


@pytest.mark.parametrize("case", OPERATORS, ids=lambda case: case.words)
def test_the_operator_needs_no_role_for_it(standing: Standing, case: Operators) -> None:
    standing.put_back("auditor")
    for name in ("new.key", "backup.db", "recovery.json"):
        (Path(standing.names["folder"]) / name).unlink(missing_ok=True)
    ran = standing(case.words, b"a long passphrase for the recovery file\n")
    assert ran.code == 0 if not case.says else case.says in ran.err, ran


def test_acting_for_another_is_the_operators_at_every_command(standing: Standing) -> None:
    standing.put_back("owner", operator=False)
    before = standing.rows()
    for case in {case.words.split("{")[0].split("--")[0]: case for case in CASES}.values():
        ran = standing(f"{case.words} --as alice", case.stdin)
        assert (ran.code, ran.out) == (_NO.get(case.words, 1), ""), (case.words, ran)
        assert "acting for another member" in ran.err, (case.words, ran)
    assert standing.rows() == before


@pytest.mark.parametrize("case", UNOWNED, ids=lambda case: case.words)
def test_what_belongs_to_no_org_shows_and_changes_nothing_of_one(standing: Standing, case: Unowned) -> None:
    standing.put_back("member")
    before = standing.rows()
    ran = standing(case.words)
    assert ran.code == 0, ran
    assert standing.rows() == before
    assert not re.search(r"reconciler|carol|acct_test|apr_|rul_", ran.out)


def test_a_stranger_gets_in_nowhere(standing: Standing) -> None:
    standing.put_back("owner")
    with contextlib.closing(sqlite3.connect(standing.database)) as database, database:
        database.execute("UPDATE member SET os_user = NULL")
    before = standing.rows()
    for case in CASES:
        ran = standing(case.words, case.stdin)
        assert (ran.code, ran.out) == (_NO.get(case.words, 1), ""), (case.words, ran)
        assert system_user() in ran.err, case.words
    assert standing.rows() == before
