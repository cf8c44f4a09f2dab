"""Keys rotate while they are in use: nothing that was sealed is lost, and nothing stays under the key before."""

import ast
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import LargeBinary
from sqlmodel import SQLModel

import server.tables
from server.app import open_installation, running
from server.approval import Decision
from server.call import Parts, call
from server.erasure import attempt
from server.errors import ApprovalRequired
from server.identity import remove_org
from server.rotation import Moved, RotationProblem, _drop, drop_root, rotate_org, rotate_root
from server.sealed import DERIVED, SEALED
from tests import postgres
from tests.agents import Nobody, decide, execute
from tests.commandline import CommandLine
from tests.installed import SECRET, Place, add_org
from tests.remnants import remnants
from tests.server.rotating import everything, rotate
from tests.upstream import Upstream
from vault import RootKeyProblem, Sealed, Vault, VaultError, root_key_spec

assert server.tables
pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def busy(place: Place, upstream: Upstream) -> AsyncIterator[Place]:
    """Two orgs with credentials; in one of them a held call, one that was carried out, and a grant."""
    upstream.secret = None  # it takes any key, and the tests look at which one it was given
    for number in range(4):
        place.connect(upstream.url, name=f"stripe_{number}", secret=f"{SECRET}_{number}")
    place.connect(upstream.url, connector="slack", secret=f"{SECRET}_slack")
    other = add_org(place.installation, "other")
    other.connect(upstream.url, secret=f"{SECRET}_other")
    async with running(place.installation) as parts:
        await held(parts, place)
        decide(place, await held(parts, place, "slack_post_message", MESSAGE), Decision.APPROVE_HOUR)
        await call(parts, place.caller(), "slack_post_message", MESSAGE, Nobody())
        yield place


REFUND = {"charge": "ch_waits"}
MESSAGE = {"channel": "C1", "text": "hello"}


async def held(parts: Parts, place: Place, name: str = "stripe_create_refund", arguments: Any = None) -> str:
    with pytest.raises(ApprovalRequired) as waiting:
        await call(parts, place.caller(), name, arguments or REFUND, Nobody())
    return waiting.value.approval


def counts(place: Place, sql: str) -> int:
    return int(place.database.read(sql)[0][0])


async def test_after_a_new_root_key_everything_opens_and_nothing_is_under_the_one_before(busy: Place) -> None:
    before = everything(busy.installation)
    assert len(before) > 15
    rotate(busy.installation, "root")
    assert counts(busy, "SELECT COUNT(*) FROM vault_org_key WHERE root = 1") == 0
    assert everything(busy.installation) == before  # a process that was started with the key before
    fresh = open_installation(busy.installation.settings)
    assert fresh.vault.sealed is None
    assert everything(fresh) == before
    (busy.home / "keys" / "root.key").unlink()
    assert everything(open_installation(busy.installation.settings)) == before
    status = busy.database.snapshot(fresh.vault.status)
    assert [(root.generation, root.retired_at is None, root.org_keys) for root in status.roots] == [
        (1, False, 0),
        (2, True, 2),
    ]
    assert status.location == str(busy.home / "keys" / "root-2.key")
    (entry,) = busy.events("vault.root_rotated")
    assert (entry["generation_before"], entry["generation"], entry["by"]) == (1, 2, "test")


async def test_after_a_new_org_key_everything_opens_and_the_one_before_is_gone(busy: Place) -> None:
    before = everything(busy.installation)
    other = busy.database.read("SELECT * FROM vault_org_key WHERE org <> ?", (busy.org,))
    done = rotate_org(busy.database, busy.installation.vault, busy.org, by="test")
    assert (done.version, done.credentials, done.texts, done.dropped, done.resumed) == (2, 6, 8, 1, False)
    assert everything(busy.installation) == before
    assert everything(open_installation(busy.installation.settings)) == before
    assert counts(busy, f"SELECT COUNT(*) FROM vault_org_key WHERE org = '{busy.org}' AND version = 1") == 0
    assert busy.database.read("SELECT * FROM vault_org_key WHERE org <> ?", (busy.org,)) == other
    assert [entry["step"] for entry in busy.events("vault.org_rotated")] == ["begun", "finished"]


