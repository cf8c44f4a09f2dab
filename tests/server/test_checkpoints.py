"""A server signs how far each log goes, outside of the database; never a smaller log, and never another one."""

import base64
import contextlib
import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.app import open_installation
from server.approval.outbox import Happening, put_checkpoint
from server.audit import Event, append, verify_database, verify_export
from server.audit import note as reading_notes
from server.audit.checkpoints import Broken, Checkpoints, NotedProblem, Refused, Signer
from server.audit.note import Checkpoint, NoteProblem, VerifierKey, read_note, read_notes
from server.audit.noted import Behind, NotedHeads, heads
from server.audit.proof import Proofs, key_in
from server.copies import copy_database
from server.duty import RolledBack, on_duty, require_current
from server.identity import remove_org
from server.policy import Ruling
from server.rotation import rotate_org, rotate_root
from server.signing import PURPOSE, leaving, signer_of, signing
from server.webhooks import message
from tests.commandline import CommandLine
from tests.installed import Place, add_org, files_holding
from tests.proving import STANDALONE, both, exported
from tests.server.restoring import reopened
from tests.server.test_noted import put_back
from tests.telling import Clock, Receiver, a_server, delivered, hooked, outbox
from vault import Vault, VaultError, root_key_spec

PATIENCE_S = 30.0


def happen(place: Place, times: int = 1, org: str | None = None) -> None:
    for _ in range(times):
        place.database.write_now(lambda rows: append(rows, org or place.org, Event.AUDIT_LISTED, by="alice"))


def kept(place: Place) -> Checkpoints:
    return NotedHeads(place.installation.settings.noted_heads).signed


def signer(place: Place) -> Signer:
    return signer_of(place.installation.database, place.installation.vault, place.org)


def note(place: Place, *, sign: bool = True) -> list[Checkpoint]:
    """What a server does at its start, each minute and at its end."""
    by = signing(place.installation.database, place.installation.vault) if sign else None
    return NotedHeads(place.installation.settings.noted_heads).note(place.database, by)


def files(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place.home / "checkpoints" / place.org).iterdir()}


def tamper(place: Place, sql: str) -> None:
    place.unlock_the_log()
    assert place.database.write_now(lambda rows: rows.execute(sql).rowcount) > 0


# -- made


@pytest.mark.both_databases
def test_a_server_signs_at_its_start_and_at_its_end_what_verifies(place: Place, tmp_path: Path) -> None:
    settings, database, vault = place.installation.settings, place.installation.database, place.installation.vault
    with on_duty(database, settings, vault):
        first = kept(place).latest(place.org)
        assert first is not None
        assert not settings.noted_heads.exists()
        happen(place)
    last = kept(place).latest(place.org)
    assert last is not None
    assert (last.head, last.size) == (heads(place.database)[place.org], first.size + 1)
    history = read_notes(files(place)["history.txt"])
    assert history == [first, last]
    key = VerifierKey.parse(files(place)["key.txt"].decode())
    assert key == key_in(database.of(place.org), place.org) == signer(place).verifier
    proofs = Proofs((first, last), key)
    report = verify_database(place.database, place.org, proofs=proofs)
    assert (report.exit_code, report.checkpoints) == (0, (first.size, last.size))
    assert both(exported(place.database, place.org), tmp_path, f"{first}\n{last}", key).exit_code == 0
    (made,) = place.events("audit.key_made")
    assert made["key"] == str(key)
    folder = place.home / "checkpoints" / place.org
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_signed_again_while_nothing_happens(place: Place) -> None:
    assert len(note(place)) == 1
    before = files(place)
    assert note(place) == []
    assert files(place) == before


