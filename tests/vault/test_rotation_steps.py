"""The steps of a rotation, each by itself: what it refuses, and who wins where two take it at once."""

import sqlite3
from collections.abc import Callable

import pytest

from tests.vault.service import KeyService, Unreachable
from vault import CannotOpen, LocalRootKey, Vault, VaultError
from vault import rotation as steps
from vault.generations import INSTALLATION_KEY
from vault.orgkeys import org_context
from vault.store import derived_context

FIRST = LocalRootKey(b"1" * 32, provider="file", location="/one")
SECOND = LocalRootKey(b"2" * 32, provider="file", location="/two")
THIRD = LocalRootKey(b"3" * 32, provider="file", location="/three")
SLOT = {"org": "org_a", "connection": "con_1", "origin": "https://a:443", "scheme": "bearer"}


@pytest.fixture
def vault(db: sqlite3.Connection) -> Vault:
    vault = Vault(FIRST, find=find)
    vault.install(db)
    for org in ("org_a", "org_b"):
        vault.create_org_key(db, org)
        for number in range(3):
            vault.put(db, **{**SLOT, "org": org, "connection": f"con_{number}"}, fields={"secret": f"{org} {number}"})
    return vault


def find(_provider: str, location: str) -> LocalRootKey:
    return {root.location: root for root in (FIRST, SECOND, THIRD)}[location]


def dump(db: sqlite3.Connection) -> list[str]:
    return list(db.iterdump())


def refused_and_unchanged(db: sqlite3.Connection, step: Callable[[], object], match: str) -> None:
    before = dump(db)
    with pytest.raises(VaultError, match=match):
        step()
    assert dump(db) == before


# -- the root key


def begin(db: sqlite3.Connection, root: LocalRootKey) -> steps.Generation:
    return steps.begin_root(db, provider=root.provider, location=root.location)


def ready(db: sqlite3.Connection, generation: steps.Generation, root: LocalRootKey, before: LocalRootKey) -> None:
    wrapped = steps.rewrapped(steps.installation_key(db)[1], INSTALLATION_KEY, before=before, after=root)
    steps.ready_root(db, generation.id, check=steps.check_for(root), installation_key=wrapped)


def moved(key: steps.OrgKey, root: LocalRootKey = SECOND, before: LocalRootKey = FIRST) -> bytes:
    return steps.rewrapped(key.wrapped, key.context, before=before, after=root)


def test_nothing_is_unfinished_until_a_rotation_is_begun(vault: Vault, db: sqlite3.Connection):
    assert steps.unfinished_root(db) is None
    begun = begin(db, SECOND)
    assert begun == steps.Generation(2, "file", "/two", ready=False) == steps.unfinished_root(db)
    assert vault.keyring.generations.newest(db) == (1, FIRST)  # it wraps nothing yet
    ready(db, begun, SECOND, FIRST)
    assert steps.unfinished_root(db) == steps.Generation(2, "file", "/two", ready=True)
    assert vault.keyring.generations.newest(db) == (2, SECOND)


def test_a_database_without_a_vault_has_nothing_to_rotate(db: sqlite3.Connection):
    for step in (lambda: steps.unfinished_root(db), lambda: begin(db, SECOND)):
        refused_and_unchanged(db, step, "keyleash init")


def test_begun_twice_for_one_place_it_is_the_same_rotation(vault: Vault, db: sqlite3.Connection):
    once = begin(db, SECOND)
    assert begin(db, SECOND) == once
    ready(db, once, SECOND, FIRST)
    assert begin(db, SECOND) == steps.Generation(2, "file", "/two", ready=True)
    assert db.execute("SELECT COUNT(*) FROM vault_root").fetchone() == (2,)


def test_begun_for_another_place_before_it_wraps_anything_it_is_that_one_and_the_first_is_lost(
    vault: Vault, db: sqlite3.Connection
):
    """Whoever began the first cannot make the second one ready with a key that is not at its place."""
    first = begin(db, SECOND)
    second = begin(db, THIRD)
    assert db.execute("SELECT location FROM vault_root ORDER BY id").fetchall() == [("/one",), ("/three",)]
    refused_and_unchanged(db, lambda: ready(db, first, SECOND, FIRST), "Another rotation was begun meanwhile")
    ready(db, second, THIRD, FIRST)
    assert vault.keyring.generations.newest(db) == (second.id, THIRD)


def test_a_move_that_wraps_something_is_finished_before_another_is_begun(vault: Vault, db: sqlite3.Connection):
    ready(db, begin(db, SECOND), SECOND, FIRST)
    refused_and_unchanged(db, lambda: begin(db, THIRD), r"file \(/two\) was begun and not finished")
    finish(db)
    assert begin(db, THIRD).id == 3


