"""A restore is checked before anything is changed, refused where it goes back, and leaves nothing usable twice."""

import contextlib
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from server.audit import Event, Head, append, head
from server.audit.noted import NotedHeads, heads
from server.connections import connection_named, connections_of, open_credential
from server.copies import copy_database
from server.locks import shared
from server.settings import Settings
from server.sqlite import SqliteDatabase
from tests.agents import execute
from tests.commandline import CommandLine
from tests.consenting import noted
from tests.installed import SECRET, Place, make
from tests.leaks import leak, leaking_files
from tests.server.restoring import (
    PASSPHRASE,
    Backup,
    approval,
    dump_of,
    dumped,
    everything_in,
    grant,
    happen,
    reopened,
    rows_of,
    states,
)

pytestmark = pytest.mark.sqlite_only("it is about SQLite's file")

# -- onto a new machine


def test_a_new_machine_gets_everything_back(backup: Backup) -> None:
    new = backup.elsewhere()
    ran = new("vault", "restore", str(backup.file), "--json")
    assert ran.code == 0, ran.err
    place = reopened(backup.place, new.home)
    (connection,) = connections_of(place.database, place.org)
    with place.database.query(lambda rows: open_credential(rows, place.installation.vault, connection)) as opened:
        assert opened.reveal() == SECRET
    assert new("audit", "verify").code == 0
    assert sorted(path.name for path in new.home.iterdir()) == ["checkpoints", "data"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in new.home.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert stat.S_IMODE(new.home.stat().st_mode) == stat.S_IMODE((new.home / "data").stat().st_mode) == 0o700
    assert sorted(path.name for path in (new.home / "data").iterdir() if "-" not in path.name) == [
        "keyleash.db",
        "serving.lock",
    ]


def test_where_nothing_tells_how_far_the_log_went_all_agents_are_stopped(backup: Backup) -> None:
    new = backup.elsewhere()
    ran = new("vault", "restore", str(backup.file))
    assert ran.code == 0
    assert "how far the log of acme went" in ran.err
    assert "All agents are stopped" in ran.err
    assert new("org", "show", "--json").json["frozen"]
    said = new("vault", "restore", str(backup.file), "--json")  # again, and nothing has happened since
    assert said.json["restored_before"] is True


def test_a_head_noted_elsewhere_shows_that_nothing_is_missing(backup: Backup) -> None:
    new = backup.elsewhere()
    noted = head(backup.place.database, backup.place.org)
    ran = new("vault", "restore", str(backup.file), "--head", f"acme={noted}", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["frozen"], ran.json["not_compared"], ran.json["compared"]) == (False, [], ["--head"])
    assert not new("org", "show", "--json").json["frozen"]


def test_a_head_that_the_backup_does_not_reach_refuses_it(backup: Backup) -> None:
    new = backup.elsewhere()
    happen(backup.place, 4)
    noted = head(backup.place.database, backup.place.org)
    for name in ("acme", backup.place.org):
        ran = new("vault", "restore", str(backup.file), "--head", f"{name}={noted}")
        assert ran.code == 1
        assert "acme is 4 entries behind" in ran.err
        assert "--accept-rollback" in ran.err
        assert not new.home.exists()
    assert new("vault", "restore", str(backup.file), "--head", f"acme={noted}", "--accept-rollback").code == 0
    assert new("org", "show", "--json").json["frozen"]


def test_a_head_of_another_log_refuses_it(backup: Backup) -> None:
    new = backup.elsewhere()
    ran = new("vault", "restore", str(backup.file), "--head", f"acme=2:{'0' * 64}")
    assert ran.code == 1
    assert "another log than the one that was noted" in ran.err
    assert not new.home.exists()


@pytest.mark.parametrize(
    ("given", "code", "mend"),
    [
        ("acme", 2, "ORG=SEQ:HASH"),
        ("acme=7", 2, "ORG=SEQ:HASH"),
        ("=7:" + "0" * 64, 2, "ORG=SEQ:HASH"),
        ("acme=0:" + "0" * 64, 2, "ORG=SEQ:HASH"),
        ("globex=7:" + "0" * 64, 1, "Give its id"),
        ("org_unknown=7:" + "0" * 64, 1, "7 entries behind"),
    ],
)
def test_a_head_that_means_nothing_is_said(backup: Backup, given: str, code: int, mend: str) -> None:
    new = backup.elsewhere()
    ran = new("vault", "restore", str(backup.file), "--head", given)
    assert (ran.code, ran.out) == (code, "")
    assert mend in ran.err
    assert not new.home.exists()


# -- the root key


def test_without_its_root_key_a_backup_is_not_restored(backup: Backup, recovery: Path) -> None:
    new = backup.elsewhere()
    ran = new("vault", "restore", str(backup.file))
    assert ran.code == 1
    assert "generation 1" in ran.err
    assert str(backup.place.home / "keys" / "root.key") in ran.err
    assert "--recovery FILE" in ran.err
    assert not new.home.exists()


def test_the_recovery_file_brings_the_root_key_to_its_new_place(backup: Backup, recovery: Path) -> None:
    new = backup.elsewhere()
    ran = new(
        *("vault", "restore", str(backup.file), "--recovery", str(recovery), "--root", "file", "--passphrase-stdin"),
        stdin=f"{PASSPHRASE}\n".encode(),
    )
    assert ran.code == 0, ran.err
    key = new.home / "keys" / "root.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    status = new("vault", "status", "--json").json
    assert (status["sealed"], status["location"]) == (False, str(key))
    assert PASSPHRASE not in ran.out + ran.err
    assert leaking_files(new.home, PASSPHRASE) == []
    found = [path for path in new.home.rglob("*") if path.is_file() and key.read_bytes().strip() in path.read_bytes()]
    assert found == [key]


def test_by_default_it_goes_to_the_keychain_and_without_one_nothing_is_changed(backup: Backup, recovery: Path) -> None:
    new = backup.elsewhere()
    command = ("vault", "restore", str(backup.file), "--recovery", str(recovery), "--passphrase-stdin")
    ran = new(*command, stdin=PASSPHRASE.encode())
    assert ran.code == 1
    assert "--root file" in ran.err
    assert not new.home.exists()


def test_another_key_in_the_way_is_not_written_over(backup: Backup, recovery: Path) -> None:
    new = backup.elsewhere()
    assert new("init", "--org", "other", "--root", "file").code == 0
    before = everything_in(new.home)
    command = ("vault", "restore", str(backup.file), "--recovery", str(recovery), "--passphrase-stdin", "--yes")
    ran = new(*command, "--root", "file", "--accept-rollback", stdin=PASSPHRASE.encode())
    assert ran.code == 1
    assert "--root file:PATH" in ran.err
    assert everything_in(new.home)["keys/root.key"] == before["keys/root.key"]
    assert rows_of(new.home / "data" / "keyleash.db") == dumped(before["data/keyleash.db"], backup.folder)
    place = f"file:{new.home / 'keys' / 'recovered.key'}"
    ran = new(*command, "--root", place, "--accept-rollback", stdin=PASSPHRASE.encode())
    assert ran.code == 0, ran.err
    assert new("vault", "status", "--json").json["sealed"] is False
    assert everything_in(new.home)["keys/root.key"] == before["keys/root.key"]


def test_a_key_that_is_at_its_place_already_is_used_as_it_is(backup: Backup, recovery: Path) -> None:
    new = backup.elsewhere()
    command = ("vault", "restore", str(backup.file), "--recovery", str(recovery), "--passphrase-stdin")
    assert new(*command, "--root", "file", stdin=PASSPHRASE.encode()).code == 0
    (new.home / "data" / "keyleash.db").unlink()
    shutil.rmtree(new.home / "checkpoints")
    before = (new.home / "keys" / "root.key").stat()
    assert new(*command, "--root", "file", stdin=PASSPHRASE.encode()).code == 0
    assert (new.home / "keys" / "root.key").stat() == before


@pytest.mark.parametrize("passphrase", [b"another passphrase", b"", b"\xff" * 20, b"x" * 5000])
def test_a_wrong_passphrase_changes_nothing(backup: Backup, recovery: Path, passphrase: bytes) -> None:
    new = backup.elsewhere()
    command = ("vault", "restore", str(backup.file), "--recovery", str(recovery), "--passphrase-stdin")
    ran = new(*command, "--root", "file", stdin=passphrase)
    assert ran.code == 1
    assert "passphrase" in ran.err
    assert "Traceback" not in ran.err
    assert not new.home.exists()


def test_the_recovery_file_of_another_installation_is_said_to_be_one_before_its_passphrase_is_asked(
    backup: Backup, recovery: Path
) -> None:
    other = backup.elsewhere("other")
    assert other("init", "--org", "acme", "--root", "file").code == 0
    file = backup.folder / "other.json"
    assert other("vault", "export-recovery", str(file), "--passphrase-stdin", stdin=PASSPHRASE.encode()).code == 0
    new = backup.elsewhere()
    ran = new("vault", "restore", str(backup.file), "--recovery", str(file), "--root", "file", "--passphrase-stdin")
    assert ran.code == 1
    assert "for another root key" in ran.err
    assert "generation 1" in ran.err
    assert not new.home.exists()


def test_the_recovery_file_alone_brings_a_lost_root_key_back(backup: Backup, recovery: Path) -> None:
    assert backup.line("vault", "status", "--json").json["sealed"] is True
    command = ("vault", "restore", "--recovery", str(recovery), "--root", "file", "--passphrase-stdin")
    before = len(backup.place.events())
    ran = backup.line(*command, stdin=PASSPHRASE.encode())
    assert ran.code == 0, ran.err
    assert backup.line("vault", "status", "--json").json["sealed"] is False
    (entry,) = backup.place.events("vault.root_recovered")
    assert (entry["generation"], entry["provider"]) == (1, "file")
    assert len(backup.place.events()) == before + 1


def test_a_backup_that_is_there_already_still_takes_a_lost_root_key(backup: Backup, recovery: Path) -> None:
    new = backup.elsewhere()
    command = ("vault", "restore", str(backup.file), "--recovery", str(recovery), "--passphrase-stdin")
    assert new(*command, "--root", "file", stdin=PASSPHRASE.encode()).code == 0
    (new.home / "keys" / "root.key").unlink()
    assert new(*command, "--root", "file", stdin=PASSPHRASE.encode()).code == 0
    assert new("vault", "status", "--json").json["sealed"] is False


@pytest.mark.parametrize(
    "wrong", [["--root", "file"], ["--passphrase-stdin"], ["--recovery", "none.json", "--root", "pigeon"]]
)
def test_options_that_do_not_belong_together_are_refused(backup: Backup, wrong: list[str]) -> None:
    new = backup.elsewhere()
    assert new("vault", "restore", str(backup.file), *wrong).code in (1, 2)
    assert new("vault", "restore").code == 2
    assert not new.home.exists()


def test_after_a_rotation_each_backup_wants_the_key_of_its_own_time(backup: Backup) -> None:
    assert backup.line("vault", "rotate-root", "--yes").code == 0
    newer = backup.folder / "kept" / "newer.db"
    assert backup.line("vault", "backup", str(newer)).code == 0
    assert backup.line("vault", "drop-root", "1", "--yes").code == 0
    new = backup.elsewhere()
    ran = new("vault", "restore", str(backup.file))
    assert ran.code == 1
    assert "generation 1" in ran.err
    assert new("vault", "restore", str(newer)).code == 0
    assert new("vault", "status", "--json").json["sealed"] is False


# -- over an installation


def test_a_restore_that_loses_nothing_is_not_refused_and_stops_no_agent(backup: Backup) -> None:
    ran = backup.here("--json")
    assert ran.code == 0, ran.err
    assert (ran.json["behind"], ran.json["frozen"], ran.json["not_compared"]) == ([], False, [])
    assert ran.json["compared"][-1] == "the database that is here now"
    (entry,) = backup.now().events("vault.restored")
    assert "accepted_rollback" not in entry
    assert "frozen" not in entry


def test_a_restore_that_goes_back_is_refused_and_says_for_whom_and_how_far(backup: Backup) -> None:
    happen(backup.place, 3)
    before = everything_in(backup.place.home)
    ran = backup.here()
    assert (ran.code, ran.out) == (1, "")
    assert "acme is 3 entries behind" in ran.err
    assert "the database that is here now" in ran.err
    assert "--accept-rollback" in ran.err
    after = everything_in(backup.place.home)
    assert rows_of(backup.live) == dump_of(before, backup.folder)
    assert set(after) - set(before) <= {"data/serving.lock"}


def test_an_accepted_rollback_is_on_record_with_what_it_lost(backup: Backup) -> None:
    happen(backup.place, 3)
    NotedHeads(backup.place.installation.settings.noted_heads).note(backup.place.database)
    was = head(backup.place.database, backup.place.org)
    ran = backup.here("--accept-rollback", "--json")
    assert ran.code == 0, ran.err
    (gap,) = ran.json["behind"]
    assert (gap["lost"], gap["org"]) == (3, backup.place.org)
    entry = backup.now().events()[-1]
    assert entry["event"] == "vault.restored"
    assert entry["accepted_rollback"] is True
    assert entry["behind"] == {"known_from": gap["known_from"], "known": str(was), "lost": 3}
    assert entry["by"].startswith("the operator (system user ")
    assert entry["backup"] == ran.json["sha256"]
    assert Head.parse(entry["covers"]).seq == was.seq - 3 if was else False
    assert entry["kept"] == Path(ran.json["kept"]).name
    assert entry["frozen"] is True
    assert backup.line("doctor").code == 0, "the noted heads were not settled"


def test_heads_noted_outside_refuse_an_older_backup_though_the_database_is_gone(backup: Backup) -> None:
    happen(backup.place, 2)
    NotedHeads(backup.place.installation.settings.noted_heads).note(backup.place.database)
    backup.place.installation.close()
    shutil.rmtree(backup.place.home / "data")
    ran = backup.line("vault", "restore", str(backup.file))
    assert ran.code == 1
    assert "acme is 2 entries behind" in ran.err
    assert "noted outside the database" in ran.err
    assert not backup.live.exists()
    assert backup.line("vault", "restore", str(backup.file), "--accept-rollback").code == 0
    assert backup.line("doctor").code == 0


def test_an_org_that_is_not_in_the_backup_would_be_lost_whole(backup: Backup) -> None:
    assert backup.line("org", "create", "globex").code == 0
    ran = backup.here()
    assert ran.code == 1
    assert "entries behind (known up to 2, the same up to 0)" in ran.err
    assert backup.here("--accept-rollback").code == 0
    assert [org["name"] for org in backup.line("org", "list", "--json").json] == ["acme"]


def test_a_log_that_went_on_otherwise_is_told_from_one_that_is_longer(backup: Backup) -> None:
    """The backup's own machine went on, and so did the one that it was restored to."""
    new = backup.elsewhere()
    assert new("vault", "restore", str(backup.file)).code == 0
    happen(backup.place, 5)
    second = backup.folder / "kept" / "second.db"
    assert backup.line("vault", "backup", str(second)).code == 0
    ran = new("vault", "restore", str(second), "--yes")
    assert ran.code == 1
    assert "and goes on otherwise" in ran.err


def test_what_was_there_is_kept_and_can_be_restored_again(backup: Backup) -> None:
    happen(backup.place, 3)
    before = len(backup.place.events())
    ran = backup.here("--accept-rollback", "--json")
    kept = Path(ran.json["kept"])
    assert kept.parent == backup.place.home / "backups"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_bytes()[18:20] == b"\x01\x01", "it would want a journal beside it"
    with contextlib.closing(SqliteDatabase(kept)) as copy:
        assert heads(copy)[backup.place.org].seq == before
    again = backup.line("vault", "restore", str(kept), "--yes", "--accept-rollback")
    assert again.code == 0, again.err
    assert len(backup.now().events()) == before + 2  # frozen, restored


def test_without_a_yes_nothing_is_replaced(backup: Backup) -> None:
    backup.place.installation.close()
    before = rows_of(backup.live)
    ran = backup.line.alone("vault", "restore", str(backup.file))
    assert ran.code == 1
    assert "--yes" in ran.err
    assert rows_of(backup.live) == before
    with backup.line.at_terminal("vault", "restore", str(backup.file)) as terminal:
        terminal.until("[y/N]")
        terminal.type("n\n")
        assert terminal.end() == 1
    assert rows_of(backup.live) == before
    assert not (backup.place.home / "restoring").exists()


def test_while_it_is_served_nothing_is_restored(backup: Backup) -> None:
    before = everything_in(backup.place.home)
    with shared(backup.place.installation.settings.serving_lock):
        ran = backup.here("--accept-rollback")
    assert ran.code == 1
    assert "Stop that first" in ran.err
    assert rows_of(backup.live) == dump_of(before, backup.folder)


def test_what_happens_while_the_backup_is_examined_is_not_lost(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another command writes after the comparison, and before the database is replaced."""
    import server.replacing

    swap = server.replacing._swap

    def late(*given: Any) -> None:
        with contextlib.closing(SqliteDatabase(backup.live)) as other:
            other.write_now(lambda rows: append(rows, backup.place.org, Event.AUDIT_LISTED, by="late"))
        swap(*given)

    monkeypatch.setattr(server.replacing, "_swap", late)
    ran = backup.here()
    assert ran.code == 1
    assert "changed meanwhile" in ran.err
    entries = backup.now().events()
    assert entries[-1]["by"] == "late"
    assert all(entry["event"] != "vault.restored" for entry in entries)
    monkeypatch.undo()
    assert backup.here("--accept-rollback").code == 0


def test_who_has_the_database_open_sees_the_restored_one(backup: Backup) -> None:
    """A command that runs on meanwhile; its cached view is stale, because the org's revision moved beyond it."""
    database = backup.place.database
    backup.place.rule(who="everyone", tools=["stripe.*"], then="deny")
    caller = backup.place.caller()
    assert len(backup.place.installation.workspaces.of(caller).rules) == 1
    ran = backup.line("vault", "restore", str(backup.file), "--yes", "--accept-rollback")
    assert ran.code == 0, ran.err
    assert backup.line("unfreeze").code == 0
    after = backup.place.caller()
    assert after.revision > caller.revision
    assert backup.place.installation.workspaces.of(after).rules == ()
    assert database.read("SELECT COUNT(*) FROM rule") == [(0,)]


def test_a_revision_never_repeats_however_often_one_goes_back(backup: Backup) -> None:
    seen = [backup.place.caller().revision]
    for _ in range(3):
        backup.place.rule(who="everyone", tools=["stripe.*"], then="deny")
        seen.append(backup.now().caller().revision)
        assert backup.here("--accept-rollback").code == 0
        assert backup.line("unfreeze").code == 0
        seen.append(backup.now().caller().revision)
    assert seen == sorted(set(seen))


def test_a_restore_that_was_cut_off_is_finished_without_its_file(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stick with the backup may be gone by then."""
    import server.replacing

    def cut_off(_settings: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.replacing, "finish", cut_off)
    happen(backup.place)
    assert backup.here("--accept-rollback").code == 130
    monkeypatch.undo()
    backup.file.unlink()
    assert "`keyleash vault restore`" in backup.line.alone("serve", "--http", "127.0.0.1:0").err
    with shared(backup.place.installation.settings.serving_lock):
        assert "Stop that first" in backup.line("vault", "restore").err
    ran = backup.line("vault", "restore", "--json")
    assert (ran.code, ran.json) == (0, {"finished": True})
    assert backup.line("doctor").code == 0
    assert backup.line("vault", "restore").code == 2


# -- what may have been used since


@pytest.mark.parametrize("behind", [0, 3])
def test_approvals_and_grants_out_of_a_backup_cannot_be_used(
    place: Place, owner: CommandLine, tmp_path: Path, behind: int
) -> None:
    """Whether or not the restore goes back: nothing tells that they were not used since."""
    made = {
        name: approval(place, name) for name in ("pending", "approved", "executing", "succeeded", "denied", "unknown")
    }
    running, ended = grant(place), grant(place, revoked=True)
    file = tmp_path / "b.db"
    assert owner("vault", "backup", str(file)).code == 0
    happen(place, behind)
    place.installation.close()
    ran = owner("vault", "restore", str(file), "--yes", "--accept-rollback", "--json")
    assert ran.code == 0, ran.err
    after = reopened(place)
    found = states(after)
    assert [found[made[name]] for name in ("pending", "approved")] == ["cancelled", "cancelled"]
    for untouched in ("executing", "succeeded", "denied", "unknown"):
        assert found[made[untouched]] == untouched
    assert (found[running], found[ended]) == ("revoked", "revoked")
    assert ran.json["ended"] == 3
    cancelled = {entry["approval"] for entry in after.events("approval.cancelled")}
    assert cancelled == {made["pending"], made["approved"]}
    assert [entry["grant"] for entry in after.events("grant.revoked")] == [running]
    assert "grant.revoked" not in [entry["event"] for entry in place.events()[-1:]]


@pytest.mark.parametrize(
    ("scheme", "rotates", "asked"),
    [
        ("oauth2", None, True),
        ("oauth2:code", None, True),
        ("oauth2 bearer /token -", True, True),
        ("oauth2 bearer /token -", False, False),
        ("bearer", None, False),
        ("basic", None, False),
        ("header:oauth2", None, False),
    ],
)
def test_connections_with_tokens_that_are_used_once_need_consent_again(
    place: Place, owner: CommandLine, tmp_path: Path, scheme: str, rotates: bool | None, asked: bool
) -> None:
    place.database.write_now(lambda rows: rows.execute("UPDATE connection SET scheme = ?", (scheme,)))
    if rotates is not None:
        noted(place, connection_named(place.installation.database, place.org, "stripe"))
        execute(place, "UPDATE oauth_token SET rotates = ?", rotates)
    file = tmp_path / "b.db"
    assert owner("vault", "backup", str(file)).code == 0
    place.installation.close()
    ran = owner("vault", "restore", str(file), "--yes")
    assert ran.code == 0, ran.err
    after = reopened(place)
    ((marked,),) = after.database.read("SELECT needs_consent_at IS NOT NULL FROM connection")
    (entry,) = after.events("vault.restored")
    assert bool(marked) is asked
    assert entry.get("needs_consent") == (["stripe"] if asked else None)
    assert ("acme: stripe must be connected again" in ran.err) is asked


def test_every_org_is_frozen_where_one_went_back(place: Place, owner: CommandLine, tmp_path: Path) -> None:
    assert owner("org", "create", "globex").code == 0
    file = tmp_path / "b.db"
    assert owner("vault", "backup", str(file)).code == 0
    happen(place)
    place.installation.close()
    assert owner("vault", "restore", str(file), "--yes", "--accept-rollback").code == 0
    assert [bool(org["frozen"]) for org in owner("org", "list", "--json").json] == [True, True]


def test_a_revoked_agent_that_came_back_can_do_nothing_until_a_person_has_looked(
    place: Place, owner: CommandLine, tmp_path: Path
) -> None:
    from server.identity import Frozen

    file = tmp_path / "b.db"
    assert owner("vault", "backup", str(file)).code == 0
    assert owner("agent", "remove", "reconciler", "--yes").code == 0
    assert place.installation.directory.by_token(place.tokens["reconciler"]) is None
    place.installation.close()
    assert owner("vault", "restore", str(file), "--yes", "--accept-rollback").code == 0
    with pytest.raises(Frozen):
        reopened(place).installation.directory.by_token(place.tokens["reconciler"])


# -- connector files


def test_connector_files_come_back_where_none_is_in_the_way(place: Place, owner: CommandLine, tmp_path: Path) -> None:
    folder = place.installation.settings.connectors
    folder.mkdir(mode=0o700)
    for name in ("gone", "same", "other"):
        (folder / f"{name}.yaml").write_text(f"id: {name}")
    file = tmp_path / "b.db"
    assert owner("vault", "backup", str(file)).code == 0
    (folder / "gone.yaml").unlink()
    (folder / "other.yaml").write_text("id: changed")
    (folder / "new.yaml").write_text("id: new")
    place.installation.close()
    ran = owner("vault", "restore", str(file), "--yes", "--json")
    assert (ran.json["connector_files"], ran.json["differing_files"]) == (["gone.yaml"], ["other.yaml"])
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "gone.yaml": "id: gone",
        "same.yaml": "id: same",
        "other.yaml": "id: changed",
        "new.yaml": "id: new",
    }
    assert stat.S_IMODE((folder / "gone.yaml").stat().st_mode) == 0o600
    assert "other.yaml was left as it is" in owner_said(owner, place, file)


def owner_said(owner: CommandLine, place: Place, file: Path) -> str:
    happen(reopened(place))
    return owner("vault", "restore", str(file), "--yes", "--accept-rollback").err


def test_no_name_in_a_backup_leads_out_of_the_connectors_folder(tmp_path: Path) -> None:
    """Whoever holds the root key can seal what they like; it still writes nowhere else."""
    from server.replacing import _put_back

    folder = tmp_path / "connectors"
    names = ["../out.yaml", "/tmp/out.yaml", "a/b.yaml", ".hidden", "", "..", "x" * 300, "a\nb", "a\0b"]
    put_back, differing = _put_back([(name, b"x") for name in names], folder)
    assert (put_back, sorted(differing)) == ((), sorted(names))
    assert list(tmp_path.iterdir()) == []


# -- by hand


def test_an_older_database_put_back_by_hand_is_used_only_when_that_is_accepted(backup: Backup) -> None:
    """The same is done as after a restore: frozen, approvals ended, on record."""
    made = approval(backup.place, "approved")
    older = backup.folder / "older.db"
    copy_database(backup.live, older)
    happen(backup.place, 3)
    NotedHeads(backup.place.installation.settings.noted_heads).note(backup.place.database)
    backup.place.installation.close()
    for name in ("keyleash.db-wal", "keyleash.db-shm"):
        backup.live.with_name(name).unlink(missing_ok=True)
    backup.live.write_bytes(older.read_bytes())
    assert backup.line("doctor").code == 1
    refused = backup.line.alone("vault", "accept-rollback")
    assert refused.code == 1
    assert "--yes" in refused.err
    assert backup.line("doctor").code == 1
    ran = backup.line("vault", "accept-rollback", "--yes", "--json")
    assert ran.code == 0, ran.err
    assert [gap["lost"] for gap in ran.json["behind"]] == [3]
    after = backup.now()
    assert states(after)[made] == "cancelled"
    entry = after.events()[-1]
    assert (entry["event"], entry["behind"]["lost"]) == ("vault.rollback_accepted", 3)
    assert backup.line("org", "show", "--json").json["frozen"]
    assert backup.line("doctor").code == 0
    again = backup.line("vault", "accept-rollback", "--yes")
    assert again.code == 1
    assert "nothing to accept" in again.err


def test_a_rollback_is_accepted_only_while_nothing_serves(backup: Backup) -> None:
    settings = backup.place.installation.settings
    noted = {"format": "keyleash-heads", "version": 1, "heads": {backup.place.org: {"seq": 99, "hash": "0" * 64}}}
    settings.noted_heads.write_text(json.dumps(noted))
    with shared(settings.serving_lock):
        ran = backup.line("vault", "accept-rollback", "--yes")
    assert ran.code == 1
    assert "Stop that first" in ran.err
    assert backup.place.events("vault.rollback_accepted") == []


# -- secrets


def test_no_secret_is_in_any_file_of_a_restore_or_in_what_it_says(backup: Backup, recovery: Path) -> None:
    new = backup.elsewhere()
    command = (
        "vault",
        "restore",
        str(backup.file),
        "--recovery",
        str(recovery),
        "--root",
        "file",
        "--passphrase-stdin",
    )
    ran = new(*command, stdin=PASSPHRASE.encode())
    assert ran.code == 0
    key = (new.home / "keys" / "root.key").read_text().strip().removeprefix("keyleash-root-key:v1:")
    for canary in (SECRET, PASSPHRASE):
        assert leaking_files(new.home, canary) == []
        assert leaking_files(backup.file.parent, canary) == []
        assert leak(ran.out + ran.err, canary) is None
    assert leaking_files(backup.file.parent, key) == []
    assert leak(ran.out + ran.err, key) is None


def test_over_another_installation_it_says_what_that_would_lose(tmp_path: Path, backup: Backup) -> None:
    """Such as one that `keyleash init` has just made on the new machine."""
    fresh = make(tmp_path / "fresh", org="acme")
    fresh.installation.close()
    line = CommandLine(fresh.home, backup.line.person)
    ran = line("vault", "restore", str(backup.file), "--yes")
    assert ran.code == 1
    assert "behind" in ran.err
    assert line("vault", "restore", str(backup.file), "--yes", "--accept-rollback").code == 0
    assert line("org", "show", "--json").json["frozen"]
