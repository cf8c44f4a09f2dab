"""An SQLite installation becomes one on PostgreSQL: all of it or nothing, and nobody serves the file by mistake."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.app import open_installation, running
from server.audit import verify_database
from server.call import call
from server.database import DatabaseProblem
from server.duty import on_duty, require_current
from server.errors import ApprovalRequired, LimitReached
from server.locks import shared
from server.moving import move
from server.sqlite import SqliteDatabase
from tests import postgres
from tests.agents import Nobody
from tests.commandline import CommandLine
from tests.installed import SECRET, Place, add_org
from tests.offering import THEIRS, offered_by_operator
from tests.upstream import Upstream

pytestmark = pytest.mark.anyio
REFUND = {"charge": "ch_1", "amount": 100}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def target() -> Iterator[str]:
    """The URL of an empty database, as its owner."""
    name = postgres.server().new_database()
    yield postgres.server().url(name, postgres.OWNER)
    postgres.server().drop(name)


def name_of(target: str) -> str:
    return target.split("@/")[1].split("?", maxsplit=1)[0]


def serving_url(target: str) -> str:
    return target.replace(postgres.OWNER, postgres.APP)


def moved(place: Place, target: str) -> Place:
    """The same installation, on the other side."""
    settings = replace(place.installation.settings, database_url=serving_url(target), database_owner=target)
    return Place(open_installation(settings), place.org, place.owner, place.tokens)


def tables_in(target: str) -> int:
    from server.postgres import PostgresDatabase

    with contextlib.closing(PostgresDatabase(target)) as database:
        return len(database.tables())


async def filled(place: Place, upstream: Upstream) -> None:
    """Two orgs, one removed; a held call, one that was carried out, and text that is no ASCII."""
    other = add_org(place.installation, "globex")
    other.connect(upstream.url)
    gone = add_org(place.installation, "gone")
    from server.identity import remove_org

    place.database.write_now(lambda rows: remove_org(rows, place.installation.directory.org(gone.org), by="alice"))
    place.rule(who="everyone", tools=["stripe.list_charges"], then="allow")
    async with running(place.installation) as parts:
        await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
        with pytest.raises(ApprovalRequired):
            await call(parts, place.caller(), "stripe_create_refund", {"charge": "ch_ü–漢"}, Nobody())


async def test_what_the_operator_offers_is_used_on_the_other_side_within_what_is_left_of_today(
    place: Place, owner: CommandLine, upstream: Upstream, target: str
) -> None:
    offered_by_operator(place, upstream.url, calls_per_day=2)
    text = {"input": "x"}
    upstream.secret = THEIRS
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "openai_create_moderation", text, Nobody())).ok
    assert owner("database", "migrate", "--to", target, "--yes").code == 0
    there = moved(place, target)
    with on_duty(there.installation.database, there.installation.settings):
        async with running(there.installation) as parts:
            assert (await call(parts, there.caller(), "openai_create_moderation", text, Nobody())).ok
            with pytest.raises(LimitReached):
                await call(parts, there.caller(), "openai_create_moderation", text, Nobody())
    assert len(upstream.requests) == 2
    there.installation.close()
    there.database.close()


async def test_everything_is_on_the_other_side_and_serves_there(
    place: Place, owner: CommandLine, upstream: Upstream, target: str
) -> None:
    await filled(place, upstream)
    before = place.events()
    ran = owner("database", "migrate", "--to", target, "--yes", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["logs"], ran.json["opened"], ran.json["resumed"]) == (3, 2, False)
    there = moved(place, target)
    assert there.events()[: len(before)] == before
    assert [entry["event"] for entry in there.events()[len(before) :]] == ["database.moved"]
    assert there.events() == place.events(), "the log is the same on both sides"
    for org in there.database.orgs():
        assert verify_database(there.database.of(org), org).status.value == "intact"
    with on_duty(there.installation.database, there.installation.settings):
        upstream.requests.clear()
        async with running(there.installation) as parts:
            result = await call(parts, there.caller(), "stripe_list_charges", {}, Nobody())
        assert result.ok
    assert len(upstream.requests) == 1
    assert there.installation.directory.by_token(place.tokens["reconciler"]) is not None
    counts = {one["table"]: one["rows"] for one in ran.json["tables"]}
    assert (counts["org"], counts["removed_org"], counts["approval"]) == (2, 1, 1)
    there.installation.close()
    there.database.close()


async def test_the_file_that_was_moved_serves_no_more_until_it_is_said(
    place: Place, owner: CommandLine, target: str
) -> None:
    moving_there = owner("database", "migrate", "--to", target, "--yes")
    assert moving_there.code == 0
    assert f"KEYLEASH_DATABASE={serving_url(target)}\n" in moving_there.err
    assert serving_url(target) in owner("org", "list").err
    for command in (("serve", "--http", "127.0.0.1:0"), ("org", "list"), ("vault", "backup", "x.db")):
        ran = owner(*command)
        assert (ran.code, "was moved" in ran.err, "--undo" in ran.err) == (1, True, True), command
    assert f"PostgreSQL database {name_of(target)} " in owner("database", "status", "--json").json["moved"]
    assert owner("database", "migrate", "--undo", "--yes").code == 0
    assert owner("org", "list", "--json").json[0]["name"] == "acme"
    again = owner("database", "migrate", "--undo", "--yes")
    assert (again.code, "was not moved" in again.err) == (1, True)


async def test_after_going_back_what_was_recorded_elsewhere_is_missed(
    place: Place, owner: CommandLine, target: str
) -> None:
    assert owner("database", "migrate", "--to", target, "--yes").code == 0
    there = moved(place, target)
    with on_duty(there.installation.database, there.installation.settings):
        there.rule(who="everyone", tools=["*"], then="deny")
    there.installation.close()
    there.database.close()
    assert owner("database", "migrate", "--undo", "--yes").code == 0
    with pytest.raises(DatabaseProblem, match="older database was put back"):
        require_current(SqliteDatabase(place.installation.settings.database), place.installation.settings)


async def test_nothing_is_moved_while_it_is_served(place: Place, owner: CommandLine, target: str) -> None:
    before = place.events()
    with shared(place.installation.settings.serving_lock):
        ran = owner("database", "migrate", "--to", target, "--yes")
    assert (ran.code, "being served" in ran.err) == (1, True)
    assert (tables_in(target), place.events()) == (0, before)


async def test_nothing_is_moved_onto_another_installation(
    place: Place, owner: CommandLine, target: str, tmp_path: Path
) -> None:
    from server.postgres import migrate

    migrate(target, postgres.APP)
    before = place.events()
    ran = owner("database", "migrate", "--to", target, "--yes")
    assert (ran.code, "give an empty database" in ran.err) == (1, True)
    assert place.events() == before
    assert owner("org", "list").code == 0


@pytest.mark.parametrize(
    ("url", "role", "said"),
    [
        ("postgresql://keyleash_owner:hunter2@db/keyleash", "keyleash_app", "holds a password"),
        ("postgresql://keyleash_owner@db/keyleash?password=hunter2", "keyleash_app", "holds a password"),
        ("mysql://somewhere", "keyleash_app", "not understood"),
        (None, "nobody_at_all", "no role nobody_at_all"),
        (None, "keyleash_owner", "both the owner and the role that serves"),
        (None, "postgres", "is a superuser"),
    ],
)
async def test_a_target_that_will_not_do_is_refused_and_left_as_it_was(
    place: Place, owner: CommandLine, target: str, url: str | None, role: str, said: str
) -> None:
    ran = owner("database", "migrate", "--to", url or target, "--role", role, "--yes")
    assert (ran.code, said in ran.err, "hunter2" in ran.err + ran.out) == (1, True, False), ran.err
    assert tables_in(target) == 0
    assert owner("org", "list").code == 0


async def test_a_row_that_differs_there_ends_it_with_nothing_there(place: Place, target: str) -> None:
    """Whatever changes a value on its way is found, because every row is read back."""
    from server import postgres as backend

    class Careless(backend.Session):
        def insert(self, table: str, columns: Any, rows: Any) -> None:
            if table == "member":
                place = list(columns).index("roles")
                rows = [[*row[:place], "x", *row[place + 1 :]] for row in rows]
            super().insert(table, columns, rows)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DatabaseProblem, match="Row 1 of member"):
        patch.setattr(backend, "Session", Careless)
        moving(place, target)
    assert tables_in(target) == 0
    assert [entry.get("failed") for entry in place.events("database.moved")] == [None, "DatabaseProblem"]


async def test_an_altered_log_is_not_carried_over(place: Place, target: str) -> None:
    place.unlock_the_log()
    place.database.write_now(lambda rows: rows.execute("UPDATE audit_entry SET tool = 'x' WHERE seq = 1"))
    with pytest.raises(DatabaseProblem, match="is not whole"):
        moving(place, target)
    assert tables_in(target) == 0


def moving(place: Place, target: str) -> Any:
    return move(place.installation.settings, place.installation.vault, to=target, role=postgres.APP, by="operator")


KILLED = """
import os, signal, sys
from pathlib import Path
from server import moving, postgres
from server.app import open_installation
from server.settings import Settings
home, target, role, where = sys.argv[1:]
installation = open_installation(Settings(home=Path(home)))

