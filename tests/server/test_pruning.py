"""A log's oldest entries are let go of with proof: the rest verifies, and nothing goes that should not."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server import pruning
from server.approval.tending import tend
from server.audit import Event, append, select, verify_database
from server.audit.checkpoints import Refused
from server.audit.note import Checkpoint, read_note
from server.audit.noted import NotedHeads, hash_at, heads, pruned
from server.audit.proof import Proofs, stub_in
from server.clock import now_ms
from server.copies import copy_database
from server.database import DatabaseProblem
from server.pruning import FLOOR_DAYS, Prunable, PruneProblem, plan, prune
from server.signing import signer_of
from tests.commandline import CommandLine
from tests.installed import Place, add_org
from tests.proving import both, checkpoint, exported

DAY_MS = 24 * 60 * 60 * 1000


def long_ago(place: Place, times: int, *, days: int = 400, event: Event = Event.AUDIT_LISTED, **fields: Any) -> None:
    at = now_ms() - days * DAY_MS
    for _ in range(times):
        place.database.write_now(lambda rows: append(rows, place.org, event, at_ms=at, by="alice", **fields))


@pytest.fixture
def old(place: Place) -> Place:
    """An org whose log begins now, by its clock, and has ten entries that are older, and three that are not."""
    place.unlock_the_log()
    place.database.write_now(lambda rows: rows.execute("DELETE FROM audit_entry WHERE org = ?", (place.org,)))
    locked(place)
    long_ago(place, 10)
    for _ in range(3):
        place.database.write_now(lambda rows: append(rows, place.org, Event.AUDIT_LISTED, by="alice"))
    return place


def locked(place: Place) -> None:
    """The triggers again, as a migration leaves them."""
    if place.installation.settings.database_url is None:
        covered = "EXISTS (SELECT 1 FROM audit_stub s WHERE s.org = OLD.org AND s.seq >= OLD.seq)"
        no = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for name, when in (("update", "BEFORE UPDATE ON audit_entry"), ("delete", "BEFORE DELETE ON audit_entry")):
            guard = f"WHEN NOT {covered} " if name == "delete" else ""
            place.database.write_now(
                lambda rows, sql=f"CREATE TRIGGER audit_entry_no_{name} {when} {guard}{no}": rows.execute(sql)
            )
        return
    for sql in (
        "CREATE TRIGGER audit_entry_stays BEFORE UPDATE OR TRUNCATE ON audit_entry EXECUTE FUNCTION "
        "audit_entry_stays()",
        "CREATE TRIGGER audit_entry_pruned BEFORE DELETE ON audit_entry FOR EACH ROW EXECUTE FUNCTION "
        "audit_entry_pruned()",
    ):
        place.database.write_now(lambda rows, sql=sql: rows.execute(sql))


def planned(place: Place, days: int = 100) -> Prunable:
    installation = place.installation
    before = now_ms() - days * DAY_MS
    settings, approvals = installation.settings, installation.approvals
    return plan(place.database, installation.vault, settings, approvals, place.org, before=before)


def numbers(place: Place) -> list[int]:
    return [entry.seq for entry in select(place.database, place.org)]


def a_checkpoint(place: Place, at: int) -> Checkpoint:
    signer = signer_of(place.installation.database, place.installation.vault, place.org)
    return checkpoint(place.database, place.org, signer, at=at)


@pytest.mark.both_databases
def test_what_is_left_verifies_with_checkpoints_from_before_and_after(old: Place, tmp_path: Path) -> None:
    key = signer_of(old.installation.database, old.installation.vault, old.org).verifier
    early, at_end, late = a_checkpoint(old, 4), a_checkpoint(old, 10), a_checkpoint(old, 12)
    (stub,) = prune(old.database, planned(old), by="the operator")
    assert numbers(old)[0] == 11
    assert (stub.size, stub.extensions["pruned"], json.loads(stub.extensions["by"])) == (10, "1-10", "the operator")
    assert stub.root == at_end.root
    (entry,) = old.events("audit.pruned")
    assert (entry["first"], entry["last"], entry["root"]) == (1, 10, stub.root.hex())
    new = a_checkpoint_now(old)
    for notes in ((), (at_end,), (late,), (new,), (at_end, late, new), (early, new)):
        proofs = Proofs(tuple(notes), key)
        report = verify_database(old.database, old.org, proofs=proofs)
        assert (report.exit_code, report.pruned, report.entries) == (0, 10, len(numbers(old))), report
        assert report.checkpoints == tuple(one.size for one in notes if one is not early)
        said = " ".join(report.cannot_exclude)
        assert ("checkpoints of size 4" in said) is (early in notes)
        text = "\n".join(map(str, notes))
        assert both(exported(old.database, old.org), tmp_path, text, key).exit_code == 0
    report = verify_database(old.database, old.org)
    assert "signed it with a key of their own" in " ".join(report.cannot_exclude)
    assert both(exported(old.database, old.org), tmp_path, alone=True).pruned == 10


def a_checkpoint_now(place: Place) -> Checkpoint:
    signer = signer_of(place.installation.database, place.installation.vault, place.org)
    noted = NotedHeads(place.installation.settings.noted_heads)
    return noted.checkpoint(place.database, place.org, signer)[0]


@pytest.mark.both_databases
def test_it_is_pruned_again_and_goes_on(old: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "AT_ONCE", 4)
    steps: list[int] = []
    stubs = prune(old.database, planned(old), by="the operator", progress=steps.append)
    assert [stub.extensions["pruned"] for stub in stubs] == ["1-4", "5-8", "9-10"]
    assert steps == [4, 8, 10]
    long_ago(old, 5, days=200)
    # what is older stands behind what is younger: nothing goes out of turn
    with pytest.raises(PruneProblem, match="nothing to prune"):
        planned(old)
    assert verify_database(old.database, old.org).exit_code == 0
    NotedHeads(old.installation.settings.noted_heads).note(old.database)
    assert hash_at(old.database, old.org, 10) == stubs[-1].head.hash  # pyright: ignore[reportOptionalMemberAccess]
    assert hash_at(old.database, old.org, 4) is None
    assert pruned(old.database, old.org) == 10


# -- what is never pruned


def test_nothing_young_goes(old: Place) -> None:
    with pytest.raises(PruneProblem, match=f"younger than {FLOOR_DAYS} days"):
        planned(old, days=FLOOR_DAYS - 1)
    assert planned(old, days=FLOOR_DAYS).last == 10


def test_the_last_entry_of_all_stays(place: Place) -> None:
    place.unlock_the_log()
    place.database.write_now(lambda rows: rows.execute("DELETE FROM audit_entry WHERE org = ?", (place.org,)))
    locked(place)
    signer_of(place.installation.database, place.installation.vault, place.org)
    with pytest.raises(PruneProblem, match="nothing to prune"):
        planned(place)


@pytest.mark.parametrize("why", ["running", "lost", "held"])
def test_a_call_that_is_not_over_stays_with_all_that_follows(old: Place, why: str) -> None:
    place = old
    if why == "running":
        place.unlock_the_log()
        place.database.write_now(lambda rows: rows.execute("DELETE FROM audit_entry"))
        locked(place)
        long_ago(place, 4)
        long_ago(place, 1, event=Event.CALL_ATTEMPT, tool="t")
        long_ago(place, 5)
        assert planned(place).last == 4
        asyncio.run(tend(place.installation.database, place.installation.approvals, place.org))
        assert place.events("call.unknown")[0]["attempt"] == 5
        assert planned(place).last == 4, "its end is on record now, and waits for a person to look"
        place.database.write_now(lambda rows: rows.execute("UPDATE lost_call SET resolution = '{}'"))
        assert planned(place).last >= 10
    elif why == "lost":
        columns = "org, id, attempt, agent, agent_name, connection, tool, effect, call_grant, under_way, at"
        values = (place.org, "lst_1", 7, "agt", "a", "stripe", "t", "write", None, False, 0)
        place.database.write_now(
            lambda rows: rows.execute(f"INSERT INTO lost_call ({columns}) VALUES ({', '.join('?' * 11)})", values)
        )
        assert planned(place).last == 6
    else:
        held(place, now_ms() - 500 * DAY_MS)
        with pytest.raises(PruneProblem, match="waits for a person"):
            planned(place)


def held(place: Place, since: int) -> None:
    from server.tables import Approval

    blank: dict[str, Any] = {}
    for column in Approval.__table__.columns:  # pyright: ignore[reportAttributeAccessIssue]
        kind = column.type.python_type
        blank[column.name] = None if column.nullable else {int: 1, bool: False}.get(kind, "x")
    blank |= {"org": place.org, "id": "apr_old", "state": "pending", "created_at": since}
    names = ", ".join(blank)
    place.database.write_now(
        lambda rows: rows.execute(
            f"INSERT INTO approval ({names}) VALUES ({', '.join('?' * len(blank))})", list(blank.values())
        )
    )


def test_a_log_that_does_not_verify_is_not_pruned(old: Place) -> None:
    old.unlock_the_log()
    old.database.write_now(
        lambda rows: rows.execute("UPDATE audit_entry SET body = replace(body, 'alice', 'malice') WHERE seq = 2")
    )
    before = numbers(old)
    with pytest.raises(Refused, match="Entry 2"):
        planned(old)
    assert numbers(old)[: len(before)] == before
    assert stub_in(old.database, old.org) is None


def test_what_was_signed_outside_covers_what_goes(old: Place) -> None:
    wanted = planned(old)
    latest = NotedHeads(old.installation.settings.noted_heads).signed.latest(old.org)
    assert latest is not None
    assert latest.size > wanted.last
    (old.home / "checkpoints" / "x").mkdir()
    for path in (old.home / "checkpoints" / old.org).iterdir():
        path.unlink()
    (old.home / "checkpoints" / old.org).rmdir()
    (old.home / "checkpoints" / old.org).write_text("in the way")
    with pytest.raises(Exception, match=r"cannot be (read|written)"):
        planned(old)


def test_two_who_prune_at_once_remove_nothing_twice(old: Place) -> None:
    first, second = planned(old), planned(old)
    prune(old.database, first, by="one")
    left = numbers(old)
    with pytest.raises((PruneProblem, Refused)):
        prune(old.database, second, by="other")
    assert numbers(old)[: len(left)] == left
    assert verify_database(old.database, old.org).exit_code == 0


class Raced:
    """A database in which something else happens right before each write."""

    def __init__(self, database: Any, before: Callable[[], object]) -> None:
        self._database, self._before = database, before

    def of(self, org: str) -> "Raced":
        return Raced(self._database.of(org), self._before)

    def read(self, sql: str, params: Any = ()) -> list[tuple[Any, ...]]:
        return self._database.read(sql, params)

    def write_now(self, change: Callable[[Any], Any]) -> Any:
        self._before()
        return self._database.write_now(change)


def test_what_another_pruned_in_the_last_moment_is_not_said_to_have_gone_with_ours(old: Place) -> None:
    wanted = planned(old)
    fewer = Prunable(wanted.org, wanted.first, wanted.last - 5, wanted.signer)
    raced: Any = Raced(old.database, lambda: prune(old.database, fewer, by="other"))
    with pytest.raises(PruneProblem, match="meanwhile"):
        prune(raced, wanted, by="one")
    stub = stub_in(old.database, old.org)
    assert stub is not None
    assert (stub.size, numbers(old)[0]) == (fewer.last, fewer.last + 1)
    assert verify_database(old.database, old.org).exit_code == 0


@pytest.mark.parametrize("size", [4, 10])
def test_a_checkpoint_here_of_what_was_pruned_meanwhile_is_gone_on_from(old: Place, size: int) -> None:
    kept, by = a_checkpoint(old, size), signer_of(old.installation.database, old.installation.vault, old.org)
    prune(old.database, planned(old), by="elsewhere")
    noted = NotedHeads(old.installation.settings.noted_heads)
    noted.signed.keep(old.org, kept, by.verifier)
    assert noted.missing(old.database) == []
    assert noted.doubts(old.database) == []
    note, new = noted.checkpoint(old.database, old.org, by)
    assert (new, note.size) == (True, numbers(old)[-1])
    assert verify_database(old.database, old.org, proofs=Proofs((note,), by.verifier)).exit_code == 0


@pytest.mark.both_databases
def test_as_migrated_the_database_lets_go_of_what_a_stub_stands_for_and_of_nothing_else(place: Place) -> None:
    other = add_org(place.installation, "globex")

    def delete(org: str, seq: int) -> None:
        place.database.write_now(
            lambda rows: rows.execute("DELETE FROM audit_entry WHERE org = ? AND seq = ?", (org, seq))
        )

    place.database.write_now(
        lambda rows: rows.execute("INSERT INTO audit_stub (org, seq, note) VALUES (?, 2, 'x')", (place.org,))
    )
    for org, seq in ((place.org, 3), (other.org, 1)):
        with pytest.raises(DatabaseProblem):
            delete(org, seq)
    delete(place.org, 1)
    delete(place.org, 2)
    assert (numbers(place)[0], numbers(other)[0]) == (3, 1)


def test_another_orgs_log_is_not_touched(old: Place) -> None:
    other = add_org(old.installation, "globex")
    before = [entry.text for entry in select(other.database, other.org)]
    prune(old.database, planned(old), by="the operator")
    assert [entry.text for entry in select(other.database, other.org)] == before


# -- by whom, and how


@pytest.mark.both_databases
def test_the_database_lets_nothing_go_that_no_stub_stands_for(old: Place) -> None:
    for sql in ("DELETE FROM audit_entry WHERE seq = 1", "UPDATE audit_entry SET body = 'x' WHERE seq = 1"):
        with pytest.raises(DatabaseProblem):
            old.database.write_now(lambda rows, sql=sql: rows.execute(sql))
    prune(old.database, planned(old), by="the operator")
    for sql in (
        "DELETE FROM audit_entry WHERE seq = 11",
        "DELETE FROM audit_stub",
        "UPDATE audit_stub SET seq = 99",
    ):
        with pytest.raises(DatabaseProblem):
            old.database.write_now(lambda rows, sql=sql: rows.execute(sql))
    assert numbers(old)[0] == 11


@pytest.mark.both_databases
def test_the_operator_prunes_at_the_command_line_and_that_is_on_record(old: Place, owner: CommandLine) -> None:
    ran = owner("audit", "prune", "--keep", "100d", "--yes", "--json")
    assert (ran.code, ran.json["first"], ran.json["last"]) == (0, 1, 10)
    assert read_note(ran.json["stubs"][0].encode()).size == 10
    (entry,) = old.events("audit.pruned")
    assert "the operator" in entry["by"]
    assert owner("audit", "verify").out.startswith("Intact: ")
    assert "after 10 that were pruned" in owner("audit", "verify").out
    assert owner("audit", "list").code == 0
    again = owner("audit", "prune", "--before", "100d", "--yes")
    assert (again.code, "nothing to prune" in again.err) == (1, True)
    assert owner("audit", "prune", "--keep", "1d", "--yes").code == 1
    assert owner("audit", "prune", "--yes").code == 2
    assert owner("audit", "prune", "--keep", "1d", "--before", "2d", "--yes").code == 2


def test_without_a_yes_and_a_terminal_nothing_goes(old: Place, owner: CommandLine) -> None:
    before = numbers(old)
    assert owner.alone("audit", "prune", "--keep", "100d").code == 1
    assert numbers(old)[: len(before)] == before


def test_without_the_root_key_nobody_prunes(old: Place, owner: CommandLine) -> None:
    before = numbers(old)
    (old.home / "keys" / "root.key").unlink()
    ran = owner("audit", "prune", "--keep", "100d", "--yes")
    assert (ran.code, "Only the operator" in ran.err) == (1, True)
    assert numbers(old) == before


# -- what else reads the log


@pytest.mark.both_databases
def test_what_looks_through_the_log_goes_on_after_the_pruned_entries(old: Place) -> None:
    approvals = old.installation.approvals
    prune(old.database, planned(old), by="the operator")
    look = approvals.unknown.look(old.org, now_ms())
    assert (look.lost, look.read) == ({}, numbers(old)[-1])
    assert old.database.write_now(lambda rows: approvals.unknown.write_down(rows, old.org, look, now_ms()))
    assert [entry.seq for entry in select(old.database, old.org, since=0)] == numbers(old)


@pytest.mark.sqlite_only("a backup is of SQLite's file")
def test_a_pruned_log_is_backed_up_and_restored_and_a_backup_from_before_is_behind(
    old: Place, owner: CommandLine, tmp_path: Path
) -> None:
    assert owner("vault", "backup", str(tmp_path / "before.db")).code == 0
    assert owner("audit", "prune", "--keep", "100d", "--yes").code == 0
    assert owner("vault", "backup", str(tmp_path / "after.db")).code == 0
    old.installation.close()
    ran = owner("vault", "restore", str(tmp_path / "before.db"), "--yes")
    assert (ran.code, "behind" in ran.err) == (1, True)
    ended = heads(old.database)[old.org].seq
    backed_up = next(body["seq"] for body in old.events("vault.backed_up"))
    assert f"{ended - backed_up} entries behind" in ran.err, "told from where the two part, beyond what was pruned"
    assert owner("vault", "restore", str(tmp_path / "after.db"), "--yes").code == 0
    assert owner("audit", "verify").code == 0


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_a_pruned_log_that_was_put_back_is_found(old: Place, tmp_path: Path) -> None:
    prune(old.database, planned(old), by="the operator")
    copy_database(old.installation.settings.database, tmp_path / "older.db")
    old.database.write_now(lambda rows: append(rows, old.org, Event.AUDIT_LISTED, by="alice"))
    noted = NotedHeads(old.installation.settings.noted_heads)
    noted.note(old.database)
    from tests.server.test_noted import put_back

    put_back(old, tmp_path / "older.db")
    (gap,) = noted.missing(old.database)
    assert gap.lost == 1


def test_a_stub_that_is_not_the_logs_own_is_refused_by_whoever_signs(old: Place) -> None:
    from tests.proving import signer

    theirs = signer(old.org, 66)
    wanted = planned(old)
    prune(old.database, Prunable(wanted.org, wanted.first, wanted.last, theirs), by="mallory")
    by = signer_of(old.installation.database, old.installation.vault, old.org)
    with pytest.raises(Refused, match="is not ours"):
        NotedHeads(old.installation.settings.noted_heads).checkpoint(old.database, old.org, by)
    report = verify_database(old.database, old.org)
    assert (report.exit_code, report.first_bad) == (1, 1)