def finish(db: sqlite3.Connection) -> None:
    for key in steps.due_org_keys(db, 2, most=100):
        assert steps.move_org_key(db, key, moved(key), 2)
    assert steps.finish_root(db, 2)


def test_of_two_that_make_a_generation_ready_one_does(vault: Vault, db: sqlite3.Connection):
    begun = begin(db, SECOND)
    ready(db, begun, SECOND, FIRST)
    refused_and_unchanged(db, lambda: ready(db, begun, SECOND, SECOND), "Another rotation was begun meanwhile")


def test_org_keys_are_moved_a_few_at_a_time_and_those_moved_are_not_due_again(vault: Vault, db: sqlite3.Connection):
    ready(db, begin(db, SECOND), SECOND, FIRST)
    assert [key.org for key in steps.due_org_keys(db, 2, most=10)] == ["org_a", "org_b"]
    (key,) = steps.due_org_keys(db, 2, most=1)
    assert steps.move_org_key(db, key, moved(key), 2)
    assert [key.org for key in steps.due_org_keys(db, 2, most=10)] == ["org_b"]
    assert vault.open(db, version=1, **SLOT).reveal() == "org_a 1"
    assert steps.due_org_keys(db, 1, most=10) == []


def test_of_two_that_move_an_org_key_one_does_and_the_other_changes_nothing(vault: Vault, db: sqlite3.Connection):
    ready(db, begin(db, SECOND), SECOND, FIRST)
    key, _ = steps.due_org_keys(db, 2, most=10)
    assert steps.move_org_key(db, key, moved(key), 2)
    before = dump(db)
    assert not steps.move_org_key(db, key, moved(key), 2)
    assert dump(db) == before


@pytest.mark.parametrize("meanwhile", ["wrapped = x'00'", "root = 3", "version = 2", "org = 'org_c'"])
def test_an_org_key_that_is_not_as_it_was_read_is_not_moved(vault: Vault, db: sqlite3.Connection, meanwhile: str):
    ready(db, begin(db, SECOND), SECOND, FIRST)
    _, key = steps.due_org_keys(db, 2, most=10)
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute(f"UPDATE vault_org_key SET {meanwhile} WHERE org = 'org_b'")
    before = dump(db)
    assert not steps.move_org_key(db, key, moved(key), 2)
    assert dump(db) == before


def test_a_key_is_put_under_another_root_for_what_it_was_wrapped_for_and_nothing_else(
    vault: Vault, db: sqlite3.Connection
):
    key, other = steps.due_org_keys(db, 2, most=10)
    with pytest.raises(CannotOpen):
        steps.rewrapped(key.wrapped, other.context, before=FIRST, after=SECOND)
    with pytest.raises(CannotOpen):
        steps.rewrapped(key.wrapped, key.context, before=SECOND, after=THIRD)
    wrapped = steps.rewrapped(key.wrapped, key.context, before=FIRST, after=SECOND)
    assert SECOND.unwrap(wrapped, context=key.context) == FIRST.unwrap(key.wrapped, context=key.context)
    with pytest.raises(CannotOpen):
        SECOND.unwrap(wrapped, context=other.context)


@pytest.mark.parametrize("broken", ["before", "after"])
def test_what_a_key_service_says_comes_out_of_a_move_unchanged(vault: Vault, db: sqlite3.Connection, broken: str):
    before, after = KeyService(b"1" * 32), KeyService(b"2" * 32)
    key = before.wrap(b"k" * 32, context=org_context("org_a", 1))
    problem = {"before": before, "after": after}[broken].down = Unreachable("The service does not answer.")
    with pytest.raises(Unreachable) as caught:
        steps.rewrapped(key, org_context("org_a", 1), before=before, after=after)
    assert caught.value is problem


def test_an_org_key_that_is_no_bytes_is_not_moved_as_if_it_were(vault: Vault, db: sqlite3.Connection):
    db.execute("UPDATE vault_org_key SET wrapped = 'text' WHERE org = 'org_b'")
    with pytest.raises(CannotOpen):
        steps.due_org_keys(db, 2, most=10)