@pytest.mark.parametrize("when", ["entries", "time"])
def test_a_running_server_signs_when_enough_is_new_or_enough_time_has_passed(place: Place, when: str) -> None:
    few = when == "entries"
    settings = replace(place.installation.settings, checkpoint_entries=3 if few else 1000)
    with on_duty(place.database, settings, place.installation.vault, every_s=3600 if few else 0.01, look_s=0.005):
        size = heads(place.database)[place.org].seq
        if few:
            happen(place, 2)
            time.sleep(0.1)  # so that it has looked, and found too little: nothing tells of that
            assert [one.size for one in read_notes(files(place)["history.txt"])] == [size]
        happen(place, 3)
        wanted, until = heads(place.database)[place.org], time.monotonic() + PATIENCE_S
        while (one := kept(place).latest(place.org)) is None or one.size < wanted.seq - 2:
            assert time.monotonic() < until, "nothing was signed while the server ran"


def test_heads_that_were_noted_before_there_were_checkpoints_are_replaced(place: Place) -> None:
    other = add_org(place.installation, "globex")
    note(place, sign=False)
    noted = NotedHeads(place.installation.settings.noted_heads)
    assert set(json.loads(noted.path.read_text())["heads"]) == {place.org, other.org}
    happen(place, 2)
    note(place)
    assert not noted.path.exists()
    assert noted.read() == heads(place.database)
    assert set(kept(place).orgs()) == {place.org, other.org}


def test_what_cannot_be_signed_is_noted_without_a_signature_and_counts_as_well(place: Place) -> None:
    note(place)
    happen(place, 2)
    place.database.write_now(lambda rows: append(rows, "org_gone", Event.ORG_REMOVED))
    sealed = Vault(None)
    noted = NotedHeads(place.installation.settings.noted_heads)
    with on_duty(place.database, place.installation.settings, sealed):
        pass
    assert noted.read() == heads(place.database)
    assert set(json.loads(noted.path.read_text())["heads"]) == {place.org, "org_gone"}
    note(place)
    assert set(json.loads(noted.path.read_text())["heads"]) == {"org_gone"}, "whose key is gone"


def test_no_name_of_an_org_leads_out_of_the_folder(place: Place) -> None:
    for org in ("../outside", "/abs", ".."):
        place.database.write_now(lambda rows, org=org: append(rows, org, Event.ORG_REMOVED))
        by = signer(place)
        with pytest.raises(Refused, match="no org's id"):
            kept(place).make(place.database, org, by)
    note(place)
    assert sorted(path.name for path in (place.home / "checkpoints").iterdir() if path.is_dir()) == [place.org]
    assert not (place.home / "outside").exists()


def test_the_private_key_is_nowhere(place: Place, owner: CommandLine, tmp_path: Path, caplog: Any) -> None:
    vault = place.installation.vault
    seed = place.database.query(lambda rows: vault.derive(rows, place.org, PURPOSE))
    note(place)
    said = "".join(
        ran.out + ran.err
        for ran in (
            owner("audit", "key", "--json"),
            owner("audit", "checkpoint", "--output", "-"),
            owner("audit", "verify", "--json"),
            owner("audit", "export", "--output", "-"),
        )
    )
    for spelt in (seed, seed.hex().encode(), base64.b64encode(seed)):
        assert files_holding(place.home, spelt) == []
        assert repr(spelt) not in said + caplog.text
        assert spelt.decode("latin-1") not in said + caplog.text
    assert seed.hex() not in repr(signer(place))


# -- refused


@pytest.mark.both_databases
@pytest.mark.parametrize("done", ["cut off", "written anew"])
def test_no_checkpoint_is_made_of_a_smaller_or_another_log_and_it_is_not_served(place: Place, done: str) -> None:
    happen(place, 3)
    note(place)
    before = files(place)
    last = heads(place.database)[place.org].seq
    tamper(place, f"DELETE FROM audit_entry WHERE seq > {last - 2}")
    if done == "written anew":
        happen(place, 4)
    with pytest.raises(Behind):
        note(place)
    with pytest.raises(Refused, match="not the one of which a checkpoint was signed"):
        kept(place).make(place.database, place.org, signer(place))
    assert files(place) == before
    settings = place.installation.settings
    with pytest.raises(RolledBack), on_duty(place.database, settings, place.installation.vault):
        raise AssertionError("it was served")


