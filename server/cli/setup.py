"""`keyleash init` and `upgrade`: an installation is made whole or not at all, and changed only after a copy is kept."""

import contextlib
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.acting import AsJson
from server.cli.output import say, show_json, show_text, warn

if TYPE_CHECKING:
    from server.database import Database, Rows
    from server.settings import Settings
    from vault import FirstOrgKey, RootKeyRef, Vault


def init(
    org: Annotated[str | None, typer.Option("--org", metavar="NAME", help="The first org's name.")] = None,
    root: Annotated[
        str,
        typer.Option(
            "--root",
            metavar="PLACE",
            help="Where the root key lives: keychain, file, file:PATH, aws-kms:ARN or transit:URL#KEY.",
        ),
    ] = "keychain",
    preset: Annotated[
        str, typer.Option("--preset", help="What is asked where no rule matches: solo, default or strict.")
    ] = "default",
    json: AsJson = False,
) -> None:
    """Make an installation: its folder, database and root key, a first org, and you as its owner."""
    from server.identity import system_user
    from server.policy import load_preset
    from server.settings import read_settings
    from vault import root_key_spec

    settings = read_settings()
    load_preset(preset)
    reference = root_key_spec(root, settings.home)
    name = org if org is not None else _ask_org(system_user())
    create_installation(settings, reference, org=name, preset=preset)
    made = {"home": str(settings.home), "org": name, "preset": preset, "root_key": reference.describe()}
    if json:
        show_json(made)
        return
    show_text(f"Keyleash is set up for {name} in {settings.home}.")
    where = reference.describe()
    say(
        f"The root key is in: {where['provider']}, {where['location']}. Without it nothing opens: {_safekeeping(where)}"
    )
    say("Next: keyleash connect stripe  (or: keyleash connector list), then: keyleash client add claude-code")


def _safekeeping(where: dict[str, str]) -> str:
    if where["provider"] in ("file", "keychain"):
        return "`keyleash vault export-recovery FILE` makes a copy of it under a passphrase; keep that apart."
    return "see to it that nobody deletes it at its service."


def create_installation(settings: "Settings", reference: "RootKeyRef", *, org: str, preset: str) -> None:
    """Make everything that an installation is. What fails leaves behind nothing that was not there before.

    Raises one of the PROBLEMS.
    """
    from server.audit import Event, append
    from server.database import DatabaseProblem, open_database
    from server.sqlite import migrate
    from vault import Vault

    with contextlib.ExitStack() as undo:
        try:
            _make_home(settings, undo)
            if settings.database_url is None:
                _make_file(settings, undo)
                migrate(settings.database)
            else:
                _make_tables(settings, undo)
        except OSError as error:
            raise DatabaseProblem(
                f"{settings.home} cannot be set up: {error.strerror or error}. Set KEYLEASH_HOME to a folder of yours."
            ) from None

        def change(rows: "Rows") -> None:
            _forget_new_folders(reference, undo)
            root = reference.create()
            undo.callback(_forget_root_key, reference)
            vault = Vault(root)
            vault.install(rows)
            made = found_org(rows, vault, name=org, preset=preset)
            append(rows, made, Event.INSTALLATION_CREATED, root=reference.describe()["provider"])

        database = open_database(settings, as_operator=True)
        undo.callback(database.close)
        database.write_now(change)
        database.close()
        undo.pop_all()


def found_org(
    rows: "Rows",
    vault: "Vault",
    *,
    name: str,
    preset: str,
    org: str | None = None,
    key: "FirstOrgKey | None" = None,
) -> str:
    """A new org with its key, and the person at this terminal as its owner; returns its id.

    Where a service may have to be asked for the key, it is made before the transaction, for the id that is given.
    """
    from server.identity import create_member, create_org, system_user
    from server.policy import load_preset

    load_preset(preset)
    user = system_user()
    owner = member_name(user)
    org = create_org(rows, name=name, preset=preset, by=owner, org=org)
    vault.create_org_key(rows, org, made=key)
    create_member(rows, org, name=owner, roles=["owner"], os_user=user, by=owner)
    return org


def member_name(system_user: str) -> str:
    r"""A system user's name as a member's.

    >>> member_name("CORP\\Ada Lovelace")
    'corp-ada-lovelace'
    """
    name = re.sub(r"[^a-z0-9_.-]+", "-", system_user.lower()).lstrip("-_.")[:63].rstrip("-")
    return name or "owner"


def upgrade(json: AsJson = False) -> None:
    """Bring the database to this release's schema. A copy of it is kept first."""
    from server.settings import read_settings
    from server.sqlite import migrate

    settings = read_settings()
    if settings.database_url is None:
        before, after, copy = upgrade_database(settings, migrate)
    else:
        before, after, copy = *upgrade_tables(settings), None
    if json:
        show_json({"from": before, "to": after, "backup": None if copy is None else str(copy)})
    elif before == after:
        show_text(f"Nothing to do: the database is at schema {after}, which is this release's.")
    else:
        kept = "" if copy is None else f" The one before is kept at {copy}."
        show_text(f"Upgraded the database from schema {before} to {after}.{kept}")


