"""What a release sealed in the middle of its rotations, every later one opens, and finishes."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vault.make_golden import golden
from tests.vault.populated import VAULT_TABLES
from vault import RootKey, Vault, unseal
from vault import rotation as steps
from vault.keyfile import FileRef

FILES = [file for file in sorted((Path(__file__).parent / "golden").glob("v*.json")) if file.name != "v1.json"]
Golden = dict[str, Any]


@pytest.fixture(params=[*FILES, None], ids=lambda file: file.stem if file else "made now")
def found(request: pytest.FixtureRequest) -> Golden:
    if request.param is None:
        return json.loads(json.dumps(golden()))
    return json.loads(request.param.read_text(encoding="utf-8"))


@pytest.fixture
def golden_db(db: sqlite3.Connection, found: Golden) -> sqlite3.Connection:
    for table, rows in found["tables"].items():
        for row in rows:
            values = [bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in row.values()]
            db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", values)
    return db


@pytest.fixture
def find(found: Golden, tmp_path: Path) -> Callable[[str, str], RootKey]:
    """The root keys, read from files that hold what is written down."""

    def load(_provider: str, location: str) -> RootKey:
        file = tmp_path / Path(location).name
        file.write_text(found["root_key_files"][location])
        file.chmod(0o600)
        return FileRef(file).load()

    return load


def newest(find: Callable[[str, str], RootKey], found: Golden) -> Vault:
    return Vault(find("file", found["tables"]["vault_root"][-1]["location"]), find=find)


def everything_opens(vault: Vault, db: sqlite3.Connection, found: Golden) -> None:
    vault.check_root(db)
    for credential in found["credentials"]:
        at = {name: value for name, value in credential.items() if name != "fields"}
        with vault.open(db, **at) as secret:
            assert {name: secret.reveal(name) for name in secret.fields} == credential["fields"]
    for text in found["texts"]:
        at = (text["org"], text["purpose"], text["subject"])
        assert vault.unseal_text(db, *at, bytes.fromhex(text["sealed"])) == text["text"]
    for key in found["derived"]:
        assert vault.derive(db, key["org"], key["purpose"]).hex() == key["key"]


def test_a_blob_opens(found: Golden):
    blob = found["seal"]
    opened = unseal(bytes.fromhex(blob["key"]), bytes.fromhex(blob["blob"]), context=blob["context"])
    assert opened.decode() == blob["plaintext"]


def test_everything_in_the_database_opens(golden_db: sqlite3.Connection, find: Any, found: Golden):
    everything_opens(newest(find, found), golden_db, found)


def test_its_rotations_are_finished_and_everything_opens(golden_db: sqlite3.Connection, find: Any, found: Golden):
    vault = newest(find, found)
    generation = steps.unfinished_root(golden_db)
    assert generation is not None and generation.ready
    for key in steps.due_org_keys(golden_db, generation.id, most=100):
        before = vault.keyring.generations.of(golden_db, key.generation)
        wrapped = steps.rewrapped(key.wrapped, key.context, before=before, after=vault.keyring.generations.given)
        assert steps.move_org_key(golden_db, key, wrapped, generation.id)
    assert steps.finish_root(golden_db, generation.id)
    steps.drop_root(golden_db, 1)
    for due in steps.due_credentials(golden_db, "org_b", 2, most=100):
        steps.reseal_credential(golden_db, vault, due, 2)
    for text in found["texts"]:
        at = (text["org"], text["purpose"], text["subject"])
        if text["org"] == "org_b":
            text["sealed"] = steps.reseal_text(golden_db, vault, *at, bytes.fromhex(text["sealed"])).hex()
    assert steps.drop_org_keys(golden_db, "org_b", 2) == 1
    alone = Vault(vault.keyring.generations.given)  # it finds no other root key, and needs none
    everything_opens(alone, golden_db, found)


def test_the_newest_golden_file_has_something_of_all_that_is_sealed(db: sqlite3.Connection):
    """A column of sealed bytes that is new needs a new file: see tests/vault/make_golden.py."""
    tables = json.loads(FILES[-1].read_text(encoding="utf-8"))["tables"]
    for table in VAULT_TABLES:
        for column in [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[2] == "BLOB"]:
            assert any(row[column] for row in tables[table]), f"{table}.{column}"
    assert {row["root"] for row in tables["vault_org_key"]} == {1, 2}
    assert {row["key_version"] for row in tables["vault_credential"]} == {1, 2}
    assert {row["purpose"] for row in tables["vault_derived"]} > {""}


def test_a_golden_file_is_never_made_over_one_that_is_there(tmp_path: Path):
    there = tmp_path / "v2.json"
    there.write_text("kept")
    done = subprocess.run(
        [sys.executable, "-m", "tests.vault.make_golden", str(there)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert there.read_text() == "kept"
