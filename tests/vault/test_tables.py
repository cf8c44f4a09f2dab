import sqlite3

import pytest

from vault import Vault


def test_a_key_that_still_wraps_a_credential_cannot_be_deleted(vault: Vault, db: sqlite3.Connection):
    vault.put(db, org="org_a", connection="con_1", fields={"secret": "x"}, origin="https://a:443", scheme="bearer")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("DELETE FROM vault_org_key WHERE org = 'org_a'")
    vault.remove(db, org="org_a", connection="con_1")
    db.execute("DELETE FROM vault_org_key WHERE org = 'org_a'")


def test_every_table_of_a_tenant_is_keyed_by_org_first(db: sqlite3.Connection):
    for table in ("vault_org_key", "vault_derived", "vault_credential", "vault_field"):
        keyed = {row[5]: row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        assert keyed[1] == "org"


def test_no_column_may_be_empty(db: sqlite3.Connection):
    for table in ("vault_org_key", "vault_derived", "vault_credential", "vault_field"):
        assert all(row[3] for row in db.execute(f"PRAGMA table_info({table})"))
