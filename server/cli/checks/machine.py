"""Whether this machine is as it should be: memory, packages, the clients that start us."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.checks.finding import Finding, Patient
from server.cli.output import counted

if TYPE_CHECKING:
    from server.cli.clients import Installed


PACKAGES = ("server", "connectors", "vault")


def memory(_patient: Patient) -> Iterator[Finding]:
    """Whether a crash, or another process of the same user, could show what this process holds."""
    from server.hygiene import memory_is_private

    missing = [what for what, held in memory_is_private().items() if not held]
    if missing:
        yield Finding(
            "memory", "warn", f"This platform does not give: {', '.join(missing)}. Run it under its own user."
        )
    else:
        yield Finding("memory", "ok", "Core dumps are off, and no other process of this user can read the memory.")


def packages(patient: Patient) -> Iterator[Finding]:
    """No other distribution brings a package of one of our names: whichever came last would win."""
    from server.cli.owners import owners_of

    owners = owners_of(PACKAGES)
    clean = True
    for name in PACKAGES:
        others = sorted({owner for owner in owners.get(name, []) if owner.lower() != "keyleash"})
        if others:
            clean = False
            yield Finding(
                "packages",
                "fail",
                f"{', '.join(others)} also installs a package called {name!r}. Install Keyleash by itself, for "
                "instance with `uv tool install` or `pipx install`.",
            )
    if clean:
        yield Finding("packages", "ok", "No other distribution owns server, connectors or vault.")


def clients(patient: Patient) -> Iterator[Finding]:
    """MCP clients whose entry starts a command that is not there, or another installation's."""
    from server.cli.clients import CLIENTS, ClientError, installed

    known = 0
    for client in CLIENTS.values():
        try:
            path = client.config_path(Path.home(), sys.platform, None, environ=os.environ)
            entries = installed(client, path)
        except ClientError as problem:
            yield Finding("clients", "warn", str(problem))
            continue
        for entry in entries:
            known += 1
            command = Path(entry.command)
            if not (command.is_file() and os.access(command, os.X_OK)):
                yield Finding(
                    "clients",
                    "fail",
                    f"{client.title} ({path}) starts {command}, which is not there. "
                    f"Run: keyleash client add {client.id} --agent {entry.agent}",
                )
            elif _lacks_database(patient, entry):
                yield Finding(
                    "clients",
                    "warn",
                    f"{client.title} ({path}) starts Keyleash without KEYLEASH_DATABASE, so it does not find what is "
                    f"in PostgreSQL. Run: keyleash client add {client.id} --agent {entry.agent}",
                )
            elif _agent_is_missing(patient, entry.agent, entry.home, entry.org):
                yield Finding(
                    "clients",
                    "warn",
                    f"{client.title} ({path}) serves the agent {entry.agent}, which there is not. "
                    f"Run: keyleash client add {client.id} --agent {entry.agent}",
                )
    yield Finding("clients", "ok", f"MCP clients' settings hold Keyleash {counted(known, 'time')}.")


def _lacks_database(patient: Patient, entry: "Installed") -> bool:
    here = entry.home is None or Path(entry.home) == patient.settings.home
    return patient.settings.database_url is not None and here and not entry.settings.get("KEYLEASH_DATABASE")


def _agent_is_missing(patient: Patient, agent: str, home: str | None, org: str | None) -> bool:
    if patient.installation is None or home is None or Path(home) != patient.settings.home:
        return False
    directory = patient.installation.directory
    return not any(
        one.name == agent
        for each in directory.orgs()
        if org in (None, each.name, each.id)
        for one in directory.agents(each.id)
    )
