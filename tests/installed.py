"""An installation in a temporary folder, made by the same functions that the command line calls."""

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from server.app import Installation, open_installation
from server.clock import now_ms
from server.connections import Connection, plan, store
from server.database import Database, open_database
from server.identity import Actor, Caller, Member, create_agent, create_member, create_org
from server.rules import add
from server.settings import Settings
from server.sqlite import migrate
from tests import postgres
from vault import Secret, Vault, root_key_spec

PATIENCE_S = 30.0
SECRET = "rk_test_canary_8Jq2vXw0Zr5TnYb7LdKe"


@dataclass
class Place:
    """One org, its owner, and ways to add to it."""

    installation: Installation
    org: str
    owner: Member
    tokens: dict[str, str] = field(default_factory=dict)

    @cached_property
    def database(self) -> Database:
        """Everything that is kept, as the operator sees it; production serves with `installation.database`."""
        return operators(self.installation)

    @property
    def home(self) -> Path:
        return self.installation.settings.home

    def agent(self, name: str = "reconciler", *, standalone: bool = False) -> str:
        """Create an agent and return its token."""
        self.tokens[name] = self.database.write_now(
            lambda rows: create_agent(
                rows, self.org, name=name, member=None if standalone else self.owner, by=self.owner.name
            )
        )
        return self.tokens[name]

    def caller(self, name: str = "reconciler") -> Caller:
        agent = self.installation.directory.agent(self.org, name)
        caller = self.installation.directory.by_agent(self.org, agent.id)
        assert caller is not None
        return caller

    def member(self, name: str, roles: Sequence[str] = ("member",), os_user: str | None = None) -> Member:
        self.database.write_now(
            lambda rows: create_member(rows, self.org, name=name, roles=roles, os_user=os_user, by="test")
        )
        return self.installation.directory.member(self.org, name)

    def connect(
        self, base_url: str | None, *, connector: str = "stripe", name: str | None = None, secret: str | Secret = SECRET
    ) -> Connection:
        """A secret as it is, or what `vault.to_reference` makes; for a kind that is entered, not had by OAuth."""
        kinds = self.installation.catalogue.connectors[connector].credentials
        planned = plan(
            self.installation.catalogue,
            [],
            connector=connector,
            name=name,
            kind=next(kind.id for kind in kinds if kind.oauth is None),
            base_url=base_url,
            private=("127.0.0.1/32",) if base_url is not None else (),
        )
        return self.database.write_now(
            lambda rows: store(
                rows,
                self.installation.vault,
                self.org,
                planned,
                fields=secret
                if isinstance(secret, Secret)
                else {field.name: secret if field.secret else "user" for field in planned.kind.fields},
                account="acct_test",
                verified=False,
                by=self.owner.name,
            )
        )

    def rule(self, **body: Any) -> str:
        return self.database.write_now(lambda rows: add(rows, self.org, body, by="test")).id

    def refuse_entries(self, event: str | None = None) -> None:
        """From now on no entry can be written, of this event or of any, as when the disk is full."""
        which = "" if event is None else f"WHEN (NEW.event = '{event}')"
        if self.installation.settings.database_url is None:
            does = f"{which} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        else:
            does = f'FOR EACH ROW {which} EXECUTE FUNCTION "full"()'
            raises = "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$"
            self.database.write_now(lambda rows: rows.execute(f'CREATE FUNCTION "full"() {raises}'))
        self.database.write_now(lambda rows: rows.execute(f'CREATE TRIGGER "full" BEFORE INSERT ON audit_entry {does}'))

    def unlock_the_log(self) -> None:
        """What only whoever owns the database can do: from now on its entries can be changed and deleted."""
        if self.installation.settings.database_url is None:
            for trigger in ("audit_entry_no_update", "audit_entry_no_delete"):
                self.database.write_now(lambda rows, name=trigger: rows.execute(f"DROP TRIGGER {name}"))
        else:
            self.database.write_now(lambda rows: rows.execute("DROP TRIGGER audit_entry_stays ON audit_entry"))

    @contextlib.contextmanager
    def in_the_way(self, change: Callable[[Any], object]) -> Iterator[None]:
        """Another process has the org's lock inside of the block, makes a change, and commits at its end."""
        holds, go = threading.Event(), threading.Event()

        def held(rows: Any) -> None:
            rows.execute("SELECT 1 FROM org WHERE id = ?", (self.org,)).fetchall()
            holds.set()
            assert go.wait(PATIENCE_S)
            change(rows)

        with contextlib.closing(open_database(self.installation.settings, as_operator=True)) as other:
            thread = threading.Thread(target=lambda: other.of(self.org).write_now(held))
            thread.start()
            try:
                assert holds.wait(PATIENCE_S)
                yield
            finally:
                go.set()
                thread.join()

    def actor(self, member: Member | None = None) -> Actor:
        """The member as they are now, known by their system user."""
        return Actor(self.installation.directory.member(self.org, (member or self.owner).id), "os user")

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Bodies of this org's entries, oldest first, of the named events (all where none is named)."""
        from server.audit import select

        found = [dict(entry.body) for entry in select(self.database.of(self.org), self.org)]
        return [body for body in found if not names or body["event"] in names]


def make(home: Path, *, hold_seconds: float = 0.0, org: str = "acme", preset: str = "default") -> Place:
    """Create an installation with one org and its owner, and open it; on PostgreSQL where the test is run on that."""
    settings = Settings(home=home, hold_seconds=hold_seconds)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.database.parent.mkdir(mode=0o700)
    if postgres.wanted():
        owner, app = postgres.database_of(home)
        settings = replace(settings, database_url=app, database_owner=owner)
    else:
        settings.database.touch(mode=0o600)
        settings.database.write_bytes(_empty_database())
    database = open_database(settings, as_operator=True)
    vault = Vault(root_key_spec("file", home).create())
    database.write_now(vault.install)
    database.close()
    installation = open_installation(settings)
    return add_org(installation, org, preset)


def operators(installation: Installation) -> Database:
    """The database of an installation, for whoever may see all of it."""
    if installation.settings.database_url is None:
        return installation.database
    return open_database(installation.settings, as_operator=True)


@lru_cache
def _empty_database() -> bytes:
    """A database as the migrations leave it; running them for every test would take most of the tests' time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        migrate(path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()


def add_org(installation: Installation, name: str, preset: str = "default") -> Place:
    def create(rows: Any) -> str:
        org = create_org(rows, name=name, preset=preset, by="test")
        installation.vault.create_org_key(rows, org)
        create_member(rows, org, name="alice", roles=("owner",), os_user="alice", by="test")
        return org

    org = operators(installation).write_now(create)
    return Place(installation, org, installation.directory.member(org, "alice"))


def files_holding(folder: Path, needle: bytes) -> list[Path]:
    """Every file below `folder` that holds these bytes."""
    found = []
    for root, _, names in os.walk(folder):
        found += [Path(root) / name for name in names if needle in (Path(root) / name).read_bytes()]
    return found


__all__ = ["SECRET", "Place", "add_org", "files_holding", "make", "now_ms"]
