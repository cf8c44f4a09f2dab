"""Whether what is kept is whole, for its own user alone, and opens: files, database, logs, keys."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.checks.finding import Finding, Patient

if TYPE_CHECKING:
    from server.erasure import Pending


def schema(patient: Patient) -> Iterator[Finding]:
    if patient.installation is not None:
        from server.database import SCHEMA

        yield Finding("schema", "ok", f"The database is at schema {SCHEMA}, which is this release's.")


def files(patient: Patient) -> Iterator[Finding]:
    """Everything that Keyleash keeps is for its own user alone."""
    home = patient.settings.home
    if not home.is_dir():
        yield Finding("files", "fail", f"There is no folder {home}. Run `keyleash init`, or set KEYLEASH_HOME.")
        return
    if sys.platform == "win32":
        return
    open_home = bool(home.stat().st_mode & 0o077)
    clean = True
    for path in _kept(home):
        status = path.lstat()
        if status.st_uid != os.geteuid():
            clean = False
            yield Finding("files", "fail", f"{path} belongs to another user. Run Keyleash as its owner.")
        elif status.st_mode & 0o077:
            clean = False
            mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
            # In a closed folder a wider mode opens nothing by itself; keys must be tight all the same.
            grave = open_home or "keys" in path.parts[-2:]
            mend = f"{path} can be read or written by others: chmod {mode} {path}"
            yield Finding("files", "fail" if grave else "warn", mend)
    if clean:
        yield Finding("files", "ok", f"{home} is for this user alone.")


def _kept(home: Path) -> Iterator[Path]:
    """The folders that hold secrets or the record, and the files right in them."""
    yield home
    noted = home / "checkpoints"
    for folder in (home / "data", home / "keys", home / "backups", noted, *sorted(noted.glob("*/"))):
        if folder.is_dir():
            yield folder
            yield from (path for path in sorted(folder.iterdir()) if path.is_file())


def ends_of_logs(patient: Patient) -> Iterator[Finding]:
    """No older database was put back, and no restore was cut off."""
    from server.audit import AuditError
    from server.audit.noted import NotedHeads
    from server.duty import RolledBack, require_current

    if patient.installation is None:
        return
    database = patient.installation.database
    try:
        require_current(database, patient.settings)
        doubts = NotedHeads(patient.settings.noted_heads).doubts(database)
    except (AuditError, RolledBack) as problem:
        doubts = [str(problem)]
    for doubt in doubts:
        yield Finding("ends of logs", "fail", doubt)
    if not doubts:
        yield Finding("ends of logs", "ok", "Every log goes as far as was signed or noted outside the database.")


def root_key(patient: Patient) -> Iterator[Finding]:
    """Whether the root key opens the vault now, which a key service may not let it."""
    from vault import VaultError

    if patient.installation is None:
        return
    database, vault = patient.installation.database, patient.installation.vault
    status = database.snapshot(vault.status)
    if vault.sealed is not None:
        yield Finding("root key", "fail", f"The vault is sealed: {vault.sealed}")
        return
    try:
        database.query(vault.check_root)
    except VaultError as problem:
        yield Finding("root key", "fail", f"Nothing can be opened just now. {problem}")
    else:
        yield Finding("root key", "ok", f"The root key ({status.provider}, {status.location}) opens the vault.")


def rotations(patient: Patient) -> Iterator[Finding]:
    """No rotation was begun and left: until it is finished, the key before is still needed."""
    from server.rotation import unfinished_root

    installation = patient.installation
    if installation is None:
        return
    database, vault = installation.database, installation.vault
    status = database.snapshot(vault.status)
    names = {org.id: org.name for org in installation.directory.orgs()}
    keys = {org: found.get(org, ()) for org in names for found in (database.of(org).snapshot(vault.status).orgs,)}
    if status.roots and unfinished_root(installation.database) is not None:
        begun = "A rotation of the root key was begun and not finished: keyleash vault rotate-root"
        yield Finding("rotations", "warn", begun)
    for org in (names.get(org, org) for org, versions in keys.items() if len(versions) > 1):
        begun = f"A rotation of the key of {org} was begun and not finished: keyleash vault rotate-org {org}"
        yield Finding("rotations", "warn", begun)


def keychain(patient: Patient) -> Iterator[Finding]:
    """Whether there is an OS keychain that could hold the root key."""
    from vault import RootKeyProblem, root_key_spec

    provider = ""
    if patient.installation is not None:
        provider = patient.installation.database.snapshot(patient.installation.vault.status).provider
    elsewhere = f"the root key is in {provider}" if provider else "use `keyleash init --root file`"
    try:
        root_key_spec("keychain", patient.settings.home).load()
    except RootKeyProblem as problem:
        if provider == "keychain":
            yield Finding("keychain", "fail", str(problem))
        elif "has no root key named" in str(problem):
            yield Finding("keychain", "ok", f"There is an OS keychain; {elsewhere}.")
        else:
            yield Finding("keychain", "ok", f"There is no OS keychain here: {elsewhere}.")
    else:
        yield Finding("keychain", "ok", "The OS keychain answers.")


def erasures(patient: Patient) -> Iterator[Finding]:
    """What was removed has left the files."""
    from server.clock import iso
    from server.erasure import pending

    if patient.installation is None:
        return
    directory = patient.installation.directory
    names = {org.id: org.name for org in (*directory.orgs(), *directory.removed_orgs())}
    waiting = pending(patient.installation.database)
    for one in waiting:
        yield Finding(
            "erasures",
            "warn",
            f"{names.get(one.org, one.org)}: {_erased(one)} was removed at {iso(one.requested_at)}, and its "
            "sealed bytes are still in the database's files: a process that reads an older state holds them there. "
            "Every removal, every running server and `keyleash vault status` try again. If it stays, end whatever "
            f"else has {patient.installation.database.name} open.",
        )
    if waiting:
        return
    if patient.installation.database.files:
        yield Finding("erasures", "ok", "Nothing that was removed is left in the database's files.")
    else:
        excluded = "PostgreSQL's own log, replicas and backups are not looked into"
        yield Finding("erasures", "ok", f"Nothing that was removed waits to be deleted; {excluded}.")


def _erased(one: "Pending") -> str:
    earlier = {"secret": "the earlier secret of", "address": "the earlier address and secret of the channel"}
    return f"{earlier.get(one.what, f'the {one.what}')} {one.name}"