async def test_what_is_derived_survives_one_rotation_after_another(busy: Place) -> None:
    before = everything(busy.installation)
    for _ in range(3):
        rotate(busy.installation, busy.org)
        rotate(busy.installation, "root")
    assert everything(open_installation(busy.installation.settings)) == before


async def test_a_held_call_is_the_same_call_and_a_grant_still_covers_it_after_a_rotation(
    busy: Place, upstream: Upstream
) -> None:
    async with running(busy.installation) as parts:
        waiting = await held(parts, busy)
        rotate(busy.installation, busy.org)
        assert await held(parts, busy) == waiting
        sent = len(upstream.requests)
        await call(parts, busy.caller(), "slack_post_message", {**MESSAGE, "text": "again"}, Nobody())
        assert len(upstream.requests) == sent + 1


async def test_calls_go_on_while_both_kinds_of_key_rotate(busy: Place, upstream: Upstream) -> None:
    outcomes: list[bool] = []
    async with running(busy.installation) as parts:

        async def work(number: int) -> None:
            for _ in range(25):
                outcome = await call(parts, busy.caller(), f"stripe_{number}_list_charges", {}, Nobody())
                outcomes.append(outcome.ok)

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(work, number)
            for what in (busy.org, "root", busy.org, "root"):
                await anyio.to_thread.run_sync(rotate, open_installation(busy.installation.settings), what)
    assert outcomes == [True] * 100
    assert all(request.headers["authorization"].startswith(f"Bearer {SECRET}_") for request in upstream.requests[1:])


@pytest.mark.slow
async def test_rotations_killed_at_any_statement_lose_nothing_and_finish_when_run_again(busy: Place) -> None:
    before = everything(busy.installation)
    reader = start("read", str(busy.home))
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    chance = random.Random(20)
    statements = {what: int(finished(busy, what).strip()) for what in (busy.org, "root")}
    kills = 0
    rotating = start("rotate-each", str(busy.home))
    assert rotating.stdin is not None
    assert rotating.stdout is not None
    while kills < 24:
        for what, number in statements.items():
            print(what, chance.randint(1, number), file=rotating.stdin, flush=True)
            ended = int(rotating.stdout.readline())
            kills += ended == -signal.SIGKILL
            assert ended in (-signal.SIGKILL, 0), rotating.communicate(timeout=60)
            assert everything(open_installation(busy.installation.settings)) == before
    assert rotating.communicate(timeout=60) == ("", "")
    for what in statements:
        finished(busy, what)
    nothing_is_left_under_an_earlier_key(busy)
    assert everything(open_installation(busy.installation.settings)) == before
    read, _ = reader.communicate("stop\n", timeout=60)
    rounds = read.splitlines()
    assert len(rounds) > kills
    assert set(rounds) == {"ok"}