def test_a_running_server_says_that_the_log_is_another_one_and_puts_that_on_record(
    place: Place, caplog: pytest.LogCaptureFixture, owner: CommandLine
) -> None:
    happen(place, 3)
    settings = place.installation.settings
    with on_duty(place.database, settings, place.installation.vault, every_s=0.01):
        signed = files(place)["latest.txt"]
        last = heads(place.database)[place.org].seq
        tamper(place, f"DELETE FROM audit_entry WHERE seq > {last - 2}")
        until = time.monotonic() + PATIENCE_S
        while not place.events("audit.checkpoint_refused"):
            assert time.monotonic() < until, "nothing was put on record"
    (entry,) = place.events("audit.checkpoint_refused")
    assert entry["lost"] == 2
    assert files(place)["latest.txt"] == signed
    assert "behind what was noted" in caplog.text
    ran = owner("doctor", "--json")
    assert (ran.code, {one["check"]: one for one in ran.json}["ends of logs"]["status"]) == (1, "fail")


@pytest.mark.parametrize(
    "changed",
    [
        "UPDATE audit_entry SET seq = seq + 1 WHERE seq = (SELECT MAX(seq) FROM audit_entry)",
        "UPDATE audit_entry SET previous = hash WHERE seq = (SELECT MAX(seq) FROM audit_entry)",
        "UPDATE audit_entry SET hash = previous WHERE seq = (SELECT MAX(seq) FROM audit_entry)",
        "DELETE FROM audit_entry WHERE seq = (SELECT MAX(seq) FROM audit_entry) - 1",
    ],
)
def test_no_entry_is_signed_whose_number_or_place_in_the_chain_was_changed(place: Place, changed: str) -> None:
    note(place)
    before = files(place)
    happen(place, 3)
    tamper(place, changed)
    with pytest.raises(Broken, match="not the one that was written there"):
        note(place)
    assert files(place) == before


def test_an_entry_that_does_not_verify_is_never_signed_and_doctor_says_so(
    place: Place, caplog: pytest.LogCaptureFixture, owner: CommandLine
) -> None:
    note(place)
    before = files(place)
    happen(place, 3)
    tamper(place, "UPDATE audit_entry SET body = replace(body, 'alice', 'malice') WHERE event = 'audit.listed'")
    with pytest.raises(Broken, match="not the one that was written there"):
        note(place)
    with on_duty(place.database, place.installation.settings, place.installation.vault):
        pass
    assert "not the one that was written there" in caplog.text
    assert files(place) == before
    ran = owner("doctor", "--json")
    assert (ran.code, {one["check"]: one for one in ran.json}["ends of logs"]["status"]) == (1, "fail")


def test_one_log_that_is_behind_keeps_no_other_from_being_signed(place: Place) -> None:
    other = add_org(place.installation, "globex")
    happen(place, 2)
    note(place)
    last = heads(place.database)[place.org].seq
    tamper(place, f"DELETE FROM audit_entry WHERE org = '{place.org}' AND seq = {last}")
    happen(other)
    with pytest.raises(Behind, match="1 entry behind"):
        note(place)
    signed = kept(place).heads()
    assert (signed[place.org].seq, signed[other.org]) == (last, heads(place.database)[other.org])


@pytest.mark.parametrize("swapped", [False, True])
def test_an_entry_that_does_not_verify_hides_nothing_worse_of_another_log(place: Place, *, swapped: bool) -> None:
    other = add_org(place.installation, "globex")
    note(place)
    one, two = (other, place) if swapped else (place, other)
    happen(place)
    happen(place, org=other.org)
    changed = "UPDATE audit_entry SET body = replace(body, 'alice', 'malice') WHERE event = 'audit.listed'"
    tamper(place, f"{changed} AND org = '{one.org}'")
    theirs = "UPDATE audit_key SET public = ? WHERE org = ?"
    place.database.write_now(lambda rows: rows.execute(theirs, ("00" * 32, two.org)))
    with pytest.raises(NotedProblem, match="not the one that the vault has"):
        note(place)


