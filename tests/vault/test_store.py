import dataclasses
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vault import CannotOpen, LocalRootKey, Sealed, Secret, Vault, VaultError, WrongRootKey
from vault.keyfile import FileRef

CANARY = "sk_live_canary_7f3a"
FIELDS = {"secret": CANARY, "account": "acct_9x"}
ORG_A_2 = ("org-key", "org_a", "2")
SLOT = {"org": "org_a", "connection": "con_1", "origin": "https://api.stripe.com:443", "scheme": "bearer"}


def put(vault: Vault, db: sqlite3.Connection, **changed: Any) -> int:
    return vault.put(db, **{**SLOT, "fields": FIELDS, **changed})


def revealed(vault: Vault, db: sqlite3.Connection, **changed: Any) -> dict[str, str]:
    with vault.open(db, **{**SLOT, "version": 1, **changed}) as secret:
        return {field: secret.reveal(field) for field in secret.fields}


def under(vault: Vault, db: sqlite3.Connection) -> dict[tuple[str, int], int]:
    """How many credential versions are under each version of each org's key."""
    status = vault.status(db)
    return {(org, key.version): key.credentials for org, keys in status.orgs.items() for key in keys}


def test_a_credential_opens_for_what_it_was_put_for(vault: Vault, db: sqlite3.Connection):
    assert put(vault, db) == 1
    assert revealed(vault, db) == FIELDS


def test_a_second_process_with_the_same_root_key_opens_it(vault: Vault, db: sqlite3.Connection, root: LocalRootKey):
    put(vault, db)
    other = Vault(root)
    other.check_root(db)
    assert revealed(other, db) == FIELDS


def test_a_secret_that_was_collected_as_one_is_stored_as_it_is(vault: Vault, db: sqlite3.Connection):
    put(vault, db, fields=Secret({"secret": "päss \ud800 ☃"}))
    assert revealed(vault, db) == {"secret": "päss \ud800 ☃"}


def test_each_put_is_the_next_version_and_earlier_ones_still_open(vault: Vault, db: sqlite3.Connection):
    assert put(vault, db) == 1
    assert put(vault, db, fields={"secret": "second"}) == 2
    assert put(vault, db, connection="con_2") == 1
    assert put(vault, db, org="org_b") == 1
    assert revealed(vault, db) == FIELDS
    assert revealed(vault, db, version=2) == {"secret": "second"}


@pytest.mark.parametrize(
    "changed",
    [
        {"org": "org_b"},
        {"org": "org_none"},
        {"connection": "con_2"},
        {"version": 2},
        {"version": 0},
        {"origin": "https://evil.example:443"},
        {"origin": "http://api.stripe.com:443"},
        {"scheme": "query"},
    ],
    ids=str,
)
def test_it_opens_for_nothing_else(vault: Vault, db: sqlite3.Connection, changed: dict[str, Any], locals_in):
    put(vault, db)
    with pytest.raises(CannotOpen) as caught:
        revealed(vault, db, **changed)
    assert str(caught.value) == str(CannotOpen())
    assert CANARY not in locals_in(caught.value)


REPOINTED = [
    "UPDATE vault_credential SET version = 2; UPDATE vault_field SET version = 2",
    "UPDATE vault_credential SET key_id = 'key_0000000000000000'",
    "UPDATE vault_credential SET key_version = 2",
    "INSERT INTO vault_org_key SELECT org, 2, wrapped, 0, 1 FROM vault_org_key;"
    "UPDATE vault_credential SET key_version = 2",
    "UPDATE vault_org_key SET version = 7 WHERE org = 'org_a'; UPDATE vault_credential SET key_version = 7",
    "UPDATE vault_credential SET org = 'org_b'; UPDATE vault_field SET org = 'org_b'",
    "UPDATE vault_credential SET connection = 'con_9'; UPDATE vault_field SET connection = 'con_9'",
    "UPDATE vault_field SET field = 'renamed' WHERE field = 'account'",
    "DELETE FROM vault_field WHERE field = 'account'",
    "DELETE FROM vault_field",
    "UPDATE vault_field SET sealed = (SELECT sealed FROM vault_field WHERE field = 'account')",
    "UPDATE vault_field SET sealed = 'text'",
    "UPDATE vault_credential SET data_key = 17",
    "UPDATE vault_org_key SET wrapped = (SELECT wrapped FROM vault_org_key WHERE org = 'org_b') WHERE org = 'org_a'",
    "DELETE FROM vault_org_key WHERE org = 'org_a'",
]


