"""Rotate keys under a database that is in use, step by step; run again after a kill, it goes on where it stopped.

Each step is a short transaction with its entry in the log of the org that it is for. Key services are asked between
transactions, never inside one. What was wrapped by a key before is put on the list of `server.erasure`, which the
commands and the server see to.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from server.audit import Event, append
from server.database import Database, Rows
from server.erasure import request
from server.sealed import DERIVED, due_texts, reseal
from vault import CannotOpen, RootKey, RootKeyProblem, RootKeyRef, Vault, VaultError
from vault import rotation as steps
from vault.generations import INSTALLATION_KEY, blob, fits

BATCH = 50
"""Rows in a transaction: few enough that a call never waits long for the database."""

Progress = Callable[[int], None]


class RotationProblem(Exception):
    """A rotation cannot go on; what is done stays done, and the message says how to mend the rest."""


class RootRotated(NamedTuple):
    """What a rotation of the root key came to: the generation, and how many org keys this run moved under it."""

    generation: int
    provider: str
    location: str
    moved: int
    resumed: bool


class RootDropped(NamedTuple):
    """A generation that was forgotten: where its key was kept, and what only that key opens."""

    provider: str
    location: str
    check: bytes


class Moved(NamedTuple):
    """What has been put under an org's newest key."""

    credentials: int = 0
    texts: int = 0


class OrgRotated(NamedTuple):
    """What a rotation of an org's key came to: the version, and what this run put under it."""

    version: int
    credentials: int
    texts: int
    dropped: int
    resumed: bool


def unfinished_root(database: Database) -> steps.Generation | None:
    """The generation of the root key whose rotation was begun and not finished."""
    return database.query(steps.unfinished_root)


def rotate_root(
    database: Database, vault: Vault, place: RootKeyRef, *, by: str, progress: Progress = lambda _done: None
) -> RootRotated:
    """Put every org's key under a root key that is made, or was begun, at `place`. Raises one of the PROBLEMS."""
    vault.keyring  # noqa: B018 - Sealed before anything is written
    described = place.describe()
    begun = database.query(steps.unfinished_root)
    if begun is None or (begun.provider, begun.location) != (described["provider"], described["location"]):
        _require_free(place)
    generation = database.write_now(
        lambda rows: steps.begin_root(rows, provider=described["provider"], location=described["location"])
    )
    resumed = begun is not None and begun.id == generation.id
    root = _root_of(database, vault, generation, place, resumed=resumed)
    check = database.query(lambda rows: steps.check_of(rows, generation.id))
    moved = 0
    while not database.write_now(lambda rows: _finish_root(rows, generation.id, check)):
        moved += _move(database, vault, generation, root, check, by=by)
        progress(moved)
    return RootRotated(generation.id, generation.provider, generation.location, moved, resumed)


def _require_free(place: RootKeyRef) -> None:
    """Refuse a place that keeps a key already, before the move is written down.

    So a key that is found where a move was begun is one that this move has made.
    """
    try:
        found = place.load()
    except RootKeyProblem:
        return  # where something else is in the way, `create` says what
    if not found.remote:
        raise RootKeyProblem(
            f"There is a root key in {place.provider} ({place.location}) already, and a new one is not put over it. "
            "Name another place; `keyleash vault rotate-root` finds one by itself. Nothing was changed."
        )


def _root_of(
    database: Database, vault: Vault, generation: steps.Generation, place: RootKeyRef, *, resumed: bool
) -> RootKey:
    """The root key of this generation, which is made ready where it is not. Of one that is, no other key is made."""
    if generation.ready:
        return database.query(lambda rows: vault.keyring.generations.of(rows, generation.id))
    try:
        root = _root_at(place, made_before=resumed)
        used = database.query(lambda rows: steps.generations_of(rows, root))
        if used:
            raise RootKeyProblem(
                f"The key in {place.provider} ({place.location}) is no new one: it is the root key of generation "
                f"{used[-1]}. Name another place with `keyleash vault rewrap --to PLACE`."
            )
    except VaultError:
        if not resumed:
            database.write_now(lambda rows: steps.abandon_root(rows, generation.id))
        raise
    _ready(database, vault, generation, root)
    return root