def test_another_logs_checkpoint_in_the_place_of_ours_is_said(place: Place) -> None:
    other = add_org(place.installation, "globex")
    note(place)
    shutil.copytree(place.home / "checkpoints" / other.org, place.home / "checkpoints" / place.org, dirs_exist_ok=True)
    with pytest.raises(NotedProblem, match="it is of another log"):
        note(place)


@pytest.mark.parametrize("what", ["gone", "other nodes", "other size", "no json"])
def test_a_kept_tree_is_not_believed(place: Place, what: str) -> None:
    happen(place, 2)
    note(place)
    path = place.home / "checkpoints" / place.org / "frontier.json"
    said = json.loads(path.read_text())
    if what == "other nodes":
        path.write_text(json.dumps({**said, "nodes": ["00" * 32] * len(said["nodes"])}))
    elif what == "other size":
        path.write_text(json.dumps({**said, "size": said["size"] + 8}))
    elif what == "no json":
        path.write_text("{")
    else:
        path.unlink()
    happen(place)
    (made,) = note(place)
    report = verify_database(place.database, place.org, proofs=Proofs((made,), signer(place).verifier))
    assert report.exit_code == 0


def test_an_edit_before_the_last_checkpoint_is_found_by_the_one_that_is_asked_for(
    place: Place, owner: CommandLine, tmp_path: Path
) -> None:
    happen(place, 2)
    note(place)
    tamper(place, "UPDATE audit_entry SET body = replace(body, 'alice', 'malice') WHERE seq = 2")
    before = files(place)
    ran = owner("audit", "checkpoint", "--output", str(tmp_path / "note.txt"))
    assert (ran.code, "Entry 2 of the log" in ran.err) == (1, True)
    assert not (tmp_path / "note.txt").exists()
    assert files(place) == before


@pytest.mark.parametrize(
    ("name", "said", "changed"), [("latest.txt", "time 20", "time 21"), ("key.txt", "keyleash/", "keyleasf/")]
)
def test_what_was_changed_on_the_disk_is_said_and_nothing_is_served(
    place: Place, name: str, said: str, changed: str
) -> None:
    note(place)
    path = place.home / "checkpoints" / place.org / name
    assert said in path.read_text()
    path.write_text(path.read_text().replace(said, changed))
    with pytest.raises(NotedProblem, match="remove that file"):
        note(place)
    with pytest.raises(NotedProblem), on_duty(place.database, place.installation.settings, place.installation.vault):
        raise AssertionError("it was served")


def test_a_checkpoint_by_another_key_is_not_gone_on_from(place: Place) -> None:
    from tests.proving import checkpoint
    from tests.proving import signer as other

    theirs = other(place.org)
    kept(place).keep(place.org, checkpoint(place.database, place.org, theirs), theirs.verifier)
    happen(place)
    before = files(place)
    with pytest.raises(Refused, match="not by the log's own key"):
        kept(place).make(place.database, place.org, signer(place))
    assert files(place) == before


def test_another_public_key_in_the_database_stops_the_signing(place: Place, owner: CommandLine) -> None:
    signer(place)
    place.database.write_now(lambda rows: rows.execute("UPDATE audit_key SET public = ?", ("00" * 32,)))
    with pytest.raises(NotedProblem, match="is not the one that the vault has"):
        signer(place)
    for words in (("key",), ("checkpoint", "--output", "-")):
        ran = owner("audit", *words)
        assert (ran.code, ran.out) == (1, "")
    with pytest.raises(NotedProblem):
        note(place)
    assert list(kept(place).orgs()) == []


# -- the key


def test_the_key_outlives_every_rotation(place: Place) -> None:
    database, vault, home = place.database, place.installation.vault, place.home
    key = signer(place).verifier
    rotate_org(database, vault, place.org, by="test")
    assert signer(place).verifier == key
    rotate_org(database, vault, place.org, by="test")
    rotate_root(database, vault, root_key_spec(f"file:{home / 'keys' / 'two.key'}", home), by="test")
    with contextlib.closing(open_installation(place.installation.settings)) as again:
        assert signer_of(again.database, again.vault, place.org).verifier == key
    note(place)
    assert VerifierKey.parse(files(place)["key.txt"].decode()) == key
    other = add_org(place.installation, "globex")
    assert signer(other).verifier.public != key.public