def upgrade_tables(settings: "Settings") -> tuple[str, str]:
    """Migrate a PostgreSQL database as its owner, all or nothing, and put its policies and privileges right.

    Returns its schema before and after. A copy is the operator's to make (`pg_dump`): docs/operating.md says how.
    """
    from server.database import SCHEMA, open_database, require_schema, schema_of
    from server.postgres import migrate

    with contextlib.closing(open_database(settings, as_operator=True)) as database:
        found = schema_of(database)
        if found is None or found > SCHEMA:
            require_schema(database)
        migrate(settings.owner_url, settings.serving_role)
        require_schema(database)
        if found is not None and found < SCHEMA:
            _record_upgrade(database, found)
        return found or SCHEMA, SCHEMA


def _record_upgrade(database: "Database", found: str) -> None:
    from server.audit import Event, append
    from server.database import SCHEMA

    for (org,) in database.read("SELECT id FROM org ORDER BY id"):
        database.of(org).write_now(
            lambda rows, org=org: append(
                rows, org, Event.INSTALLATION_UPGRADED, schema_before=found, schema_after=SCHEMA
            )
        )


def upgrade_database(settings: "Settings", migrate: "Callable[[Path], None]") -> tuple[str, str, Path | None]:
    """Migrate an older database after a backup; returns its schema before and after, and where the copy is.

    Raises DatabaseProblem, which names the backup where there is one.
    """
    from server.database import SCHEMA, DatabaseProblem, require_schema, schema_of
    from server.sqlite import SqliteDatabase, backup

    database = SqliteDatabase(settings.database)
    try:
        found = schema_of(database)
        if found is None or found >= SCHEMA:
            require_schema(database)
            return SCHEMA, SCHEMA, None
        copy = settings.backups / f"keyleash-{found}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.db"
        try:
            backup(settings.database, copy)
        except OSError as error:
            raise DatabaseProblem(
                f"No copy could be kept at {copy}: {error.strerror}. Nothing was changed. Make room, then try again."
            ) from None
        database.close()
        try:
            migrate(settings.database)
            require_schema(database)
        except Exception as error:  # alembic and SQLAlchemy raise what they like
            raise DatabaseProblem(
                f"The upgrade failed ({type(error).__name__}: {' '.join(str(error).split())[:200]}). "
                f"The database as it was is at {copy}: to go back, copy it over {settings.database}."
            ) from None
        _record_upgrade(database, found)
        return found, SCHEMA, copy
    finally:
        database.close()


def _make_home(settings: "Settings", undo: contextlib.ExitStack) -> None:
    """The folders, for this user alone. Raises DatabaseProblem where there is an installation."""
    from server.audit.noted import NotedHeads
    from server.database import DatabaseProblem

    if settings.database.exists():
        raise DatabaseProblem(
            f"There is an installation in {settings.home} already; nothing was changed. `keyleash org create NAME` "
            "makes another org in it; another KEYLEASH_HOME makes another installation."
        )
    told = NotedHeads(settings.noted_heads).told
    if told is not None:
        raise DatabaseProblem(
            f"{told} tells of an installation in {settings.home} whose database is gone, and no server "
            "would start on a new one. `keyleash vault restore FILE` brings it back from a backup; if it is to be "
            "forgotten, remove that file first, and any other like it."
        )
    _make_folder(settings.home, undo)
    _make_folder(settings.database.parent, undo)


def _make_tables(settings: "Settings", undo: contextlib.ExitStack) -> None:
    """Every table in an empty PostgreSQL database. Raises DatabaseProblem where it is not empty."""
    from server.postgres import make, wipe

    make(settings.owner_url, settings.serving_role)
    undo.callback(wipe, settings.owner_url)


def _make_file(settings: "Settings", undo: contextlib.ExitStack) -> None:
    """An empty database file, for this user alone."""
    from server.database import DatabaseProblem

    try:
        os.close(os.open(settings.database, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        raise DatabaseProblem(f"Another `keyleash init` is at work in {settings.home}. Let it end.") from None
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = settings.database.with_name(settings.database.name + suffix)
        undo.callback(file.unlink, missing_ok=True)


def _make_folder(folder: Path, undo: contextlib.ExitStack) -> None:
    """A folder of mode 0700: made, or tightened where it was empty and ours."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700)
        undo.callback(_remove_empty, place)
    if missing:
        return
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077 and sys.platform != "win32":
        if any(folder.iterdir()):
            warn(f"{folder} can be read by others (mode {mode:04o}). If nobody else needs it: chmod 700 {folder}")
            return
        folder.chmod(0o700)
        undo.callback(folder.chmod, mode)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _forget_new_folders(reference: "RootKeyRef", undo: contextlib.ExitStack) -> None:
    """Take back the folders that are about to be made for the root key."""
    where = reference.describe()
    if where["provider"] == "file":
        folder = Path(where["location"]).parent
        for place in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
            undo.callback(_remove_empty, place)


def _forget_root_key(reference: "RootKeyRef") -> None:
    """Take back a root key that this run created, and that nothing stays wrapped with."""
    from vault import RootKeyProblem

    with contextlib.suppress(RootKeyProblem):  # a place that does not forget keeps a key that opens nothing
        reference.destroy()


def _ask_org(user: str) -> str:
    from server.cli.terminal import ask_line

    proposed = member_name(user)
    if not sys.stdin.isatty():
        return proposed
    return (
        ask_line(f"What is your organisation called? [{proposed}] ", otherwise="Add `--org NAME`.").strip() or proposed
    )