def _root_at(place: RootKeyRef, *, made_before: bool) -> RootKey:
    """The key at this place: the one that an earlier run made there, otherwise a new one."""
    if made_before:
        try:
            root = place.load()
        except RootKeyProblem:
            return place.create()  # killed before it was made
        if not root.remote:
            return root
    return place.create()  # a service's key is there already, and is proven


def _ready(database: Database, vault: Vault, generation: steps.Generation, root: RootKey) -> None:
    before, wrapped = database.query(steps.installation_key)
    current = database.query(lambda rows: vault.keyring.generations.of(rows, before))
    check = steps.check_for(root)
    moved = steps.rewrapped(wrapped, INSTALLATION_KEY, before=current, after=root)

    def change(rows: Rows) -> None:
        if steps.unfinished_root(rows) != generation:
            raise VaultError("Another rotation was begun meanwhile. Look at `keyleash vault status`, then try again.")
        steps.ready_root(rows, generation.id, check=check, installation_key=moved)

    database.write_now(change)


def _finish_root(rows: Rows, generation: int, check: bytes) -> bool:
    _require_same_database(rows, generation, check)
    return steps.finish_root(rows, generation)


def _require_same_database(rows: Rows, generation: int, check: bytes) -> None:
    """Refuse to move anything under a generation that a restore has taken away, or put another in the place of."""
    if steps.check_of(rows, generation) != check:
        raise RotationProblem(
            "The database was replaced while its root key was rotated. Look at `keyleash vault status`, then try again."
        )


def _move(
    database: Database, vault: Vault, generation: steps.Generation, root: RootKey, check: bytes, *, by: str
) -> int:
    """Move some orgs' keys; returns how many."""
    due = database.query(lambda rows: steps.due_org_keys(rows, generation.id, most=BATCH))
    moved: list[tuple[steps.OrgKey, bytes]] = []
    for key in due:
        before = database.query(lambda rows, key=key: vault.keyring.generations.of(rows, key.generation))
        try:
            moved.append((key, steps.rewrapped(key.wrapped, key.context, before=before, after=root)))
        except CannotOpen:
            raise RotationProblem(
                f"Version {key.version} of the key of {key.org} cannot be opened: its row was altered. Restore the "
                "database from its backup, or remove that org; then run this again."
            ) from None

    def change(rows: Rows) -> int:
        _require_same_database(rows, generation.id, check)
        done = [key for key, wrapped in moved if steps.move_org_key(rows, key, wrapped, generation.id)]
        for key in done:
            request(rows, key.org, f"root-{key.generation}-{key.version}", "key", f"under root {key.generation}")
            append(
                rows,
                key.org,
                Event.VAULT_ROOT_ROTATED,
                key_version=key.version,
                generation=generation.id,
                generation_before=key.generation,
                provider=generation.provider,
                by=by,
            )
        return len(done)

    return database.write_now(change)


def drop_root(database: Database, generation: int, *, by: str) -> RootDropped:
    """Forget a retired generation of the root key, with an entry in each org's log; its key stays where it is kept."""

    def change(rows: Rows) -> RootDropped:
        found = rows.execute("SELECT check_blob FROM vault_root WHERE id = ?", (generation,)).fetchone()
        place = steps.drop_root(rows, generation)
        for (org,) in rows.execute("SELECT id FROM org ORDER BY id").fetchall():
            append(rows, org, Event.VAULT_ROOT_DROPPED, generation=generation, provider=place[0], by=by)
        return RootDropped(*place, blob(found[0]))

    return database.write_now(change)


def destroy_root(database: Database, dropped: RootDropped, place: RootKeyRef, *, home: Path) -> str | None:
    """Destroy the key of a generation that was dropped, at the place where it was kept; or say why it was not.

    A file outside of `home` may be another installation's as well (a restored copy of one begins with its key).

    What is kept there may be another key by now: a restore puts a recovered one where there is room. Raises
    RootKeyProblem where it cannot be deleted.
    """
    try:
        found = place.load()
    except RootKeyProblem as problem:
        return str(problem)
    if found.remote:
        return "A key service's key is disabled there."
    if not fits(found, dropped.provider, dropped.location, dropped.check):
        return "Another root key is kept there by now, and was left alone."
    if place.provider == "file" and not Path(place.location).resolve().is_relative_to(home.resolve()):
        return "It lies outside of KEYLEASH_HOME, so another installation may need it. Delete it by hand if none does."
    others = database.query(lambda rows: steps.generations_of(rows, found))
    if others:
        return f"It is the root key of generation {others[-1]} as well, and was left alone."
    return None if place.destroy() else "There is none."


