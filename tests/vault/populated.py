"""A database with something of all that is ever sealed, caught in the middle of two rotations, and every place in it.

Of its orgs, `org_a` has been rotated to version 2 of its key, `org_b` is on its way there, `org_c` never was, and
`org_twin` was given the very key of `org_c`: only what the seals bind keeps these two apart. The root key is on its way
to generation 2. Whatever can be read holds a text of its own, so that no place can be taken for another.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from server.sealed import DERIVED, SEALED, DueText, due_texts, reseal
from vault import CannotOpen, LocalRootKey, RootKey, RootKeyProblem, Rows, Vault, VaultError
from vault import rotation as steps
from vault.generations import INSTALLATION_KEY
from vault.orgkeys import org_context

ROOTS = {"/keys/root.key": bytes(range(1, 33)), "/keys/root-2.key": bytes(range(101, 133))}
TWIN_KEY = bytes(range(200, 232))
ORGS = ("org_a", "org_b", "org_c", "org_twin")
CREDENTIALS = (("con_1", 1), ("con_1", 2), ("con_2", 1), ("con_3", 1))
SLOTS = {
    "con_1": {"origin": "https://api.stripe.com:443", "scheme": "bearer"},
    "con_2": {"origin": "https://slack.com:443", "scheme": "header:x-key"},
    "con_3": {"origin": "https://api.stripe.com:443", "scheme": "bearer"},
}
FIELDS = ("secret", "account")
INSTALLATION = "request-state"
VAULT_TABLES = ("vault_root", "vault_org_key", "vault_derived", "vault_credential", "vault_field")
TEXT_TABLES = tuple(dict.fromkeys(place.table for place in SEALED))


@dataclass(frozen=True)
class Place:
    """Something that can be opened: how, and what it holds."""

    name: str
    org: str
    read: Callable[[Vault, Rows], object]
    holds: object


def find(provider: str, location: str) -> RootKey:
    """The root keys of this database, by where they are kept."""
    if provider != "file" or location not in ROOTS:
        raise RootKeyProblem(f"There is no root key at {location}.")
    return LocalRootKey(ROOTS[location], provider=provider, location=location)


def root(generation: int) -> RootKey:
    """The root key of generation 1 or 2."""
    return find("file", tuple(ROOTS)[generation - 1])


def opened_vault() -> Vault:
    """The vault of a process that was started with the newest root key."""
    return Vault(root(2), find=find)


def populate(db: sqlite3.Connection) -> list[Place]:
    """Fill a database that has the vault's tables; returns every place in it that opens."""
    for table in TEXT_TABLES:
        columns = ", ".join(f"{place.column} BLOB" for place in SEALED if place.table == table)
        db.execute(f"CREATE TABLE {table} (org TEXT, id TEXT, {columns}, PRIMARY KEY (org, id))")
    before = Vault(root(1), find=find)
    before.install(db)
    for org in ORGS:
        _org_key(db, before, org)
        for connection, version in CREDENTIALS:
            fields = {field: f"{org} {connection} {version} {field}" for field in FIELDS}
            assert before.put(db, org=org, connection=connection, fields=fields, **SLOTS[connection]) == version
        for subject in ("one", "two"):
            _texts(db, before, org, subject)
    derived = {(org, purpose): before.derive(db, org, purpose) for org in ORGS for purpose in DERIVED}
    derived["", INSTALLATION] = before.derive(db, "", INSTALLATION)
    rotate_org(db, before, "org_a")
    rotate_org(db, before, "org_b", most=1)
    rotate_root(db, keys=(("org_a", 2), ("org_b", 1)))
    return places(derived)


def _org_key(db: sqlite3.Connection, vault: Vault, org: str) -> None:
    if org not in ("org_c", "org_twin"):
        return vault.create_org_key(db, org)
    wrapped = root(1).wrap(TWIN_KEY, context=org_context(org, 1))
    return db.execute("INSERT INTO vault_org_key VALUES (?, 1, ?, 0, 1)", (org, wrapped)) and None