@pytest.mark.sqlite_only("a backup is of SQLite's file")
def test_the_key_and_the_checkpoints_outlive_a_restore(place: Place, owner: CommandLine, tmp_path: Path) -> None:
    note(place)
    assert owner("vault", "backup", str(tmp_path / "backup.db")).code == 0
    note(place)
    key, signed = signer(place).verifier, kept(place).latest(place.org)
    place.installation.close()
    assert owner("vault", "restore", str(tmp_path / "backup.db"), "--yes").code == 0
    again = reopened(place)
    with contextlib.closing(again.installation):
        assert signer(again).verifier == key, "nothing was lost"
        note(again)
        assert signed is not None
        report = verify_database(again.database, again.org, proofs=Proofs((signed,), key))
        assert (report.exit_code, report.checkpoints) == (0, (signed.size,))


@pytest.mark.sqlite_only("it is about SQLite's file")
@pytest.mark.parametrize("known", [True, False], ids=["key known before", "key not known before"])
def test_a_log_that_goes_on_after_a_loss_has_another_name_and_says_so(
    place: Place, owner: CommandLine, tmp_path: Path, *, known: bool
) -> None:
    if known:
        note(place)
    copy_database(place.installation.settings.database, tmp_path / "older.db")
    happen(place, 3)
    note(place)
    key, lost = signer(place).verifier, kept(place).latest(place.org)
    assert lost is not None
    put_back(place, tmp_path / "older.db")
    assert owner("vault", "accept-rollback", "--yes").code == 0
    with contextlib.closing(open_installation(place.installation.settings)) as again:
        anew = signer_of(again.database, again.vault, place.org)
        (accepted,) = place.events("vault.rollback_accepted")
        assert (anew.origin, anew.key.public) == (f"keyleash/{place.org}/{accepted['seq']}", key.public)
        note(place)
        made = kept(place).latest(place.org)
        assert made is not None
        assert made.origin == anew.origin
        made.require(anew.verifier)
        with pytest.raises(NoteProblem):
            made.require(key)
        assert lost in read_notes(files(place)["history.txt"])
        require_current(again.database, again.settings)
        for pinned, code in ((anew.verifier, 3), (key, 3)):
            report = verify_database(place.database, place.org, proofs=Proofs((lost, made), pinned))
            assert report.exit_code == code, "two logs, of which each has its key's name"
        assert verify_database(place.database, place.org, proofs=Proofs((made,), anew.verifier)).exit_code == 0


def test_a_log_that_has_another_name_is_signed_under_that_though_nothing_was_added(place: Place) -> None:
    note(place)
    other = replace(signer(place), origin=f"{signer(place).origin}/9")
    made, new = kept(place).make(place.database, place.org, other)
    assert (made.origin, new) == (other.origin, True)
    made.require(other.verifier)
    assert kept(place).make(place.database, place.org, other) == (made, False)


def test_a_key_that_is_made_after_losses_bears_the_number_of_the_last_one(place: Place) -> None:
    seqs = [
        place.database.write_now(lambda rows, event=event, said=said: append(rows, place.org, event, **said)).seq
        for event, said in (
            (Event.VAULT_RESTORED, {"behind": [{"lost": 1}]}),
            (Event.VAULT_ROLLBACK_ACCEPTED, {"behind": [{"lost": 2}]}),
            (Event.VAULT_RESTORED, {}),
        )
    ]
    place.database.write_now(lambda rows: rows.execute("DELETE FROM audit_key"))
    assert signer(place).origin == f"keyleash/{place.org}/{seqs[1]}"


# -- an org that is removed