def rotate_org(
    database: Database, vault: Vault, org: str, *, by: str, progress: Progress = lambda _done: None
) -> OrgRotated:
    """Give an org a new key, and put everything of it under that. Raises one of the PROBLEMS."""
    version = database.query(lambda rows: steps.unfinished_org(rows, org))
    resumed = version is not None
    if version is None:
        version = _begin_org(database, vault, org, by=by)
    moved = Moved()
    while True:
        vault.fetch(database.query(lambda rows: vault.wanted(rows, org)))  # nothing is asked inside a transaction
        more = Moved(_reseal_credentials(database, vault, org, version), _reseal_texts(database, vault, org, version))
        moved = Moved(moved.credentials + more.credentials, moved.texts + more.texts)
        progress(moved.credentials + moved.texts)
        if more == Moved():
            dropped = database.write_now(partial(_drop, org=org, version=version, by=by, moved=moved))
            if dropped is not None:
                return OrgRotated(version, moved.credentials, moved.texts, dropped, resumed)


def _begin_org(database: Database, vault: Vault, org: str, *, by: str) -> int:
    before = database.query(lambda rows: vault.keyring.newest(rows, org))[0]
    generation, root = database.snapshot(vault.keyring.generations.newest)
    wrapped = steps.next_org_key(org, before + 1, root)
    key = steps.OrgKey(org, before + 1, wrapped, generation)
    vault.fetch([key.wanted(root)])  # so that nothing is asked inside the transaction

    def change(rows: Rows) -> int:
        steps.begin_org(rows, vault, org, wrapped=key, purposes=DERIVED)
        append(rows, org, Event.VAULT_ORG_ROTATED, step="begun", key_version=key.version, by=by)
        return key.version

    return database.write_now(change)


def _reseal_credentials(database: Database, vault: Vault, org: str, version: int) -> int:
    def change(rows: Rows) -> int:
        due = steps.due_credentials(rows, org, version, most=BATCH)
        for one in due:
            try:
                steps.reseal_credential(rows, vault, one, version)
            except CannotOpen:
                raise _unreadable(rows, org, one.connection) from None
        return len(due)

    return database.write_now(change)


def _unreadable(rows: Rows, org: str, connection: str) -> RotationProblem:
    found, offered = (
        rows.execute(f"SELECT name FROM {table} WHERE org = ? AND id = ?", (org, connection)).fetchone()
        for table in ("connection", "managed_offer")
    )
    name = (offered or found or (connection,))[0]
    again, gone = ("managed rotate", "withdraw") if offered else ("connection rotate", "remove")
    return RotationProblem(
        f"The secret of {name} cannot be opened: its rows were altered. Give it again (`keyleash {again} {name}`) or "
        f"{gone} it; then run this again. Until then the earlier key stays."
    )


def _reseal_texts(database: Database, vault: Vault, org: str, version: int) -> int:
    def change(rows: Rows) -> int:
        due = due_texts(rows, org, version, most=BATCH)
        for one in due:
            try:
                reseal(rows, vault, org, one)
            except CannotOpen:
                raise RotationProblem(
                    f"A sealed text of {one.place.table} {one.id} cannot be opened: its row was altered. Restore the "
                    "database from its backup; until then the earlier key stays."
                ) from None
        return len(due)

    return database.write_now(change)


def _drop(rows: Rows, *, org: str, version: int, by: str, moved: Moved) -> int | None:
    """Drop the earlier keys, where nothing is under them; None where something has come under one meanwhile."""
    if not rows.execute("SELECT 1 FROM vault_org_key WHERE org = ? AND version = ?", (org, version)).fetchone():
        raise RotationProblem(
            "While its key was rotated the org was removed, or rotated again, or its database replaced. Look at "
            "`keyleash vault status`."
        )
    if steps.due_credentials(rows, org, version, most=1) or due_texts(rows, org, version, most=1):
        return None
    dropped = steps.drop_org_keys(rows, org, version)
    request(rows, org, f"key-{version - 1}", "key", f"version {version - 1}")
    append(
        rows,
        org,
        Event.VAULT_ORG_ROTATED,
        step="finished",
        key_version=version,
        credentials=moved.credentials,
        texts=moved.texts,
        dropped=dropped,
        by=by,
    )
    return dropped