def test_generations_are_retired_when_nothing_is_under_them_and_only_once(vault: Vault, db: sqlite3.Connection):
    ready(db, begin(db, SECOND), SECOND, FIRST)
    before = dump(db)
    assert not steps.finish_root(db, 2)
    assert dump(db) == before
    finish(db)
    assert db.execute("SELECT id FROM vault_root WHERE retired_at IS NULL").fetchall() == [(2,)]
    assert steps.unfinished_root(db) is None
    db.execute("UPDATE vault_root SET retired_at = 17 WHERE id = 1")
    assert steps.finish_root(db, 2)
    assert db.execute("SELECT retired_at FROM vault_root ORDER BY id").fetchall() == [(17,), (None,)]


def test_a_generation_is_dropped_when_it_is_retired_and_nothing_is_under_it(vault: Vault, db: sqlite3.Connection):
    refused_and_unchanged(db, lambda: steps.drop_root(db, 9), "no root key of generation 9")
    refused_and_unchanged(db, lambda: steps.drop_root(db, 1), "2 keys of orgs are under it")
    ready(db, begin(db, SECOND), SECOND, FIRST)
    for generation, why in ((1, "2 keys of orgs are under it"), (2, "it is the one in use")):
        refused_and_unchanged(db, lambda generation=generation: steps.drop_root(db, generation), why)
    finish(db)
    refused_and_unchanged(db, lambda: steps.drop_root(db, 2), "2 keys of orgs are under it")
    db.execute("UPDATE vault_org_key SET root = 1 WHERE org = 'org_b'")
    refused_and_unchanged(db, lambda: steps.drop_root(db, 1), "1 keys of orgs are under it")
    db.execute("UPDATE vault_org_key SET root = 2 WHERE org = 'org_b'")
    assert steps.drop_root(db, 1) == ("file", "/one")
    assert db.execute("SELECT id FROM vault_root").fetchall() == [(2,)]
    assert Vault(SECOND).open(db, version=1, **SLOT).reveal() == "org_a 1"


def test_the_installation_key_is_the_same_under_the_next_root_key(vault: Vault, db: sqlite3.Connection):
    before = vault.derive(db, "", "state")
    ready(db, begin(db, SECOND), SECOND, FIRST)
    assert steps.installation_key(db)[0] == 2
    assert vault.derive(db, "", "state") == Vault(SECOND).derive(db, "", "state") == before


# -- an org's key


def next_key(db: sqlite3.Connection, version: int = 2, generation: int = 1) -> steps.OrgKey:
    root = {1: FIRST, 2: SECOND}[generation]
    return steps.OrgKey("org_a", version, steps.next_org_key("org_a", version, root), generation)


def begin_org(vault: Vault, db: sqlite3.Connection, version: int = 2, *purposes: str) -> None:
    steps.begin_org(db, vault, "org_a", wrapped=next_key(db, version), purposes=purposes)


def reseal_all(vault: Vault, db: sqlite3.Connection, version: int) -> None:
    for due in steps.due_credentials(db, "org_a", version, most=100):
        steps.reseal_credential(db, vault, due, version)


def test_a_rotation_of_an_org_is_unfinished_until_the_earlier_key_is_dropped(vault: Vault, db: sqlite3.Connection):
    assert steps.unfinished_org(db, "org_a") is None
    assert steps.unfinished_org(db, "org_none") is None
    begin_org(vault, db)
    assert steps.unfinished_org(db, "org_a") == 2
    assert steps.unfinished_org(db, "org_b") is None
    assert vault.keyring.newest(db, "org_a")[0] == 2
    reseal_all(vault, db, 2)
    assert steps.drop_org_keys(db, "org_a", 2) == 1
    assert steps.unfinished_org(db, "org_a") is None
    vault.forget()
    assert vault.open(db, version=1, **SLOT).reveal() == "org_a 1"


def test_of_two_that_begin_one_does(vault: Vault, db: sqlite3.Connection):
    late = next_key(db)
    begin_org(vault, db)
    refused_and_unchanged(
        db,
        lambda: steps.begin_org(db, vault, "org_a", wrapped=late, purposes=()),
        "rotated by somebody else meanwhile",
    )


def test_a_key_wrapped_by_a_root_key_that_was_rotated_meanwhile_is_not_begun_with(vault: Vault, db: sqlite3.Connection):
    """Its root key may be destroyed already, and whatever came under it would be lost."""
    late = next_key(db)
    ready(db, begin(db, SECOND), SECOND, FIRST)
    finish(db)
    steps.drop_root(db, 1)
    refused_and_unchanged(
        db,
        lambda: steps.begin_org(db, vault, "org_a", wrapped=late, purposes=()),
        "root key was rotated meanwhile.*Try again",
    )
    steps.begin_org(db, vault, "org_a", wrapped=next_key(db, generation=2), purposes=())
    assert vault.keyring.newest(db, "org_a")[0] == 2