@pytest.mark.both_databases
def test_a_removed_orgs_log_is_signed_to_its_end_and_its_values_cannot_be_read(
    place: Place, owner: CommandLine, tmp_path: Path
) -> None:
    note(place)
    key = signer(place).verifier
    assert owner("org", "remove", "acme", "--yes").code == 0
    last = kept(place).latest(place.org)
    assert last is not None
    assert last.head == heads(place.database)[place.org]
    assert [body["event"] for body in place.events()[-2:]] == ["org.removed", "erasure.completed"]
    shown = owner("audit", "key", "--org", place.org)
    assert (shown.out, "not checked" in shown.err) == (f"{key}\n", True)
    assert owner("audit", "checkpoint", "--org", place.org, "--output", "-").out == str(last)
    export = tmp_path / "log.jsonl"
    assert owner("audit", "export", "--org", place.org, "--output", str(export)).code == 0
    report = both(export.read_bytes(), tmp_path, str(last), key, alone=True)
    assert (report.exit_code, report.checkpoints) == (0, (last.size,))
    with pytest.raises(VaultError, match="no key"):
        signer(place)
    with pytest.raises(VaultError):
        place.database.query(lambda rows: place.installation.vault.derive(rows, place.org, "audit-values"))


def test_a_removal_that_was_cut_off_before_the_file_is_written_out_later(place: Place) -> None:
    database, vault, settings = place.installation.database, place.installation.vault, place.installation.settings
    (org,) = place.installation.directory.orgs()
    sign = leaving(database, vault, settings, place.org)
    before = kept(place).latest(place.org)

    def change(rows: Any) -> None:
        remove_org(rows, org, by="the operator")
        sign(rows)

    place.database.write_now(change)
    assert kept(place).latest(place.org) == before
    assert note(place) == []
    last = kept(place).latest(place.org)
    assert last is not None
    assert last.head == heads(place.database)[place.org]
    tamper(place, "UPDATE audit_key SET last = replace(last, 'head', 'haed')")
    shutil.rmtree(place.home / "checkpoints" / place.org)
    with pytest.raises(Refused, match="was altered"):
        note(place)


def test_an_org_whose_log_does_not_verify_is_removed_with_a_warning(place: Place, owner: CommandLine) -> None:
    tamper(place, "UPDATE audit_entry SET body = replace(body, 'alice', 'malice') WHERE seq = 2")
    ran = owner("org", "remove", "acme", "--yes")
    assert (ran.code, "cannot be signed once more" in ran.err) == (0, True)
    assert owner("audit", "checkpoint", "--org", place.org, "--output", "-").code == 1
    assert list(kept(place).orgs()) == []


# -- told


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.mark.anyio
async def test_a_webhook_that_asks_for_checkpoints_is_sent_each_newest_one(place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.url + "/wants", "wants", events=(Happening.CHECKPOINT,), rulings=(Ruling.CONFIRM,))
    hooked(place, receiver.url + "/calls", "calls", events=(Happening.OPENED,))
    settings, database = place.installation.settings, place.installation.database
    with on_duty(database, settings, place.installation.vault):
        happen(place)
    assert [each[:2] for each in outbox(place)] == [("wants", "audit.checkpoint")], (
        "the newest in the older one's place"
    )
    async with a_server(place, Clock()) as delivery:
        await delivered(delivery)
    (request,) = receiver.requests
    body = json.loads(request.body)
    assert (body["event"], body["org"], body["link"]) == ("audit.checkpoint", "acme", None)
    sent = read_note(body["checkpoint"].encode())
    assert sent == kept(place).latest(place.org)
    assert f"signed at entry {sent.size}" in body["text"]


def test_no_webhook_that_asks_for_nothing_by_name_is_told_of_checkpoints(place: Place, owner: CommandLine) -> None:
    assert owner("channel", "add", "webhook", "bell", "--url", "https://hooks.example.com/x", "--json").code == 0
    assert owner("channel", "show", "bell", "--json").json["events"] == [
        *("opened", "decided", "expired", "unknown", "budget")
    ]
    (made,) = note(place)
    place.database.write_now(lambda rows: put_checkpoint(rows, place.org, made))
    assert outbox(place) == []
    assert (
        "was signed at entry 3"
        in json.loads(message("id", {"event": "audit.checkpoint", "org": "acme", "checkpoint": "o\n3\nr\n"}, "").body)[
            "text"
        ]
    )


