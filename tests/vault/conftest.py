"""A database with the vault's own tables, an open vault on it, and a way to see what a traceback would print."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from sqlalchemy.schema import CreateTable

from vault import LocalRootKey, Vault
from vault.tables import Credential, Derived, OrgKey, VaultField, VaultRoot

ROOT = bytes(range(1, 33))
NewDatabase = Callable[[], sqlite3.Connection]


@pytest.fixture(scope="session")
def schema() -> list[str]:
    return [str(CreateTable(table.__table__)) for table in (VaultRoot, OrgKey, Derived, Credential, VaultField)]


@pytest.fixture
def new_database(schema: list[str]) -> Iterator[NewDatabase]:
    opened: list[sqlite3.Connection] = []

    def make() -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", isolation_level=None)
        opened.append(db)
        db.execute("PRAGMA foreign_keys = ON")
        for statement in schema:
            db.execute(statement)
        return db

    yield make
    for db in opened:
        db.close()


@pytest.fixture
def db(new_database: NewDatabase) -> sqlite3.Connection:
    return new_database()


@pytest.fixture
def root() -> LocalRootKey:
    return LocalRootKey(ROOT)


@pytest.fixture
def vault(db: sqlite3.Connection, root: LocalRootKey) -> Vault:
    vault = Vault(root)
    vault.install(db)
    vault.create_org_key(db, "org_a")
    vault.create_org_key(db, "org_b")
    return vault


@pytest.fixture
def locals_in() -> Callable[[BaseException], str]:
    """What a traceback with locals would print of the vault's own frames, causes and hidden contexts included."""

    def of_frame(frame: FrameType) -> str:
        in_vault = Path(frame.f_code.co_filename).parent.name == "vault" and "tests" not in frame.f_code.co_filename
        return repr(frame.f_locals) if in_vault else ""

    def shown(error: BaseException | None) -> str:
        if error is None:
            return ""
        text, step = repr(error), error.__traceback__
        while step:
            text += of_frame(step.tb_frame)
            step = step.tb_next
        return text + shown(error.__cause__) + shown(error.__context__)

    return shown