def nothing_is_left_under_an_earlier_key(place: Place) -> None:
    newest = counts(place, "SELECT MAX(id) FROM vault_root")
    assert counts(place, f"SELECT COUNT(*) FROM vault_org_key WHERE root <> {newest}") == 0
    assert counts(place, "SELECT COUNT(*) FROM vault_org_key") == 2


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.rotating", *arguments],
        cwd=ROOT,
        env={**os.environ, **postgres.environment(Path(arguments[1])), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def finished(place: Place, what: str) -> str:
    done = run("rotate", str(place.home), what, "0")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.sqlite_only("it is about SQLite's file")
async def test_nothing_that_an_earlier_key_wrapped_is_left_in_the_files(busy: Place) -> None:
    vault_tables = [("vault_org_key", "wrapped"), ("vault_credential", "data_key"), ("vault_derived", "sealed")]

    def wrapped() -> list[bytes]:
        return [row[0] for t, c in vault_tables for row in busy.database.read(f"SELECT {c} FROM {t}")]

    for what in ("root", busy.org, "root"):
        before = wrapped()
        rotate(busy.installation, what)
        gone = set(before) - set(wrapped())
        assert gone
        assert remnants(busy.home, gone)  # in the write-ahead log, until it is erased
        assert attempt(busy.database) == []
        assert remnants(busy.home, gone) == []
    assert [entry["erased"] for entry in busy.events("erasure.completed")] == ["key"] * 3


async def test_a_rotation_that_was_begun_keeps_sealing_and_is_finished_by_the_next_run(busy: Place) -> None:
    killed = run("rotate", str(busy.home), busy.org, "UPDATE vault_credential")
    assert killed.returncode == -signal.SIGKILL
    busy.connect("http://127.0.0.1:1", name="meanwhile", secret=f"{SECRET}_new")
    done = rotate_org(busy.database, busy.installation.vault, busy.org, by="test")
    assert (done.resumed, done.version) == (True, 2)
    assert everything(busy.installation)[f"{busy.org} meanwhile"] == f"{SECRET}_new"


@pytest.mark.parametrize("done", ["neither", "the credentials"])
async def test_an_earlier_key_is_not_dropped_while_anything_is_under_it(busy: Place, done: str) -> None:
    before = everything(busy.installation)
    stop = "UPDATE vault_credential" if done == "neither" else "UPDATE approval"
    assert run("rotate", str(busy.home), busy.org, stop).returncode == -signal.SIGKILL
    dropped = busy.database.write_now(lambda rows: _drop(rows, org=busy.org, version=2, by="test", moved=Moved()))
    assert dropped is None
    assert counts(busy, f"SELECT COUNT(*) FROM vault_org_key WHERE org = '{busy.org}'") == 2
    assert [entry["step"] for entry in busy.events("vault.org_rotated")] == ["begun"]
    assert everything(open_installation(busy.installation.settings)) == before


async def test_two_that_rotate_at_once_end_with_one_key_and_lose_nothing(busy: Place) -> None:
    before = everything(busy.installation)
    for what in (busy.org, "root"):
        both = [start("rotate", str(busy.home), what, "0") for _ in range(2)]
        ended = [process.communicate(timeout=120)[1] for process in both]
        assert 0 in [process.returncode for process in both], ended
        rotate(busy.installation, what)
        nothing_is_left_under_an_earlier_key(busy)
        assert everything(open_installation(busy.installation.settings)) == before


async def test_an_altered_credential_is_named_and_keeps_the_earlier_key_from_being_dropped(busy: Place) -> None:
    (row,) = busy.database.read("SELECT id FROM connection WHERE name = 'stripe_2'")
    execute(busy, "UPDATE vault_credential SET data_key = ? WHERE connection = ?", bytes(113), row[0])
    with pytest.raises(RotationProblem, match=r"stripe_2 cannot be opened.*connection rotate stripe_2"):
        rotate(busy.installation, busy.org)
    assert counts(busy, f"SELECT COUNT(*) FROM vault_org_key WHERE org = '{busy.org}'") == 2
    execute(busy, "DELETE FROM vault_field WHERE connection = ?", row[0])
    execute(busy, "DELETE FROM vault_credential WHERE connection = ?", row[0])
    rotate(busy.installation, busy.org)
    assert counts(busy, f"SELECT COUNT(*) FROM vault_org_key WHERE org = '{busy.org}'") == 1


async def test_an_altered_text_is_named_and_keeps_the_earlier_key_from_being_dropped(busy: Place) -> None:
    execute(busy, "UPDATE approval SET sealed_prompt = ?", b"\0\0\0\1" + bytes(90))
    with pytest.raises(RotationProblem, match="A sealed text of approval apr_"):
        rotate(busy.installation, busy.org)
    assert counts(busy, f"SELECT COUNT(*) FROM vault_org_key WHERE org = '{busy.org}'") == 2


async def test_an_altered_org_key_is_named_and_the_earlier_root_key_stays(busy: Place) -> None:
    execute(busy, "UPDATE vault_org_key SET wrapped = ? WHERE org = ?", bytes(113), busy.org)
    with pytest.raises(RotationProblem, match=f"key of {busy.org} cannot be opened"):
        rotate(busy.installation, "root")
    with pytest.raises(VaultError, match="cannot be dropped"):
        drop_root(busy.database, 1, by="test")
    assert (busy.home / "keys" / "root.key").exists()


async def test_a_root_key_with_rows_under_it_or_in_use_cannot_be_dropped(busy: Place) -> None:
    with pytest.raises(VaultError, match="2 keys of orgs are under it"):
        drop_root(busy.database, 1, by="test")
    rotate(busy.installation, "root")
    with pytest.raises(VaultError, match="cannot be dropped"):
        drop_root(busy.database, 2, by="test")
    with pytest.raises(VaultError, match="no root key of generation 7"):
        drop_root(busy.database, 7, by="test")
    dropped = drop_root(busy.database, 1, by="test")
    assert dropped[:2] == ("file", str(busy.home / "keys" / "root.key"))
    assert everything(open_installation(busy.installation.settings))


async def test_a_move_to_one_place_is_finished_before_one_to_another_begins(busy: Place, tmp_path: Path) -> None:
    database, vault = busy.database, busy.installation.vault
    first, second = (root_key_spec(f"file:{tmp_path / name}", busy.home) for name in ("first.key", "second.key"))
    killed = run("rotate", str(busy.home), "root", "UPDATE vault_root")
    assert killed.returncode == -signal.SIGKILL
    assert rotate_root(database, vault, first, by="test").moved == 2  # nothing was under the one that was begun
    assert counts(busy, "SELECT COUNT(*) FROM vault_root") == 2
    killed = run("rotate", str(busy.home), "root", "UPDATE vault_org_key")
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(VaultError, match="was begun and not finished"):
        rotate_root(database, vault, second, by="test")
    assert not (tmp_path / "second.key").exists()


async def test_a_new_root_key_is_never_put_over_one_that_is_there(busy: Place, tmp_path: Path) -> None:
    taken = root_key_spec(f"file:{tmp_path / 'taken.key'}", busy.home)
    taken.create()
    there = (tmp_path / "taken.key").read_bytes()
    with pytest.raises(RootKeyProblem, match="There is a root key in file"):
        rotate_root(busy.database, busy.installation.vault, taken, by="test")
    assert (tmp_path / "taken.key").read_bytes() == there
    assert counts(busy, "SELECT COUNT(*) FROM vault_org_key WHERE root = 1") == 2


async def test_an_org_that_is_removed_while_its_key_rotates_is_not_said_to_have_a_new_one(busy: Place) -> None:
    database, vault = busy.database, busy.installation.vault
    org = busy.installation.directory.org("other")

    def removed(_done: int) -> None:
        if busy.installation.directory.removed_org(org.id) is None:
            database.write_now(lambda rows: remove_org(rows, org, by="test"))

    with pytest.raises(RotationProblem, match="the org was removed"):
        rotate_org(database, vault, org.id, by="test", progress=removed)
    last = database.read("SELECT event FROM audit_entry WHERE org = ? ORDER BY seq DESC LIMIT 1", (org.id,))
    assert last == [("org.removed",)]


async def test_a_sealed_vault_rotates_nothing(busy: Place) -> None:
    before = busy.database.read("SELECT * FROM vault_root")
    place = root_key_spec("file", busy.home).successor(2)
    with pytest.raises(Sealed):
        rotate_root(busy.database, Vault(None, "why."), place, by="test")
    with pytest.raises(Sealed):
        rotate_org(busy.database, Vault(None, "why."), busy.org, by="test")
    assert busy.database.read("SELECT * FROM vault_root") == before
    assert not (busy.home / "keys" / "root-2.key").exists()


def test_every_column_of_sealed_bytes_is_in_the_list_that_a_rotation_goes_through() -> None:
    columns = {
        (table.name, column.name)
        for table in SQLModel.metadata.tables.values()
        if not table.name.startswith("vault_")
        for column in table.columns
        if isinstance(column.type, LargeBinary) or column.name.startswith("sealed_")
    }
    assert columns == {(place.table, place.column) for place in SEALED}


DERIVING = ("derive", "keyed", "signing_key")


def test_every_purpose_that_the_server_derives_keys_for_is_in_the_list_that_a_rotation_carries_over() -> None:
    derived: set[str] = set()
    for path in (ROOT / "server").rglob("*.py"):
        whole = ast.parse(path.read_text(encoding="utf-8"))
        assigned = [
            each for each in whole.body if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant)
        ]
        named = {ast.unparse(each.targets[0]): each.value.value for each in assigned}
        for node in ast.walk(whole):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in DERIVING:
                derived |= {each.value for each in node.args if isinstance(each, ast.Constant) and each.value}
                derived |= {named[each.id] for each in node.args if isinstance(each, ast.Name) and each.id in named}
    assert derived - {"request-state", "backup-seal"} == set(DERIVED)  # the installation's own key is never another


