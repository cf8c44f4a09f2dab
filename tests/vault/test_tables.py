import sqlite3

import pytest

from vault import Vault


def test_there_is_one_root_row(vault: Vault, db: sqlite3.Connection):
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(
            "INSERT INTO vault_root SELECT 2, provider, location, check_blob, installation_key, 0 FROM vault_root"
        )


def test_a_key_that_still_wraps_a_credential_cannot_be_deleted(vault: Vault, db: sqlite3.Connection):
    vault.put(db, org="org_a", connection="con_1", fields={"secret": "x"}, origin="https://a:443", scheme="bearer")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("DELETE FROM vault_org_key WHERE org = 'org_a'")
    vault.remove(db, org="org_a", connection="con_1")
    db.execute("DELETE FROM vault_org_key WHERE org = 'org_a'")


def test_every_table_of_a_tenant_is_keyed_by_org_first(db: sqlite3.Connection):
    for table in ("vault_org_key", "vault_credential", "vault_field"):
        keyed = {row[5]: row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        assert keyed[1] == "org"


def test_no_column_may_be_empty(db: sqlite3.Connection):
    for table in ("vault_root", "vault_org_key", "vault_credential", "vault_field"):
        assert all(row[3] for row in db.execute(f"PRAGMA table_info({table})"))
