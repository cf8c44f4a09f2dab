"""What a check looks at, and what it finds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.app import Installation
    from server.connections import Connection
    from server.settings import Settings


@dataclass(frozen=True)
class Finding:
    """What one check found: `status` is ok, warn or fail; `message` says what to do where it is not ok."""

    check: str
    status: str
    message: str


@dataclass(frozen=True)
class Patient:
    """What is examined. `installation` is None where it cannot be opened."""

    settings: "Settings"
    installation: "Installation | None"


def connections_in(patient: Patient) -> Iterator[tuple[str, "Connection"]]:
    """Every connection there is, with the name of its org."""
    from server.connections import connections_of

    if patient.installation is not None:
        for org in patient.installation.directory.orgs():
            for connection in connections_of(patient.installation.database, org.id):
                yield org.name, connection
