"""An org's log at the command line: whose it is, who may read it, and that reading it is on record."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from server.cli.acting import opened, operators_name, require_operator, seated

if TYPE_CHECKING:
    from server.app import Installation
    from server.audit import Event
    from server.database import Database


@dataclass(frozen=True)
class Log:
    """An org's log (`org` is its id), and who reads it."""

    installation: "Installation"
    database: "Database"
    org: str
    by: str
    known_by: str
    removed: bool = False

    def record(self, event: "Event", **fields: Any) -> None:
        """Reading is on record before anything is read."""
        from server.audit import append

        self.database.write_now(
            lambda rows: append(rows, self.org, event, by=self.by, known_by=self.known_by, **fields)
        )


@contextmanager
def log_of(org: str | None, as_member: str | None) -> Generator[Log]:
    """The log of an org for whoever may read it; of a removed one, which has no members, for the operator."""
    with opened() as installation:
        removed = None if org is None else installation.directory.removed_org(org)
        if removed is None:
            desk = seated(installation, org, as_member, "read the audit log")
            yield Log(installation, desk.database, desk.org.id, desk.by, desk.actor.known_by)
            return
        if as_member is not None:
            raise typer.BadParameter(f"{removed.name} was removed and has no members: leave out --as.")
        require_operator(installation, "reading the log of an org that was removed")
        scoped = installation.database.of(removed.id)
        yield Log(installation, scoped, removed.id, operators_name(), "operator", removed=True)
