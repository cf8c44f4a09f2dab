"""Tokens that were renewed take the place of those before: the same version, and nothing of the old ones opens."""

import sqlite3

import pytest

from tests.vault.test_store import FIELDS, SLOT, put, revealed
from vault import CannotOpen, Secret, Vault

NEW = {"secret": "at_canary_new_91c2", "refresh_token": "rt_canary_new_3d77"}


def test_other_fields_are_sealed_in_the_place_of_a_versions(vault: Vault, db: sqlite3.Connection) -> None:
    put(vault, db, connection="con_2")
    put(vault, db)
    theirs = db.execute("SELECT * FROM vault_field WHERE connection = 'con_2'").fetchall()
    before = {row[4] for row in db.execute("SELECT * FROM vault_field WHERE connection = 'con_1'")}
    keys = {(row[3], row[5]) for row in db.execute("SELECT * FROM vault_credential WHERE connection = 'con_1'")}
    under_way = vault.take(db, **SLOT, version=1)
    vault.replace(db, **SLOT, version=1, fields=Secret(NEW))
    assert revealed(vault, db) == NEW
    assert under_way().reveal() == FIELDS["secret"], "a call that had begun goes on"
    assert {row[4] for row in db.execute("SELECT * FROM vault_field WHERE connection = 'con_1'")}.isdisjoint(before)
    (after,) = {(row[3], row[5]) for row in db.execute("SELECT * FROM vault_credential WHERE connection = 'con_1'")}
    assert after not in keys, "another data key"
    assert db.execute("SELECT * FROM vault_field WHERE connection = 'con_2'").fetchall() == theirs
    assert db.execute("SELECT COUNT(*) FROM vault_credential WHERE connection = 'con_1'").fetchone() == (1,)


@pytest.mark.parametrize(
    "changed",
    [
        {"origin": "https://evil.example:443"},
        {"scheme": "query"},
        {"version": 2},
        {"connection": "con_2"},
        {"org": "org_b"},
    ],
)
def test_nothing_is_sealed_for_what_was_never_put(
    vault: Vault, db: sqlite3.Connection, changed: dict[str, object]
) -> None:
    put(vault, db)
    before = "".join(db.iterdump())
    with pytest.raises(CannotOpen):
        vault.replace(db, **{**SLOT, "version": 1, **changed}, fields=Secret(NEW))
    assert "".join(db.iterdump()) == before
