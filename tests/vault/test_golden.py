"""What the first release sealed, every later one opens."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from vault import LocalRootKey, Vault, unseal
from vault.keyfile import FileRef

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "v1.json").read_text(encoding="utf-8"))


@pytest.fixture
def golden_root(tmp_path: Path) -> LocalRootKey:
    path = tmp_path / "root.key"
    path.write_text(GOLDEN["root_key_file"])
    path.chmod(0o600)
    return FileRef(path).load()


@pytest.fixture
def golden_db(db: sqlite3.Connection) -> sqlite3.Connection:
    for table, rows in GOLDEN["tables"].items():
        for row in rows:
            values = [bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in row.values()]
            db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", values)
    return db


def test_a_blob_of_the_first_release_opens():
    blob = GOLDEN["seal"]
    opened = unseal(bytes.fromhex(blob["key"]), bytes.fromhex(blob["blob"]), context=blob["context"])
    assert opened.decode() == blob["plaintext"]


def test_a_database_of_the_first_release_opens(golden_db: sqlite3.Connection, golden_root: LocalRootKey):
    vault = Vault(golden_root)
    vault.check_root(golden_db)
    opened = [
        vault.open(
            golden_db,
            org="org_golden",
            connection="con_golden",
            version=version,
            origin="https://api.example.com:443",
            scheme="basic",
        )
        for version in (1, 2)
    ]
    assert [(secret.fields, secret.reveal()) for secret in opened] == [
        (("secret", "user"), "sk_golden"),
        (("secret",), "sk_golden_2"),
    ]
    assert opened[0].reveal("user") == "jürgen"


def test_a_text_of_the_first_release_opens(golden_db: sqlite3.Connection, golden_root: LocalRootKey):
    text = bytes.fromhex(GOLDEN["text"])
    vault = Vault(golden_root)
    assert vault.unseal_text(golden_db, "org_golden", "arguments", "apr_golden", text) == '{"amount":100}'


def test_derived_keys_are_those_of_the_first_release(golden_db: sqlite3.Connection, golden_root: LocalRootKey):
    vault = Vault(golden_root)
    assert vault.derive(golden_db, "org_golden", "audit").hex() == GOLDEN["derived"]["org_golden"]
    assert vault.derive(golden_db, "", "state").hex() == GOLDEN["derived"][""]