@pytest.mark.parametrize("statements", REPOINTED)
@pytest.mark.parametrize("warm", [True, False], ids=["keys in memory", "keys forgotten"])
def test_a_row_moved_renamed_or_swapped_in_the_database_does_not_open(
    vault: Vault, db: sqlite3.Connection, statements: str, warm: bool
):
    db.execute("PRAGMA foreign_keys = OFF")
    put(vault, db)
    assert revealed(vault, db) == FIELDS
    if not warm:
        vault.forget()
    for statement in statements.split(";"):
        db.execute(statement)
    for slot in ({}, {"version": 2}, {"org": "org_b"}, {"connection": "con_9"}):
        with pytest.raises(CannotOpen):
            revealed(vault, db, **slot)


@pytest.mark.parametrize("column", ["data_key", "key_id", "origin", "scheme"])
def test_rows_of_two_versions_cannot_be_mixed(vault: Vault, db: sqlite3.Connection, column: str):
    put(vault, db)
    put(vault, db, fields={**FIELDS, "secret": "second"}, origin="https://evil.example:443", scheme="query")
    db.execute(
        f"UPDATE vault_credential SET {column} = (SELECT {column} FROM vault_credential WHERE version = 2) "
        "WHERE version = 1"
    )
    with pytest.raises(CannotOpen):
        revealed(vault, db, origin="https://evil.example:443", scheme="query")


def test_a_field_moved_from_another_version_or_connection_does_not_open(vault: Vault, db: sqlite3.Connection):
    put(vault, db)
    put(vault, db)
    put(vault, db, connection="con_2")
    for place in ("connection = 'con_1' AND version = 2", "connection = 'con_2' AND version = 1"):
        db.execute(
            f"UPDATE vault_field SET sealed = (SELECT sealed FROM vault_field WHERE field = 'secret' AND {place}) "
            "WHERE field = 'secret' AND connection = 'con_1' AND version = 1"
        )
        with pytest.raises(CannotOpen):
            revealed(vault, db)


@pytest.fixture
def one_key(db: sqlite3.Connection, root: LocalRootKey) -> Vault:
    """Two orgs, and two versions, that were all given one key: only what the seals bind keeps them apart."""
    Vault(root).install(db)
    for org, version in [("org_a", 1), ("org_a", 2), ("org_b", 1)]:
        wrapped = root.wrap(b"n" * 32, context=("org-key", org, str(version)))
        db.execute("INSERT INTO vault_org_key VALUES (?, ?, ?, 0, 1)", (org, version, wrapped))
    return Vault(root)


def test_even_under_one_key_a_credential_opens_for_its_own_org_only(one_key: Vault, db: sqlite3.Connection):
    put(one_key, db, org="org_b")
    assert revealed(one_key, db, org="org_b") == FIELDS
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("UPDATE vault_credential SET org = 'org_a'")
    db.execute("UPDATE vault_field SET org = 'org_a'")
    with pytest.raises(CannotOpen):
        revealed(one_key, db, org="org_a")


def test_even_under_one_key_text_opens_for_its_own_org_and_version_only(one_key: Vault, db: sqlite3.Connection):
    blob = one_key.seal_text(db, "org_a", "prompt", "apr_1", "x")
    assert one_key.unseal_text(db, "org_a", "prompt", "apr_1", blob) == "x"
    first = b"\0\0\0\1" + blob[4:]
    for org, moved in [("org_a", first), ("org_b", first)]:
        with pytest.raises(CannotOpen):
            one_key.unseal_text(db, org, "prompt", "apr_1", moved)
    own = one_key.seal_text(db, "org_b", "prompt", "apr_1", "x")
    with pytest.raises(CannotOpen):
        one_key.unseal_text(db, "org_a", "prompt", "apr_1", own)