def _texts(db: sqlite3.Connection, vault: Vault, org: str, subject: str) -> None:
    for table in TEXT_TABLES:
        sealed = {
            place.column: vault.seal_text(db, org, place.purpose, subject, f"{org} {place.purpose} {subject}")
            for place in SEALED
            if place.table == table
        }
        row = (org, subject, *sealed.values())
        db.execute(f"INSERT INTO {table} (org, id, {', '.join(sealed)}) VALUES ({', '.join('?' * len(row))})", row)


def rotate_org(db: Rows, vault: Vault, org: str, *, most: int = 1000) -> None:
    """A rotation of an org's key, step by step; stops, as if killed, where there is more than `most` of each."""
    version = vault.keyring.newest(db, org)[0] + 1
    generation, newest = vault.keyring.generations.newest(db)
    key = steps.OrgKey(org, version, steps.next_org_key(org, version, newest), generation)
    steps.begin_org(db, vault, org, wrapped=key, purposes=DERIVED)
    for credential in steps.due_credentials(db, org, version, most=most):
        steps.reseal_credential(db, vault, credential, version)
    texts: Sequence[DueText] = due_texts(db, org, version, most=most)
    for text in texts:
        reseal(db, vault, org, text)
    if not steps.due_credentials(db, org, version, most=1) and not due_texts(db, org, version, most=1):
        steps.drop_org_keys(db, org, version)


def rotate_root(db: Rows, *, keys: Sequence[tuple[str, int]]) -> None:
    """The next generation of the root key, with these orgs' keys moved under it."""
    described = root(2)
    generation = steps.begin_root(db, provider=described.provider, location=described.location)
    moved = steps.rewrapped(steps.installation_key(db)[1], INSTALLATION_KEY, before=root(1), after=root(2))
    steps.ready_root(db, generation.id, check=steps.check_for(root(2)), installation_key=moved)
    for key in steps.due_org_keys(db, generation.id, most=100):
        if (key.org, key.version) in keys:
            wrapped = steps.rewrapped(key.wrapped, key.context, before=root(1), after=root(2))
            assert steps.move_org_key(db, key, wrapped, generation.id)


def places(derived: dict[tuple[str, str], bytes]) -> list[Place]:
    """Every place that opens."""
    found = [
        Place(f"{org} {connection} {version}", org, partial(read_credential, org, connection, version), holds)
        for org in ORGS
        for connection, version in CREDENTIALS
        for holds in [{field: f"{org} {connection} {version} {field}" for field in sorted(FIELDS)}]
    ]
    found += [
        Place(name, org, partial(read_text, place, org, subject), name)
        for org in ORGS
        for place in SEALED
        for subject in ("one", "two")
        for name in [f"{org} {place.purpose} {subject}"]
    ]
    return found + [
        Place(f"{org or 'the installation'} {purpose}", org, partial(read_derived, org, purpose), key)
        for (org, purpose), key in derived.items()
    ]


def read_credential(org: str, connection: str, version: int, vault: Vault, db: Rows) -> dict[str, str]:
    """Every field of a credential."""
    with vault.open(db, org=org, connection=connection, version=version, **SLOTS[connection]) as secret:
        return {field: secret.reveal(field) for field in secret.fields}


def read_text(place: Any, org: str, subject: str, vault: Vault, db: Rows) -> str | None:
    """A sealed text; None where there is no row, or nothing in it, and so nothing to open."""
    row = db.execute(f"SELECT {place.column} FROM {place.table} WHERE org = ? AND id = ?", (org, subject)).fetchone()
    return None if row is None or row[0] is None else vault.unseal_text(db, org, place.purpose, subject, row[0])


def read_derived(org: str, purpose: str, vault: Vault, db: Rows) -> bytes:
    """A derived key."""
    return vault.derive(db, org, purpose)


def refused(vault: Vault, db: sqlite3.Connection, place: Place) -> bool:
    """Whether it is CannotOpen, in the words that it always has; False where it opens as what it is."""
    try:
        found = place.read(vault, db)
    except VaultError as error:
        assert type(error) is CannotOpen, place
        assert str(error) == str(CannotOpen()), place
        assert error.__cause__ is None, place
        return True
    assert found in (place.holds, None), place
    return found is None


@contextmanager
def undone(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("SAVEPOINT before")
    try:
        yield
    finally:
        db.execute("ROLLBACK TO before")
        db.execute("RELEASE before")