# -- the commands


@pytest.fixture
def operator(owner: CommandLine, place: Place) -> CommandLine:
    place.installation.close()
    return owner


def command(line: CommandLine, *arguments: str) -> Any:
    ran = line(*arguments, "--json")
    assert ran.code == 0, ran.err
    return ran.json


def test_the_commands_rotate_drop_and_tell(operator: CommandLine, place: Place) -> None:
    first = command(operator, "vault", "rotate-root", "--yes")
    assert (first["generation"], first["moved"], first["resumed"]) == (2, 1, False)
    second = command(operator, "vault", "rotate-org", "acme", "--yes")
    assert (second["org"], second["version"], second["credentials"], second["dropped"]) == ("acme", 2, 1, 1)
    told = command(operator, "vault", "status")
    assert [(r["generation"], r["state"], r["org_keys"]) for r in told["roots"]] == [
        (1, "retired", 0),
        (2, "in use", 1),
    ]
    ((key,),) = [org["keys"] for org in told["orgs"]]
    assert (key["version"], key["root"], key["credentials"], key["texts"]) == (2, 2, 1, 0)
    assert told["unfinished"] is None
    assert command(operator, "vault", "drop-root", "1", "--yes")["destroyed"] is True
    assert not (place.home / "keys" / "root.key").exists()
    assert operator("connection", "test", "stripe", "--json").json["ok"] is True
    for name in ("vault.root_rotated", "vault.org_rotated", "vault.root_dropped"):
        assert place.events(name)
        assert all("the operator (system user " in entry["by"] for entry in place.events(name))
    assert operator("audit", "verify").code == 0


