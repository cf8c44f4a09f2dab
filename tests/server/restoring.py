"""A backup of an installation that goes on, and command lines that restore it: here, or on a new machine."""

import contextlib
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from server.app import open_installation
from server.audit import Event, append
from server.clock import now_ms
from server.identity import new_id
from server.settings import Settings
from tests.commandline import CommandLine, Ran
from tests.installed import Place

PASSPHRASE = "correct horse battery"


def happen(place: Place, times: int = 1) -> None:
    for _ in range(times):
        place.database.write_now(lambda rows: append(rows, place.org, Event.AUDIT_LISTED, by="x"))


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(path: Path) -> list[str]:
    """Everything that a database says, whatever its pages look like."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


@dataclass
class Backup:
    """A backup of `place`, and command lines on the machine that it was made on and on a new one."""

    place: Place
    file: Path
    line: CommandLine
    folder: Path
    homes: list[Path] = field(default_factory=list)

    @property
    def live(self) -> Path:
        return self.place.home / "data" / "keyleash.db"

    def here(self, *more: str, stdin: bytes | None = None) -> Ran:
        """Restore over the installation that is there."""
        self.place.installation.close()
        return self.line("vault", "restore", str(self.file), "--yes", *more, stdin=stdin)

    def elsewhere(self, name: str = "new") -> CommandLine:
        """A machine that has nothing yet, and this person."""
        self.homes.append(self.folder / name)
        return CommandLine(self.folder / name, self.line.person)

    def now(self) -> Place:
        """The place as it is now, opened again."""
        return reopened(self.place)


def reopened(place: Place, home: Path | None = None) -> Place:
    installation = open_installation(Settings(home=home or place.home, hold_seconds=0))
    return Place(installation, place.org, place.owner, place.tokens)


def dumped(content: bytes, folder: Path) -> list[str]:
    (folder / "dumped.db").write_bytes(content)
    return rows_of(folder / "dumped.db")


def dump_of(files: dict[str, bytes], folder: Path) -> list[str]:
    """The database that was among these files, with its journal."""
    for name in ("keyleash.db", "keyleash.db-wal"):
        if f"data/{name}" in files:
            (folder / f"was-{name}").write_bytes(files[f"data/{name}"])
    return rows_of(folder / "was-keyleash.db")


def approval(place: Place, state: str, identifier: str | None = None) -> str:
    identifier = identifier or new_id("apr")
    now = now_ms()
    values = {
        "org": place.org,
        "id": identifier,
        "state": state,
        "agent": "agt_x",
        "agent_name": "reconciler",
        "connection": "con_x",
        "credential_version": 1,
        "tool": "stripe_create_refund",
        "definition": "d",
        "effect": "spend",
        "call_hash": identifier,
        "sealed_call": b"x",
        "sealed_prompt": b"x",
        "ruling": "confirm",
        "needed": 1,
        "approvers": "[]",
        "second_person": 0,
        "rules": "[]",
        "decisions": "[]",
        "whole": 1,
        "created_at": now,
        "expires_at": now + 3_600_000,
        "changed_at": now,
    }
    columns, marks = ", ".join(values), ", ".join("?" * len(values))
    place.database.write_now(
        lambda rows: rows.execute(f"INSERT INTO approval ({columns}) VALUES ({marks})", tuple(values.values()))
    )
    return identifier


def grant(place: Place, *, revoked: bool = False) -> str:
    now, identifier = now_ms(), new_id("grt")
    values = (
        *(place.org, identifier, "agt_x", "reconciler", "con_x", 1, "stripe_create_refund", "d", "confirm", "b", b"x"),
        *(20, 20, "apr_x", "alice", "client", now, now + 3_600_000, now if revoked else None),
    )
    place.database.write_now(
        lambda rows: rows.execute(f"INSERT INTO call_grant VALUES ({', '.join('?' * len(values))})", values)
    )
    return identifier


def states(place: Place) -> dict[str, str]:
    found = {str(key): str(value) for key, value in place.database.read("SELECT id, state FROM approval")}
    revoked = place.database.read("SELECT id, revoked_at IS NOT NULL FROM call_grant")
    return found | {str(key): "revoked" if value else "running" for key, value in revoked}