def killed(*_words, **_more):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "while it copies":
    postgres.Session.insert = killed
elif where == "while it compares":
    moving._compared = killed
elif where == "before it commits":
    moving._opened = killed
else:
    moving._mark = killed
moving.move(installation.settings, installation.vault, to=target, role=role, by="operator")
"""


@pytest.mark.parametrize(
    "where", ["while it copies", "while it compares", "before it commits", "before the file is marked"]
)
async def test_a_move_that_is_killed_leaves_all_or_nothing_and_is_run_again(
    place: Place, owner: CommandLine, target: str, where: str
) -> None:
    assert killed(place, target, where) == -signal.SIGKILL
    assert postgres.waited(lambda: no_one_is_in(target))
    complete = where == "before the file is marked"
    assert (tables_in(target) > 0) == complete
    assert owner("org", "list").code == 0, "the file serves on"
    again = owner("database", "migrate", "--to", target, "--yes", "--json")
    assert again.code == 0, again.err
    assert again.json["resumed"] == complete
    there = moved(place, target)
    assert there.events() == place.events()
    assert there.caller().agent_name == "reconciler"
    there.installation.close()
    there.database.close()


def killed(place: Place, target: str, where: str) -> int:
    """Move in a process of its own that is killed there; returns how that ended."""
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(place.home), target, postgres.APP, where],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    ).returncode


def no_one_is_in(target: str) -> bool:
    with postgres.server().superuser() as db:
        name = target.rsplit("/", 1)[1].split("?", maxsplit=1)[0]
        found = db.execute("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = %s", (name,)).fetchone()
    return found == (0,)


async def test_a_move_that_was_cut_off_and_then_served_is_not_taken_for_the_same(
    place: Place, owner: CommandLine, target: str
) -> None:
    assert owner("database", "migrate", "--to", target, "--yes").code == 0
    assert owner("database", "migrate", "--undo", "--yes").code == 0
    place.rule(who="everyone", tools=["*"], then="deny")
    ran = owner("database", "migrate", "--to", target, "--yes")
    assert (ran.code, "is not the same" in ran.err) == (1, True)
    assert "what an earlier move left, before `--undo`: drop the database and create it again" in ran.err


def test_nothing_secret_is_said(place: Place, owner: CommandLine, target: str) -> None:
    place.installation.close()
    ran = owner("database", "migrate", "--to", target, "--yes")
    assert SECRET not in ran.out + ran.err
