"""An attacker who can write to the database and holds no key: whatever is moved, nothing opens as something else.

Cases are drawn by number, so that one that fails is the same one every time.
"""

import os
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.vault.populated import ORGS, TEXT_TABLES, VAULT_TABLES, Place, opened_vault, populate, root, rotate_org
from vault import CannotOpen, Vault, VaultError, WrongRootKey
from vault import rotation as steps
from vault.orgkeys import no_key

CASES = 10_000 if "KEYLEASH_PROOFS" in os.environ else 3_000
PARTS = 10
TABLES = (*VAULT_TABLES[1:] * 3, *TEXT_TABLES, "vault_root")
Row = dict[str, Any]


@pytest.fixture
def place_of(db: sqlite3.Connection) -> list[Place]:
    places = populate(db)
    db.execute("PRAGMA foreign_keys = OFF")
    return places


class Attack:
    """Changes to the rows of one database, undone at the end; it remembers what it touched."""

    def __init__(self, db: sqlite3.Connection, case: int) -> None:
        self.db = db
        self.chance = random.Random(case)
        self.tables: set[str] = set()
        self.orgs: set[str] = set()
        self.did: list[str] = []

    def __enter__(self) -> "Attack":
        self.db.execute("SAVEPOINT before")
        return self

    def __exit__(self, *_: object) -> None:
        self.db.execute("ROLLBACK TO before")
        self.db.execute("RELEASE before")

    def strike(self) -> None:
        """One to three changes, each of a kind drawn at random."""
        for _ in range(self.chance.randint(1, 3)):
            self.chance.choice(KINDS)(self, self.chance.choice(TABLES))

    def copy_values(self, table: str) -> None:
        """Any columns of one row, keys among them, into another: one, several, or all."""
        one, other = self._two(table)
        columns = self._columns(one)
        self._replace(table, [one], [{**one, **{name: other[name] for name in columns}}], columns)

    def exchange_values(self, table: str) -> None:
        """Any columns of two rows, keys among them, for each other."""
        one, other = self._two(table)
        columns = self._columns(one)
        changed = [{**one, **{n: other[n] for n in columns}}, {**other, **{n: one[n] for n in columns}}]
        self._replace(table, [one, other], changed, columns)

    def put_a_row_beside(self, table: str) -> None:
        """A row once more, under some values of another: its keys, for the most part."""
        one, other = self._two(table)
        columns = self._columns(one)
        self._replace(table, [], [{**one, **{name: other[name] for name in columns}}], columns)

    def take_a_row_away(self, table: str) -> None:
        """A row deleted."""
        self._replace(table, [self._two(table)[0]], [], [])

    def move_a_credential(self, _table: str) -> None:
        """A credential with all its fields to the place of another, as one that belongs there."""
        one, other = self._two("vault_credential")
        columns = [name for name in ("org", "connection", "version", "key_version") if self.chance.random() < 0.6]
        there = {name: other[name] for name in columns}
        fields = self._rows("vault_field", one)
        self._replace("vault_credential", [one], [{**one, **there}], columns)
        there.pop("key_version", None)
        self._replace("vault_field", fields, [{**field, **there} for field in fields], columns)

    def give_an_org_the_key_of_another(self, _table: str) -> None:
        """The wrapped key, with its generation, and once in a while with its version."""
        one, other = self._two("vault_org_key")
        columns = ["wrapped", "root", *(["version"] if self.chance.random() < 0.3 else [])]
        self._replace("vault_org_key", [one], [{**one, **{name: other[name] for name in columns}}], columns)

    def copy_a_text_into_a_column_of_another_purpose(self, _table: str) -> None:
        """Of the same row, or of another."""
        table = self.chance.choice(TEXT_TABLES)
        one, other = self._two(table)
        source, target = (self.chance.choice([name for name in one if name.startswith("sealed_")]) for _ in range(2))
        from_row = self.chance.choice([one, other])
        self._replace(table, [one], [{**one, target: from_row[source]}], [source, target])

    def _two(self, table: str) -> tuple[Row, Row]:
        cursor = self.db.execute(f"SELECT rowid AS at, * FROM {table}")
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        one, other = (self.chance.choice(rows or [dict.fromkeys(names)]) for _ in range(2))
        return one, other

    def _rows(self, table: str, of: Row) -> list[Row]:
        cursor = self.db.execute(
            f"SELECT rowid AS at, * FROM {table} WHERE org = ? AND connection = ? AND version = ?",
            (of["org"], of["connection"], of["version"]),
        )
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _columns(self, row: Row) -> list[str]:
        names = [name for name in row if name != "at"]
        return self.chance.sample(names, self.chance.choice([1, 1, 1, 2, 3, len(names)][: len(names)]))

    def _replace(self, table: str, old: list[Row], new: list[Row], columns: list[str]) -> None:
        for row in old:
            self.db.execute(f"DELETE FROM {table} WHERE rowid = ?", (row["at"],))
        for row in new:
            values = {name: value for name, value in row.items() if name != "at"}
            self.db.execute(
                f"INSERT OR REPLACE INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
                tuple(values.values()),
            )
        self.tables.add(table)
        self.orgs |= {row.get("org", "") for row in (*old, *new)}
        self.did.append(f"{table}, rows {[row['at'] for row in old]} by {[row['at'] for row in new]}: {columns}")