def test_the_root_key_moves_to_another_place(operator: CommandLine, place: Place, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    done = command(operator, "vault", "rewrap", "--to", f"file:{tmp_path / 'elsewhere' / 'k'}", "--yes")
    assert done["location"] == str(tmp_path / "elsewhere" / "k")
    (place.home / "keys" / "root.key").unlink()
    assert operator("connection", "test", "stripe", "--json").json["ok"] is True


@pytest.mark.parametrize(
    "arguments",
    [("rotate-root",), ("rotate-org", "acme"), ("rewrap", "--to", "file:k"), ("drop-root", "1")],
    ids=lambda given: given[0],
)
def test_nothing_is_rotated_unasked_or_without_the_root_key(
    operator: CommandLine, place: Place, arguments: tuple[str, ...]
) -> None:
    before = place.database.read("SELECT * FROM vault_root")
    unasked = operator.alone("vault", *arguments)
    assert (unasked.code, "--yes" in unasked.err) == (1, True)
    (place.home / "keys" / "root.key").rename(place.home / "gone.key")
    sealed = operator("vault", *arguments, "--yes")
    assert sealed.code == 1
    assert "Only the operator may do this" in sealed.err
    assert place.database.read("SELECT * FROM vault_root") == before


def test_status_names_a_rotation_that_was_begun_and_how_to_finish_it(operator: CommandLine, place: Place) -> None:
    assert run("rotate", str(place.home), place.org, "UPDATE vault_credential").returncode == -signal.SIGKILL
    told = operator("vault", "status")
    assert "keyleash vault rotate-org acme" in told.out
    (warned,) = [one for one in operator("doctor", "--json").json if one["check"] == "rotations"]
    assert (warned["status"], "keyleash vault rotate-org acme" in warned["message"]) == ("warn", True)
    assert command(operator, "vault", "rotate-org", "acme", "--yes")["resumed"] is True
    assert command(operator, "vault", "status")["unfinished"] is None