def test_an_org_without_a_key_has_none_to_rotate(vault: Vault, db: sqlite3.Connection):
    key = steps.OrgKey("org_none", 1, steps.next_org_key("org_none", 1, FIRST), 1)
    refused_and_unchanged(
        db, lambda: steps.begin_org(db, vault, "org_none", wrapped=key, purposes=("audit",)), "has no key"
    )


def test_what_was_derived_stays_what_it_is_through_any_number_of_rotations(vault: Vault, db: sqlite3.Connection):
    asked = ["audit", "hash"]
    before = [vault.derive(db, "org_a", purpose) for purpose in asked]
    for version in (2, 3, 4):
        begin_org(vault, db, version, "audit", "hash") if version == 2 else begin_org(vault, db, version)
        assert set(vault.carried(db, "org_a")) == set(asked)
        reseal_all(vault, db, version)
        steps.drop_org_keys(db, "org_a", version)
        vault.forget()
        assert [vault.derive(db, "org_a", purpose) for purpose in asked] == before
    (counted,) = vault.status(db).orgs["org_a"]
    assert counted.derived == 2


def test_one_look_derives_what_stays_and_seals_under_what_is_newest(vault: Vault, db: sqlite3.Connection):
    before = vault.derive(db, "org_a", "audit")
    for version in (1, 2):
        if version == 2:
            begin_org(vault, db, 2, "audit")
        derived, seal = vault.derive_and_seal(db, "org_a", "audit")
        sealed = seal("prompt", "apr_1", "half a pair: \ud83c")
        assert derived == before
        assert int.from_bytes(sealed[:4], "big") == version
        assert vault.unseal_text(db, "org_a", "prompt", "apr_1", sealed) == "half a pair: \ud83c"
        with pytest.raises(CannotOpen):
            vault.unseal_text(db, "org_b", "prompt", "apr_1", sealed)
    kept = vault.keyring.at(db, "org_a", 1).seal(before, context=derived_context("org_a", "audit", 1))
    db.execute(
        "UPDATE vault_derived SET key_version = 1, sealed = ? WHERE org = 'org_a' AND purpose = 'audit'", (kept,)
    )
    derived, seal = vault.derive_and_seal(db, "org_a", "audit")
    assert (derived, seal("prompt", "apr_1", "x")[:4]) == (before, bytes([0, 0, 0, 2])), (
        "what is new is under the newest"
    )
    with pytest.raises(VaultError, match="org_none"):
        vault.derive_and_seal(db, "org_none", "audit")


def test_a_derived_key_that_was_taken_away_is_missed_and_not_derived_anew(vault: Vault, db: sqlite3.Connection):
    """From the newer key it would be another, and what is in the log would be found by it no more."""
    vault.derive(db, "org_a", "audit")
    begin_org(vault, db, 2, "audit", "hash")
    kept = db.execute("SELECT * FROM vault_derived WHERE purpose = 'audit'").fetchall()
    db.execute("DELETE FROM vault_derived WHERE purpose = 'audit'")
    for use in (
        lambda: vault.derive(db, "org_a", "audit"),
        lambda: Vault(FIRST).derive(db, "org_a", "audit"),
        lambda: begin_org(vault, db, 3),
    ):
        with pytest.raises(CannotOpen):
            use()
    assert len(vault.derive(db, "org_a", "hash")) == 32
    db.executemany("INSERT INTO vault_derived VALUES (?, ?, ?, ?)", kept)
    assert vault.derive(db, "org_a", "audit")


@pytest.mark.parametrize("how", ["DELETE FROM vault_derived", "UPDATE vault_derived SET key_version = 1"])
def test_neither_is_one_derived_anew_where_the_list_is_gone_too(vault: Vault, db: sqlite3.Connection, how: str):
    begin_org(vault, db, 2, "audit")
    reseal_all(vault, db, 2)
    db.execute("PRAGMA foreign_keys = OFF")
    steps.drop_org_keys(db, "org_a", 2)
    db.execute(how)
    for purpose in ("audit", "another"):
        if purpose == "audit" or how.startswith("DELETE"):
            with pytest.raises(CannotOpen):
                vault.derive(db, "org_a", purpose)


def test_a_purpose_of_a_later_release_is_derived_from_the_newest_key_and_kept_from_then_on(
    vault: Vault, db: sqlite3.Connection
):
    begin_org(vault, db, 2, "audit")
    new = vault.derive(db, "org_a", "new")
    assert new == vault.keyring.at(db, "org_a", 2).derive(context=("org_a", "new"))
    begin_org(vault, db, 3, "audit", "new")
    vault.forget()
    assert vault.derive(db, "org_a", "new") == new


