"""Processes for the tests of rotation: one that rotates and kills itself, one that reads until it is told to stop.

`rotate HOME root|ORG STATEMENT` rotates and sends itself SIGKILL before that statement of its database: by number (0
is none), or by how it begins.
`read HOME` opens everything that is sealed, over and over; for each round it prints `ok`, or what could not be opened.
"""

import os
import select
import signal
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.app import Installation, open_installation
from server.connections import connections_of, open_credential
from server.database import Database
from server.postgres import Connection, PostgresDatabase
from server.rotation import rotate_org, rotate_root, unfinished_root
from server.sealed import DERIVED, SEALED
from server.settings import read_settings
from server.sqlite import SqliteDatabase
from tests.installed import operators
from vault import Vault, root_key_spec


class Doomed(SqliteDatabase):
    """A database whose process is killed just before a certain statement, counted over all its connections."""

    def __init__(self, path: Path, last: str) -> None:
        super().__init__(path)
        self.done = 0
        self.last = last

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.set_trace_callback(self._count)
        return connection

    def _count(self, statement: str) -> None:
        self.done += 1
        if str(self.done) == self.last or (self.last != "0" and statement.startswith(self.last)):
            os.kill(os.getpid(), signal.SIGKILL)


class DoomedThere(PostgresDatabase):
    """The same, where its statements go to PostgreSQL."""

    def __init__(self, url: str, last: str) -> None:
        super().__init__(url)
        self.done = 0

        def count(statement: bytes) -> None:
            self.done += 1
            if str(self.done) == last or (last != "0" and statement.decode().startswith(last)):
                os.kill(os.getpid(), signal.SIGKILL)

        class Counted(Connection):
            def execute(self, query: Any, *values: Any, **more: Any) -> Any:
                count(query)
                return super().execute(query, *values, **more)

        self._server.connections = Counted


def everything(installation: Installation) -> dict[str, str]:
    """All that is sealed, opened, and all that is derived: what it is for → what it is, or why it does not open."""
    found: dict[str, str] = {}
    database, vault = operators(installation), installation.vault
    for org in installation.directory.orgs():
        for connection in connections_of(database, org.id):
            with database.query(lambda rows, one=connection: open_credential(rows, vault, one)) as secret:
                found[f"{org.id} {connection.name}"] = secret.reveal()
        for place in SEALED:
            found |= database.snapshot(lambda rows, org=org, place=place: _texts(rows, vault, org.id, place))
        for purpose in DERIVED:
            derived = database.query(lambda rows, org=org, purpose=purpose: vault.derive(rows, org.id, purpose))
            found[f"{org.id} {purpose}"] = derived.hex()
    found["installation"] = database.query(lambda rows: vault.derive(rows, "", "request-state")).hex()
    return found


def _texts(rows: Any, vault: Vault, org: str, place: Any) -> dict[str, str]:
    return {
        f"{org} {place.column} {identifier}": vault.unseal_text(rows, org, place.purpose, identifier, sealed)
        for identifier, sealed in rows.execute(
            f"SELECT id, {place.column} FROM {place.table} WHERE org = ? AND {place.column} IS NOT NULL", (org,)
        ).fetchall()
    }


def rotate(installation: Installation, what: str, database: Database | None = None) -> None:
    """As the command does it: what was begun is finished, otherwise the next one is begun."""
    database = database or operators(installation)
    if what != "root":
        rotate_org(database, installation.vault, what, by="test")
        return
    begun, current = unfinished_root(database), database.snapshot(installation.vault.status).roots[-1]
    place = root_key_spec(f"{current.provider}:{current.location}", installation.settings.home)
    rotate_root(database, installation.vault, place if begun else place.successor(current.generation + 1), by="test")


def main() -> None:
    """See the text of this file."""
    verb, home, *rest = sys.argv[1:]
    installation = open_installation(replace(read_settings(), home=Path(home)))
    if verb == "rotate":
        settings = installation.settings
        here = settings.database_url is None
        doomed = Doomed(settings.database, rest[1]) if here else DoomedThere(settings.owner_url, rest[1])
        rotate(installation, rest[0], doomed)
        print(doomed.done)
        return
    first = everything(installation)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            installation.vault.forget()
            again = everything(installation)
            lost = {name for name, value in first.items() if again.get(name) != value}
            print(f"changed: {lost}" if lost else "ok", flush=True)
        except Exception as error:
            print(f"failed: {type(error).__name__} {error}", flush=True)


if __name__ == "__main__":
    main()
