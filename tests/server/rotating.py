"""Processes for the tests of rotation: one that rotates and kills itself, one that reads until it is told to stop.

`rotate HOME root|ORG STATEMENT` rotates and sends itself SIGKILL before that statement of its database: by number (0
is none), or by how it begins.
`rotate-each HOME` does the same for every line `root|ORG STATEMENT` that it is given, in a process that it forks, and
prints how that ended.
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
from server.settings import Settings, read_settings
from server.sqlite import SqliteDatabase
from tests.installed import operators
from vault import Vault, root_key_spec

PAUSE_S = 0.02


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
    settings = replace(read_settings(), home=Path(home))
    if verb == "rotate":
        print(rotated(settings, *rest))
    elif verb == "rotate-each":
        for line in sys.stdin:
            print(forked(settings, *line.split()), flush=True)
    else:
        read_until_told(open_installation(settings))


def rotated(settings: Settings, what: str, last: str) -> int:
    """How many statements it took."""
    here = settings.database_url is None
    doomed = Doomed(settings.database, last) if here else DoomedThere(settings.owner_url, last)
    rotate(open_installation(settings), what, doomed)
    return doomed.done


def forked(settings: Settings, what: str, last: str) -> int:
    """The exit code of a process that rotates: nothing is imported anew for each that is killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            rotated(settings, what, last)
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_until_told(installation: Installation) -> None:
    """Open everything, over and over; `PAUSE_S` leaves the machine to those who rotate."""
    first = everything(installation)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        try:
            installation.vault.forget()
            again = everything(installation)
            lost = {name for name, value in first.items() if again.get(name) != value}
            print(f"changed: {lost}" if lost else "ok", flush=True)
        except Exception as error:
            print(f"failed: {type(error).__name__} {error}", flush=True)


if __name__ == "__main__":
    main()