# -- at the command line


def test_a_checkpoint_is_taken_along_and_used(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    file, key = tmp_path / "kept.txt", owner("audit", "key").out.strip()
    for count in (1, 2):
        assert owner("audit", "checkpoint", "--output", str(file)).code == 0
        assert len(read_notes(file.read_bytes())) == count, "an earlier one is never lost"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry["by"] for entry in place.events("audit.checkpointed")] == ["alice", "alice"]
    asked = owner("audit", "checkpoint", "--output", "-")
    assert read_note(asked.out.encode()).size == heads(place.database)[place.org].seq
    ran = owner("audit", "verify", "--checkpoint", str(file), "--key", key)
    assert ran.code == 0
    assert "All checkpoints agree" in ran.out
    assert "taken from it" not in ran.err
    assert "the key was taken from it" in owner("audit", "verify", "--checkpoint", str(file)).err
    export = tmp_path / "log.jsonl"
    assert owner("audit", "export", "--output", str(export)).code == 0
    away = CommandLine(tmp_path / "nowhere", owner.person)
    assert away("audit", "verify", "--export", str(export), "--checkpoint", str(file), "--key", key).code == 0
    assert not away.home.exists()
    tamper(place, "DELETE FROM audit_entry WHERE seq > 4")
    assert owner("audit", "verify", "--checkpoint", str(file), "--key", key).code == 1
    others = str(_others_key())
    assert owner("audit", "verify", "--checkpoint", str(file), "--key", others).code == 3
    assert owner("audit", "verify", "--key", others).code == 3
    assert both(export.read_bytes(), tmp_path, key=_others_key()).exit_code == 3