def test_even_under_one_key_two_orgs_derive_different_keys(one_key: Vault, db: sqlite3.Connection):
    db.execute("DELETE FROM vault_org_key WHERE version = 2")
    assert one_key.derive(db, "org_a", "audit") != one_key.derive(db, "org_b", "audit")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["vault_org_key.wrapped", "vault_credential.data_key", "vault_field.sealed"]), st.data())
def test_a_bit_flipped_anywhere_in_the_chain_of_keys_is_refused(
    new_database: Callable[[], sqlite3.Connection], root: LocalRootKey, place: str, data: st.DataObject
):
    vault, db = Vault(root), new_database()
    vault.install(db)
    vault.create_org_key(db, "org_a")
    put(vault, db, fields={"secret": CANARY})
    vault.forget()
    table, column = place.split(".")
    blob = bytearray(db.execute(f"SELECT {column} FROM {table}").fetchone()[0])
    bit = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[bit // 8] ^= 1 << bit % 8
    db.execute(f"UPDATE {table} SET {column} = ?", (bytes(blob),))
    with pytest.raises(CannotOpen):
        revealed(vault, db)


def test_nothing_in_the_database_is_the_secret_or_a_key(vault: Vault, db: sqlite3.Connection):
    put(vault, db)
    vault.seal_text(db, "org_a", "arguments", "apr_1", CANARY)
    dump = "".join(db.iterdump()).encode() + db.serialize()
    assert CANARY.encode() not in dump
    assert CANARY.encode().hex().upper().encode() not in dump
    assert b"acct_9x" not in dump


def test_a_credential_without_a_field_is_refused(vault: Vault, db: sqlite3.Connection):
    with pytest.raises(VaultError, match="at least one field"):
        put(vault, db, fields={})
    assert db.execute("SELECT COUNT(*) FROM vault_credential").fetchone() == (0,)


def test_a_write_that_fails_leaves_no_secret_in_the_traceback(vault: Vault, db: sqlite3.Connection, locals_in):
    db.execute("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.OperationalError) as caught:
        put(vault, db)
    shown = locals_in(caught.value)
    assert "'connection': 'con_1'" in shown
    assert CANARY not in shown


def test_a_removed_credential_is_gone_in_every_version_and_others_stay(vault: Vault, db: sqlite3.Connection):
    put(vault, db)
    put(vault, db)
    put(vault, db, connection="con_2")
    put(vault, db, org="org_b")
    vault.remove(db, org="org_a", connection="con_1")
    for version in (1, 2):
        with pytest.raises(CannotOpen):
            revealed(vault, db, version=version)
    assert db.execute("SELECT COUNT(*) FROM vault_field WHERE connection = 'con_1' AND org = 'org_a'").fetchone() == (
        0,
    )
    assert revealed(vault, db, connection="con_2") == FIELDS
    assert revealed(vault, db, org="org_b") == FIELDS


def test_earlier_versions_are_removed_and_later_ones_and_other_connections_stay(vault: Vault, db: sqlite3.Connection):
    for _ in range(3):
        put(vault, db)
    put(vault, db, connection="con_2")
    put(vault, db, org="org_b")
    under_way = vault.take(db, version=1, **SLOT)
    Vault(None, "sealed.").remove_before(db, org="org_a", connection="con_1", version=3)
    for version in (1, 2):
        with pytest.raises(CannotOpen):
            revealed(vault, db, version=version)
    assert revealed(vault, db, version=3) == FIELDS
    assert revealed(vault, db, connection="con_2") == revealed(vault, db, org="org_b") == FIELDS
    assert db.execute("SELECT COUNT(*) FROM vault_field").fetchone() == (2 * 3,)
    assert under_way().reveal() == CANARY, "a call that had begun goes on"
    assert put(vault, db) == 4


def test_a_credential_encrypted_anew_is_the_same_under_other_keys(
    vault: Vault, db: sqlite3.Connection, root: LocalRootKey
):
    put(vault, db)
    put(vault, db)
    put(vault, db, connection="con_2")
    under_way = vault.take(db, version=2, **SLOT)
    before = db.execute("SELECT * FROM vault_credential ORDER BY connection, version").fetchall()
    fields = db.execute("SELECT * FROM vault_field ORDER BY connection, version, field").fetchall()
    db.execute("INSERT INTO vault_org_key VALUES ('org_a', 2, ?, 0, 1)", (root.wrap(b"n" * 32, context=ORG_A_2),))
    vault.reencrypt(db, version=2, **SLOT)
    after = db.execute("SELECT * FROM vault_credential ORDER BY connection, version").fetchall()
    assert [row for row in after if row in before] == [before[0], before[2]]
    assert {row[3] for row in after}.isdisjoint({before[1][3]}), "another key id"
    assert db.execute("SELECT key_version FROM vault_credential WHERE version = 2").fetchone() == (2,)
    again = db.execute("SELECT * FROM vault_field ORDER BY connection, version, field").fetchall()
    assert [row[4] in {one[4] for one in fields} for row in again] == [True, True, False, False, True, True]
    for each in (vault, Vault(root)):
        assert revealed(each, db, version=2) == revealed(each, db) == FIELDS
    assert under_way().reveal() == CANARY, "a call that had begun goes on"


def test_what_does_not_open_is_not_encrypted_anew(vault: Vault, db: sqlite3.Connection, locals_in):
    put(vault, db)
    before = "".join(db.iterdump())
    for changed in ({"origin": "https://evil.example:443"}, {"scheme": "query"}, {"version": 2}, {"org": "org_b"}):
        with pytest.raises(CannotOpen) as caught:
            vault.reencrypt(db, **{**SLOT, "version": 1, **changed})
        assert CANARY not in locals_in(caught.value)
    assert "".join(db.iterdump()) == before


def test_text_opens_for_its_own_org_purpose_and_subject_only(vault: Vault, db: sqlite3.Connection, locals_in):
    text = 'refund {"charge": "ch_1"} \ud800'
    blob = vault.seal_text(db, "org_a", "arguments", "apr_1", text)
    assert vault.unseal_text(db, "org_a", "arguments", "apr_1", blob) == text
    for asked in [
        ("org_b", "arguments", "apr_1", blob),
        ("org_none", "arguments", "apr_1", blob),
        ("org_a", "prompt", "apr_1", blob),
        ("org_a", "arguments", "apr_2", blob),
        ("org_a", "arguments", "apr_1", b"\x00\x00\x00\x02" + blob[4:]),
        ("org_a", "arguments", "apr_1", blob[:-1]),
        ("org_a", "arguments", "apr_1", b""),
        ("org_a", "arguments", "apr_1", "text"),
    ]:
        with pytest.raises(CannotOpen) as caught:
            vault.unseal_text(db, *asked)
        assert "refund" not in locals_in(caught.value)


def test_text_sealed_under_an_earlier_org_key_still_opens_after_a_newer_one_is_there(
    vault: Vault, db: sqlite3.Connection, root: LocalRootKey
):
    before = vault.seal_text(db, "org_a", "prompt", "apr_1", "before")
    put(vault, db)
    wrapped = root.wrap(b"n" * 32, context=("org-key", "org_a", "2"))
    db.execute("INSERT INTO vault_org_key VALUES ('org_a', 2, ?, 0, 1)", (wrapped,))
    after = vault.seal_text(db, "org_a", "prompt", "apr_1", "after")
    assert put(vault, db) == 2
    assert (before[:4], after[:4]) == (b"\0\0\0\1", b"\0\0\0\2")
    assert vault.unseal_text(db, "org_a", "prompt", "apr_1", before) == "before"
    assert vault.unseal_text(db, "org_a", "prompt", "apr_1", after) == "after"
    assert revealed(vault, db, version=1) == revealed(vault, db, version=2) == FIELDS
    assert under(vault, db) == {("org_a", 1): 1, ("org_a", 2): 1, ("org_b", 1): 0}


def test_derived_keys_are_stable_and_differ_by_org_and_purpose(
    vault: Vault, db: sqlite3.Connection, root: LocalRootKey
):
    asked = [("org_a", "audit"), ("org_b", "audit"), ("org_a", "state"), ("", "audit"), ("", "state")]
    keys = [vault.derive(db, org, purpose) for org, purpose in asked]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)
    assert [Vault(root).derive(db, org, purpose) for org, purpose in asked] == keys


def test_two_installations_under_one_root_key_derive_different_keys(
    vault: Vault, db: sqlite3.Connection, new_database: Callable[[], sqlite3.Connection], root: LocalRootKey
):
    other = new_database()
    Vault(root).install(other)
    assert vault.derive(db, "", "state") != vault.derive(other, "", "state")


def test_an_org_without_a_key_can_seal_nothing(vault: Vault, db: sqlite3.Connection):
    for use in (
        lambda: put(vault, db, org="org_none"),
        lambda: vault.seal_text(db, "org_none", "prompt", "apr_1", "x"),
        lambda: vault.derive(db, "org_none", "audit"),
    ):
        with pytest.raises(VaultError, match="has no key"):
            use()


def test_an_org_has_one_first_key_and_a_name(vault: Vault, db: sqlite3.Connection):
    before = db.execute("SELECT * FROM vault_org_key").fetchall()
    with pytest.raises(VaultError, match="already"):
        vault.create_org_key(db, "org_a")
    with pytest.raises(VaultError, match="name it"):
        vault.create_org_key(db, "")
    assert db.execute("SELECT * FROM vault_org_key").fetchall() == before


def test_a_key_whose_creation_was_rolled_back_is_never_used_again(vault: Vault, db: sqlite3.Connection):
    db.execute("BEGIN")
    vault.create_org_key(db, "org_c")
    put(vault, db, org="org_c")
    db.execute("ROLLBACK")
    vault.create_org_key(db, "org_c")
    put(vault, db, org="org_c")
    vault.forget()
    assert revealed(vault, db, org="org_c") == FIELDS


def test_org_keys_are_unwrapped_once_until_forgotten(vault: Vault, db: sqlite3.Connection, root: LocalRootKey):
    class Counting:
        provider, location, remote, unwrapped = "memory", "here", False, 0

        def wrap(self, key: bytes, *, context: Any) -> bytes:
            return root.wrap(key, context=context)

        def unwrap(self, blob: bytes, *, context: Any) -> bytes:
            self.unwrapped += 1
            return root.unwrap(blob, context=context)

    put(vault, db)
    counting = Counting()
    counted = Vault(counting)
    for _ in range(3):
        revealed(counted, db)
        counted.derive(db, "org_a", "audit")
    assert counting.unwrapped == 2  # the org's key, and once the check that the root key is the right one
    counted.forget()
    revealed(counted, db)
    assert counting.unwrapped == 4


def test_an_installed_database_knows_its_root_key_and_no_other(vault: Vault, db: sqlite3.Connection):
    vault.check_root(db)
    with pytest.raises(WrongRootKey, match=r"from file \(/other\).*kept in memory \(this process\).*Put that key back"):
        Vault(LocalRootKey(b"x" * 32, provider="file", location="/other")).check_root(db)


def test_a_database_is_bound_to_one_root_key_once(vault: Vault, db: sqlite3.Connection):
    before = db.execute("SELECT * FROM vault_root").fetchall()
    for again in (vault, Vault(LocalRootKey(b"x" * 32))):
        with pytest.raises(VaultError, match="already"):
            again.install(db)
    assert db.execute("SELECT * FROM vault_root").fetchall() == before


def test_a_database_without_a_vault_says_to_init(db: sqlite3.Connection, root: LocalRootKey):
    for use in (lambda: Vault(root).check_root(db), lambda: Vault(root).derive(db, "", "state")):
        with pytest.raises(VaultError, match="keyleash init"):
            use()


def test_the_check_value_and_the_installation_key_do_not_stand_in_for_each_other(vault: Vault, db: sqlite3.Connection):
    db.execute("UPDATE vault_root SET check_blob = installation_key")
    with pytest.raises(WrongRootKey):
        vault.check_root(db)


def test_a_sealed_vault_opens_and_stores_nothing_and_says_why(vault: Vault, db: sqlite3.Connection):
    put(vault, db)
    blob = vault.seal_text(db, "org_a", "prompt", "apr_1", "x")
    before = "".join(db.iterdump())
    sealed = Vault(None, "the root key is missing; put it back.")
    assert sealed.sealed == "the root key is missing; put it back."
    for use in (
        lambda: sealed.install(db),
        lambda: sealed.check_root(db),
        lambda: sealed.create_org_key(db, "org_c"),
        lambda: put(sealed, db),
        lambda: put(sealed, db, org="org_none"),
        lambda: revealed(sealed, db),
        lambda: revealed(sealed, db, connection="con_none"),
        lambda: sealed.seal_text(db, "org_a", "prompt", "apr_1", "x"),
        lambda: sealed.unseal_text(db, "org_a", "prompt", "apr_1", blob),
        lambda: sealed.unseal_text(db, "org_none", "prompt", "apr_1", blob),
        lambda: sealed.derive(db, "org_a", "audit"),
        lambda: sealed.derive(db, "", "state"),
    ):
        with pytest.raises(Sealed, match=r"^The vault is sealed: the root key is missing; put it back\.$"):
            use()
    assert "".join(db.iterdump()) == before


def test_a_vault_is_sealed_with_a_reason_even_if_none_was_given():
    assert "Restart with the key" in (Vault(None).sealed or "")
    assert Vault(LocalRootKey(b"k" * 32)).sealed is None


def test_a_sealed_vault_is_sealed_before_it_is_anything_else(db: sqlite3.Connection):
    with pytest.raises(Sealed):
        Vault(None).derive(db, "", "state")


def test_a_sealed_vault_can_still_remove_and_tell_its_status(vault: Vault, db: sqlite3.Connection):
    put(vault, db)
    sealed = Vault(None, "why.")
    status = sealed.status(db)
    assert (status.sealed, status.provider, status.location) == ("why.", "memory", "this process")
    assert under(sealed, db) == {("org_a", 1): 1, ("org_b", 1): 0}
    sealed.remove(db, org="org_a", connection="con_1")
    assert under(sealed, db) == {("org_a", 1): 0, ("org_b", 1): 0}


def test_status_counts_keys_and_credentials_and_is_plain_json(vault: Vault, db: sqlite3.Connection):
    put(vault, db)
    put(vault, db)
    put(vault, db, org="org_b")
    status = vault.status(db)
    assert status.sealed is None
    assert under(vault, db) == {("org_a", 1): 2, ("org_b", 1): 1}
    assert [(root.generation, root.ready, root.org_keys) for root in status.roots] == [(1, True, 2)]
    assert status.since == db.execute("SELECT created_at FROM vault_root").fetchone()[0]
    assert json.loads(json.dumps(dataclasses.asdict(status)))["location"] == "this process"


def test_status_of_a_database_without_a_vault(db: sqlite3.Connection):
    status = Vault(None, "why.").status(db)
    assert (status.provider, status.location, status.since, status.roots, status.orgs) == ("", "", None, (), {})


def test_started_on_its_root_key_the_vault_is_open(tmp_path: Path, db: sqlite3.Connection):
    ref = FileRef.at("", tmp_path)
    Vault(ref.create()).install(db)
    assert Vault.start(ref, db).sealed is None


def test_started_without_its_root_key_or_on_a_wrong_one_it_is_sealed_and_says_so(
    tmp_path: Path, db: sqlite3.Connection
):
    ref, other = FileRef.at("", tmp_path), FileRef.at("", tmp_path / "other")
    assert "no root key at" in (Vault.start(ref, db).sealed or "")
    ref.create()
    assert "keyleash init" in (Vault.start(ref, db).sealed or "")
    Vault(ref.load()).install(db)
    other.create()
    wrong = Vault.start(other, db)
    assert "is not the one that this database was made with" in (wrong.sealed or "")
    with pytest.raises(Sealed):
        wrong.derive(db, "", "state")