KINDS = (
    *(Attack.copy_values, Attack.exchange_values) * 4,
    *(Attack.put_a_row_beside, Attack.move_a_credential) * 2,
    Attack.take_a_row_away,
    Attack.give_an_org_the_key_of_another,
    Attack.copy_a_text_into_a_column_of_another_purpose,
)


def outcome(place: Place, vault: Vault, db: sqlite3.Connection, attack: Attack) -> str:
    """`whole`, or how it was refused; fails for anything else."""
    try:
        found = place.read(vault, db)
    except VaultError as error:
        assert may_refuse(error, place, attack), f"{place.name}: {error!r} after {attack.did}"
        return type(error).__name__
    assert found in (place.holds, None), f"{place.name} holds {found!r} after {attack.did}"
    return "whole" if found is not None else "no row"


def may_refuse(error: VaultError, place: Place, attack: Attack) -> bool:
    """CannotOpen, always in the same words. Two things are named: a root key that is not the one it should be, and

    an org's key that is gone where something is to be derived. Both are plain to see in the database, and no secret.
    """
    if type(error) is CannotOpen:
        return str(error) == str(CannotOpen())
    if type(error) is WrongRootKey or "has no vault yet" in str(error):
        return "vault_root" in attack.tables
    return str(error) == str(no_key(place.org)) and "vault_org_key" in attack.tables


def looked_at(places: list[Place], attack: Attack, *, all_of_them: bool) -> Iterator[Place]:
    """The places of the orgs whose rows were touched: every reading is of one org. Now and then, every place."""
    for place in places:
        if all_of_them or "vault_root" in attack.tables or place.org in attack.orgs:
            yield place


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_is_exchanged_copied_moved_or_taken_a_place_opens_as_itself_or_not_at_all(
    db: sqlite3.Connection, place_of: list[Place], part: int
):
    """With the keys in memory, and in every fourth case without."""
    vault, seen = opened_vault(), Counter[str]()
    for case in range(part * CASES // PARTS, (part + 1) * CASES // PARTS):
        with Attack(db, case) as attack:
            attack.strike()
            if case % 4 == 0:
                vault.forget()
            seen.update(
                outcome(place, vault, db, attack) for place in looked_at(place_of, attack, all_of_them=case % 100 == 0)
            )
    assert seen["CannotOpen"] > CASES / PARTS
    assert seen["whole"] > CASES / PARTS
    assert all(place.read(vault, db) == place.holds for place in place_of)


def test_a_rotation_makes_nothing_of_what_was_moved_before_it(db: sqlite3.Connection, place_of: list[Place]):
    """What is sealed anew was opened first: a rotation puts no row right that an attacker put wrong."""
    vault, seen = opened_vault(), Counter[str]()
    for case in range(CASES, CASES + 400):
        with Attack(db, case) as attack:
            attack.strike()
            go_on(vault, db, case)
            attack.tables |= {"vault_root", "vault_org_key"}  # rows of these are gone, or not, as the rotation got on
            seen.update(outcome(place, vault, db, attack) for place in place_of)
    assert seen["CannotOpen"] > 400
    assert seen["whole"] > 10 * 400


def go_on(vault: Vault, db: sqlite3.Connection, case: int) -> None:
    """Rotate as far as it can be done: what is left of the root key's rotation, and the keys of half the orgs."""
    for key in steps.due_org_keys(db, 2, most=100):
        unless_refused(move_under_the_newest_root, vault, db, key)
    for org in ORGS[case % 2 :: 2]:
        version = db.execute("SELECT MAX(version) FROM vault_org_key WHERE org = ?", (org,)).fetchone()[0] or 0
        for credential in steps.due_credentials(db, org, version, most=100):
            unless_refused(steps.reseal_credential, db, vault, credential, version)
        unless_refused(steps.drop_org_keys, db, org, version)
        unless_refused(rotate_org, db, vault, org)


def move_under_the_newest_root(vault: Vault, db: sqlite3.Connection, key: steps.OrgKey) -> None:
    before = vault.keyring.generations.of(db, key.generation)
    steps.move_org_key(db, key, steps.rewrapped(key.wrapped, key.context, before=before, after=root(2)), 2)


def unless_refused(step: Any, *arguments: Any) -> None:
    with suppress(VaultError):
        step(*arguments)