def test_a_removed_orgs_last_checkpoint_is_handed_out_only_if_its_key_signed_it(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    from tests.proving import signer as other

    assert owner("org", "remove", "acme", "--yes").code == 0
    public = other(place.org, 66).key.public.hex()
    tamper(place, f"UPDATE audit_key SET public = '{public}'")
    ran = owner("audit", "checkpoint", "--org", place.org, "--output", str(tmp_path / "kept.txt"))
    assert (ran.code, ran.out) == (1, "")
    assert "not by" in ran.err
    assert not (tmp_path / "kept.txt").exists()


def test_more_checkpoints_than_are_held_at_once_are_refused_and_none_is_dropped_unseen(
    owner: CommandLine, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = tmp_path / "kept.txt", owner("audit", "key").out.strip()
    for _ in range(3):
        assert owner("audit", "checkpoint", "--output", str(file)).code == 0
    whole = file.read_bytes()
    first = len(str(read_notes(whole)[0]).encode())
    monkeypatch.setattr(reading_notes, "MAX_NOTES", first)  # a border between two, where nothing looks cut off
    assert len(read_notes(whole[:first])) == 1
    ran = owner("audit", "verify", "--checkpoint", str(file), "--key", key)
    assert (ran.code, ran.out) == (3, "")
    assert "tail -n 80000 kept.txt" in ran.err
    assert owner("audit", "checkpoint", "--output", str(file)).code == 2
    assert file.read_bytes() == whole
    monkeypatch.setattr(reading_notes, "MAX_NOTES", len(whole))
    assert owner("audit", "verify", "--checkpoint", str(file), "--key", key).code == 0
    lines = whole.splitlines(keepends=True)
    assert len(read_notes(b"".join(lines[-8:]))) == 1, "eight lines are one, as the refusal says"


def _others_key() -> VerifierKey:
    from tests.proving import signer as other

    return other("org_other").verifier


def test_misuse_and_what_cannot_be_used_are_told_apart(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a checkpoint\n")
    before = place.events()
    assert owner("audit", "verify", "--key", "nonsense").code == 2
    assert owner("audit", "verify", "--checkpoint", str(tmp_path / "text")).code == 3
    assert owner("audit", "verify", "--checkpoint", str(tmp_path / "none")).code == 3
    assert owner("audit", "checkpoint", "--output", str(tmp_path / "text")).code == 2
    assert owner("audit", "checkpoint", "--output", str(place.home / "data" / "x")).code == 2
    assert owner("audit", "checkpoint", "--output", str(place.home / "checkpoints" / "x")).code == 2
    assert owner("audit", "checkpoint", "--output", "-", "--json").code == 2
    assert (tmp_path / "text").read_text() == "not a checkpoint\n"
    assert place.events() == before
    assert owner("audit", "checkpoint", "--output", str(tmp_path / "no" / "such")).code == 1


def test_without_the_root_key_the_public_key_is_shown_and_nothing_is_signed(owner: CommandLine, place: Place) -> None:
    at_hand = owner("audit", "key", "--json")
    assert (at_hand.json["checked"], "not checked" in at_hand.err) == (True, False)
    key = owner("audit", "key").out
    (place.home / "keys" / "root.key").unlink()
    ran = owner("audit", "key")
    assert ran.out == key
    assert "not checked against the root key" in ran.err
    said = owner("audit", "key", "--json")
    assert (said.json["key"], said.json["checked"]) == (key.strip(), False)
    assert "not checked against the root key" in said.err
    ran = owner("audit", "checkpoint", "--output", "-")
    assert (ran.code, ran.out) == (1, "")


def test_the_verifier_is_printed_and_runs_by_itself(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    program = tmp_path / "verify.py"
    program.write_text(owner("audit", "verifier").out)
    assert program.read_text() == STANDALONE.read_text()
    assert owner("audit", "export", "--output", str(tmp_path / "log.jsonl")).code == 0

    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-I", "-S", str(program), *words]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in ran.stderr
        return ran.returncode, ran.stdout

    assert run(str(tmp_path / "log.jsonl"))[0] == 0
    assert run()[0] == run("--key")[0] == run("a", "b")[0] == 2
    assert run(str(tmp_path / "none"))[0] == 3
    assert run(str(tmp_path / "log.jsonl"), "--checkpoint", str(program))[0] == 3
    imported = {
        line.split()[1] for line in STANDALONE.read_text().splitlines() if line.startswith(("import ", "from "))
    }
    assert imported <= sys.stdlib_module_names


def test_a_progress_bar_and_an_export_that_names_its_key(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    key = owner("audit", "key").out.strip()
    export = tmp_path / "log.jsonl"
    assert owner("audit", "export", "--output", str(export)).code == 0
    assert json.loads(export.read_text().splitlines()[0])["key"] == key
    assert verify_export(export).exit_code == 0
    with contextlib.closing(sqlite3.connect(place.installation.settings.database)) as db:
        assert db.execute("SELECT origin FROM audit_key").fetchall() == [(f"keyleash/{place.org}",)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENTRIES", "0"),
        ("ENTRIES", "x"),
        ("ENTRIES", "1000000"),
        ("SECONDS", "0"),
        ("SECONDS", "1.5"),
        ("SECONDS", "²"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(keyleash: CommandLine, name: str, value: str) -> None:
    ran = replace(keyleash, environ={f"KEYLEASH_CHECKPOINT_{name}": value})("audit", "key")
    assert (ran.code, f"KEYLEASH_CHECKPOINT_{name} is" in ran.err) == (1, True)


def test_a_log_whose_key_cannot_be_had_is_noted_without_a_signature(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.database.write_now(lambda rows: rows.execute("UPDATE vault_org_key SET wrapped = ?", (bytes(81),)))
    assert note(place) == []
    assert "can be signed now" in caplog.text
    noted = NotedHeads(place.installation.settings.noted_heads)
    assert noted.read() == heads(place.database)
    assert list(kept(place).orgs()) == []