def test_data_keys_are_sealed_anew_a_few_at_a_time_and_secrets_are_not_touched(vault: Vault, db: sqlite3.Connection):
    fields = db.execute("SELECT * FROM vault_field").fetchall()
    begin_org(vault, db)
    assert [due.connection for due in steps.due_credentials(db, "org_a", 2, most=2)] == ["con_0", "con_1"]
    reseal_all(vault, db, 2)
    assert steps.due_credentials(db, "org_a", 2, most=2) == []
    assert len(steps.due_credentials(db, "org_b", 2, most=100)) == 3
    assert db.execute("SELECT * FROM vault_field").fetchall() == fields
    assert vault.open(db, version=1, **SLOT).reveal() == "org_a 1"


def test_of_two_that_seal_a_data_key_anew_the_later_changes_nothing(vault: Vault, db: sqlite3.Connection):
    begin_org(vault, db)
    due, *_ = steps.due_credentials(db, "org_a", 2, most=100)
    steps.reseal_credential(db, vault, due, 2)
    before = dump(db)
    steps.reseal_credential(db, vault, due, 2)
    assert dump(db) == before


def test_a_credential_removed_meanwhile_does_not_come_back(vault: Vault, db: sqlite3.Connection):
    begin_org(vault, db)
    due, *_ = steps.due_credentials(db, "org_a", 2, most=100)
    vault.remove(db, org="org_a", connection=due.connection)
    before = dump(db)
    with pytest.raises(CannotOpen):
        steps.reseal_credential(db, vault, due, 2)
    assert dump(db) == before


@pytest.mark.parametrize(
    "altered",
    [
        "UPDATE vault_credential SET data_key = zeroblob(113)",
        "UPDATE vault_credential SET origin = 'https://evil.example:443'",
        "UPDATE vault_credential SET scheme = 'query'",
        "UPDATE vault_credential SET key_id = 'key_2'",
        "UPDATE vault_credential SET key_id = x'00'",
        "UPDATE vault_credential SET origin = x'00'",
        "UPDATE vault_field SET field = 'other'",
        "DELETE FROM vault_field",
    ],
)
def test_a_credential_that_was_altered_is_not_sealed_anew(vault: Vault, db: sqlite3.Connection, altered: str):
    begin_org(vault, db)
    db.execute(altered)
    for due in steps.due_credentials(db, "org_a", 2, most=100):
        refused_and_unchanged(db, lambda due=due: steps.reseal_credential(db, vault, due, 2), str(CannotOpen())[:20])
    refused_and_unchanged(db, lambda: steps.drop_org_keys(db, "org_a", 2), "3 credentials are under it")


def test_keys_are_dropped_when_no_credential_is_under_them_and_the_newest_never_is(
    vault: Vault, db: sqlite3.Connection
):
    assert steps.drop_org_keys(db, "org_a", 1) == 0
    begin_org(vault, db)
    refused_and_unchanged(db, lambda: steps.drop_org_keys(db, "org_a", 2), "3 credentials are under it")
    reseal_all(vault, db, 2)
    begin_org(vault, db, 3)
    refused_and_unchanged(db, lambda: steps.drop_org_keys(db, "org_a", 3), "3 credentials are under it")
    reseal_all(vault, db, 3)
    assert steps.drop_org_keys(db, "org_a", 3) == 2
    assert db.execute("SELECT org, version FROM vault_org_key ORDER BY org").fetchall() == [("org_a", 3), ("org_b", 1)]


def test_a_text_is_sealed_anew_for_the_same_purpose_and_subject_only(vault: Vault, db: sqlite3.Connection):
    text = vault.seal_text(db, "org_a", "prompt", "apr_1", "text")
    begin_org(vault, db)
    for purpose, subject in (("prompt", "apr_2"), ("call", "apr_1")):
        with pytest.raises(CannotOpen):
            steps.reseal_text(db, vault, "org_a", purpose, subject, text)
    again = steps.reseal_text(db, vault, "org_a", "prompt", "apr_1", text)
    assert (text[:4], again[:4]) == (b"\0\0\0\1", b"\0\0\0\2")
    reseal_all(vault, db, 2)
    steps.drop_org_keys(db, "org_a", 2)
    vault.forget()
    assert vault.unseal_text(db, "org_a", "prompt", "apr_1", again) == "text"
    with pytest.raises(CannotOpen):
        vault.unseal_text(db, "org_a", "prompt", "apr_1", text)
