"""An attacker who can write to the database puts back what was there before.

Refused is whatever would be something else than it was: an older version of a credential in the place of a newer one,
one version of an org's key in the place of another. What cannot be refused, because a database that is put back whole
looks as it looked then: a credential that was removed and is put back with all its rows, while the key that it is under
is still there; an older text of the same purpose and subject; and either of these under an org's key that was dropped
and is put back with it, as long as its root key exists. All of them open as what they were, where they were. It ends
when the keys are rotated and the root key from before is destroyed; the checkpoints of the audit log show it.
"""

import sqlite3

import pytest

from tests.vault.populated import SLOTS, VAULT_TABLES, Place, opened_vault, populate, refused, root, rotate_org, undone
from vault import CannotOpen, RootKeyProblem, Vault
from vault import rotation as steps

WARM = pytest.mark.parametrize("warm", [True, False], ids=["keys in memory", "no key in memory"])


@pytest.fixture
def places(db: sqlite3.Connection) -> list[Place]:
    found = populate(db)
    db.execute("PRAGMA foreign_keys = OFF")
    return found


@pytest.fixture
def vault(db: sqlite3.Connection, places: list[Place]) -> Vault:
    vault = opened_vault()
    assert all(place.read(vault, db) == place.holds for place in places)
    return vault


def rows(db: sqlite3.Connection, table: str, where: str) -> list[tuple[object, ...]]:
    return db.execute(f"SELECT * FROM {table} WHERE {where}").fetchall()


def put_back(db: sqlite3.Connection, table: str, kept: list[tuple[object, ...]]) -> None:
    for row in kept:
        db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def test_an_older_version_of_a_credential_does_not_open_in_the_place_of_a_newer_one(
    vault: Vault, db: sqlite3.Connection, places: list[Place]
):
    newer = next(place for place in places if place.name == "org_c con_1 2")
    for table in ("vault_field", "vault_credential"):
        for column in ("sealed",) if table == "vault_field" else ("data_key", "key_id", "data_key, key_id"):
            with undone(db):
                replay(db, table, column)
                assert refused(vault, db, newer)
    replay(db, "vault_field", "sealed")
    replay(db, "vault_credential", "data_key, key_id")
    assert refused(vault, db, newer)


def replay(db: sqlite3.Connection, table: str, columns: str) -> None:
    """The values of version 1 of a credential, over those of version 2."""
    same_field = " AND o.field = n.field" if table == "vault_field" else ""
    for column in columns.split(", "):
        db.execute(
            f"UPDATE {table} AS n SET {column} = (SELECT o.{column} FROM {table} o WHERE o.org = n.org AND "
            f"o.connection = n.connection AND o.version = 1{same_field}) "
            "WHERE n.org = 'org_c' AND n.connection = 'con_1' AND n.version = 2"
        )


@WARM
def test_an_org_key_that_was_dropped_and_is_put_back_opens_nothing_but_what_was_under_it(
    vault: Vault, db: sqlite3.Connection, places: list[Place], warm: bool
):
    before = rows(db, "vault_org_key", "org = 'org_c'")
    credentials = rows(db, "vault_credential", "org = 'org_c'")
    rotate_org(db, vault, "org_c")
    put_back(db, "vault_org_key", before)
    if not warm:
        vault.forget()
    mine = [place for place in places if place.org == "org_c"]
    assert not any(refused(vault, db, place) for place in mine)
    assert vault.keyring.newest(db, "org_c")[0] == 2  # nothing new goes under it
    db.execute("UPDATE vault_credential SET key_version = 1 WHERE org = 'org_c'")
    assert all(refused(vault, db, place) for place in mine if " con_" in place.name)
    put_back(db, "vault_credential", credentials)
    assert not any(refused(vault, db, place) for place in mine)  # whole, it is the state of then: it opens as then


@WARM
@pytest.mark.parametrize("version", [2, 3], ids=["over the one in use", "as the next one"])
def test_an_org_key_put_back_as_a_later_version_opens_and_seals_nothing(
    vault: Vault, db: sqlite3.Connection, places: list[Place], version: int, warm: bool
):
    (before,) = rows(db, "vault_org_key", "org = 'org_c'")
    rotate_org(db, vault, "org_c")
    put_back(db, "vault_org_key", [(before[0], version, *before[2:])])
    if not warm:
        vault.forget()
    credentials = [place for place in places if place.name.startswith("org_c con_")]
    assert all(refused(vault, db, place) == (version == 2) for place in credentials)
    for use in (
        lambda: vault.put(db, org="org_c", connection="con_1", fields={"secret": "x"}, **SLOTS["con_1"]),
        lambda: vault.seal_text(db, "org_c", "prompt", "apr_1", "x"),
        lambda: vault.derive(db, "org_c", "of a later release"),
        lambda: rotate_org(db, vault, "org_c"),
    ):
        with pytest.raises(CannotOpen):
            use()


def test_a_removed_credential_put_back_opens_until_the_key_that_it_was_under_is_dropped(
    vault: Vault, db: sqlite3.Connection, places: list[Place]
):
    removed = next(place for place in places if place.name == "org_c con_2 1")
    kept = {table: rows(db, table, "org = 'org_c' AND connection = 'con_2'") for table in VAULT_TABLES[3:]}
    vault.remove(db, org="org_c", connection="con_2")
    assert refused(vault, db, removed)
    for table, of_it in kept.items():
        put_back(db, table, of_it)
    assert not refused(vault, db, removed)
    vault.remove(db, org="org_c", connection="con_2")
    rotate_org(db, vault, "org_c")
    for table, of_it in kept.items():
        put_back(db, table, of_it)
    assert refused(vault, db, removed)


def test_an_older_text_opens_for_its_own_purpose_and_subject_and_is_refused_under_a_later_key(
    vault: Vault, db: sqlite3.Connection, places: list[Place]
):
    older = vault.seal_text(db, "org_c", "approval-outcome", "apr_1", "older")
    vault.seal_text(db, "org_c", "approval-outcome", "apr_1", "newer")
    assert vault.unseal_text(db, "org_c", "approval-outcome", "apr_1", older) == "older"
    rotate_org(db, vault, "org_c")
    for version in (b"", (2).to_bytes(4, "big")):
        with pytest.raises(CannotOpen):
            vault.unseal_text(db, "org_c", "approval-outcome", "apr_1", version + older[len(version) :])


def test_an_earlier_generation_put_back_without_its_root_key_opens_nothing(db: sqlite3.Connection, vault: Vault):
    """And the newest is the newest still: nothing new goes under the one that was put back."""
    generation, org_key = rows(db, "vault_root", "id = 1"), rows(db, "vault_org_key", "org = 'org_c'")
    for key in steps.due_org_keys(db, 2, most=9):
        steps.move_org_key(db, key, steps.rewrapped(key.wrapped, key.context, before=root(1), after=root(2)), 2)
    assert steps.finish_root(db, 2)
    steps.drop_root(db, 1)
    put_back(db, "vault_org_key", org_key)
    with pytest.raises(CannotOpen):
        opened_vault().keyring.newest(db, "org_c")
    put_back(db, "vault_root", generation)
    destroyed = Vault(root(2))  # as where `find` finds nothing any more
    with pytest.raises(RootKeyProblem):
        destroyed.keyring.newest(db, "org_c")
    assert destroyed.keyring.generations.newest(db)[0] == 2
