"""An attacker who can write to the database changes what is sealed, bit by bit, and what stands beside it.

Everything is refused in the same words, CannotOpen, with one exception: where the check of a root key is what was
changed, `check_root` says WrongRootKey, and so does whatever asks for that root key anew. It cannot know better: the
check is all that tells one root key from another.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import product

import pytest

from server.sealed import SEALED
from tests.vault.populated import (
    SLOTS,
    TEXT_TABLES,
    VAULT_TABLES,
    Place,
    opened_vault,
    populate,
    read_derived,
    refused,
    rotate_org,
    undone,
)
from vault import CannotOpen, Vault, VaultError, WrongRootKey
from vault import rotation as steps

BLOBS = (
    "vault_root.installation_key",
    "vault_org_key.wrapped",
    "vault_credential.data_key",
    "vault_field.sealed",
    "vault_derived.sealed",
    *(f"{place.table}.{place.column}" for place in SEALED),
)
CHECK = "vault_root.check_blob"
Changes = Callable[[bytes], Iterator[object]]
"""Everything that an attacker puts in the place of a value, one after the other."""
WARM = pytest.mark.parametrize("warm", [True, False], ids=["keys in memory", "no key in memory"])


@pytest.fixture
def places(db: sqlite3.Connection) -> list[Place]:
    found = populate(db)
    db.execute("PRAGMA foreign_keys = OFF")
    later = opened_vault().derive(db, "org_b", "of a later release")
    return [*found, Place("org_b later", "org_b", partial(read_derived, "org_b", "of a later release"), later)]


@pytest.fixture
def vault(db: sqlite3.Connection, places: list[Place]) -> Vault:
    vault = opened_vault()
    assert all(place.read(vault, db) == place.holds for place in places)
    return vault


def blobs(db: sqlite3.Connection, column: str) -> list[tuple[int, bytes]]:
    """Every value of a column, with the row that it stands in; of all orgs, the one in the middle of its rotation."""
    table, name = column.split(".")
    return db.execute(f"SELECT rowid, {name} FROM {table} {mid_rotation(table)}").fetchall()


def mid_rotation(table: str) -> str:
    return "" if table == "vault_root" else "WHERE org = 'org_b'"


def put(db: sqlite3.Connection, column: str, row: int, value: object) -> None:
    table, name = column.split(".")
    db.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (value, row))


def depending(vault: Vault, db: sqlite3.Connection, places: list[Place], column: str, row: int, whole: bytes) -> Place:
    """A place that this value is needed for: all that do not open without it are refused, and others are not."""
    put(db, column, row, bytes(len(whole)))
    lost = [place for place in places if refused(vault, db, place)]
    put(db, column, row, whole)
    assert lost, f"nothing depends on {column} of row {row}"
    assert len(lost) < len(places) / 2
    return lost[0]


def all_refused(
    vault: Vault, db: sqlite3.Connection, places: list[Place], column: str, *, warm: bool, change: Changes
) -> int:
    """Put every change in the place of every value of the column, one after the other; returns how many there were."""
    done = 0
    for row, whole in blobs(db, column):
        if column == "vault_root.installation_key" and row == 1:
            continue  # generation 1 has handed over: its copy is not read any more
        place = depending(vault, db, places, column, row, whole)
        for changed in change(whole):
            put(db, column, row, changed)
            if not warm:
                vault.forget()
            assert refused(vault, db, place), f"{place.name} opened with {column} as {changed!r}"
            done += 1
        put(db, column, row, whole)
        assert not refused(vault, db, place)
    return done


def every_bit(whole: bytes) -> Iterator[bytes]:
    for bit in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def other_lengths(whole: bytes) -> Iterator[bytes]:
    yield from (whole[:length] for length in range(len(whole)))
    yield from (whole[start:] for start in range(1, len(whole)))
    yield from (whole + more for more in (b"\x00", b"\x01", bytes(16), whole[-16:], whole))
    yield from (more + whole for more in (b"\x00", b"\x01", bytes(4), whole))


def other_types(whole: bytes) -> Iterator[object]:
    yield from (0, 1, -1, 1.5, 2**62, "", "text", whole.hex(), whole.decode("latin1"), "\x01", memoryview(b""), b"")


@WARM
@pytest.mark.parametrize("column", BLOBS)
def test_any_bit_that_is_flipped_is_refused(
    vault: Vault, db: sqlite3.Connection, places: list[Place], column: str, warm: bool
):
    bits = sum(len(whole) * 8 for _, whole in blobs(db, column))
    done = all_refused(vault, db, places, column, warm=warm, change=every_bit)
    assert done == (bits // 2 if column.startswith("vault_root") else bits) > 900


@WARM
@pytest.mark.parametrize("column", BLOBS)
def test_a_value_cut_short_made_longer_or_of_another_type_is_refused(
    vault: Vault, db: sqlite3.Connection, places: list[Place], column: str, warm: bool
):
    assert all_refused(vault, db, places, column, warm=warm, change=other_lengths) > 200
    assert all_refused(vault, db, places, column, warm=warm, change=other_types) > 10


def test_every_column_of_sealed_bytes_is_among_these(db: sqlite3.Connection, places: list[Place]):
    columns = {
        f"{table}.{row[1]}"
        for table in (*VAULT_TABLES, *TEXT_TABLES)
        for row in db.execute(f"PRAGMA table_info({table})")
        if row[2] == "BLOB"
    }
    assert columns == {*BLOBS, CHECK}


@WARM
@pytest.mark.parametrize("change", [every_bit, other_lengths, other_types], ids=["bits", "lengths", "types"])
def test_a_changed_check_of_the_root_key_in_use_is_a_wrong_root_key(
    vault: Vault, db: sqlite3.Connection, change: Changes, warm: bool
):
    said: set[str] = set()
    _, (newest, whole) = blobs(db, CHECK)
    for changed in change(whole):
        put(db, CHECK, newest, changed)
        if not warm:
            vault.forget()
        with pytest.raises(WrongRootKey) as caught:
            vault.check_root(db)
        said.add(str(caught.value))
    put(db, CHECK, newest, whole)
    vault.check_root(db)
    assert len(said) == 1


@pytest.mark.parametrize("change", [every_bit, other_lengths, other_types], ids=["bits", "lengths", "types"])
def test_a_changed_check_of_an_earlier_root_key_opens_nothing_anew_and_takes_nothing_from_who_has_the_keys(
    vault: Vault, db: sqlite3.Connection, places: list[Place], change: Changes
):
    """A check that is no bytes at all is an altered row as any other, and CannotOpen."""
    said: set[str] = set()
    (earlier, whole), _ = blobs(db, CHECK)
    for changed in change(whole):
        put(db, CHECK, earlier, changed)
        with pytest.raises((WrongRootKey, CannotOpen)) as caught:
            opened_vault().keyring.newest(db, "org_c")
        assert isinstance(caught.value, WrongRootKey) == isinstance(changed, bytes | memoryview)
        said.add(str(caught.value))
    assert len(said) == 1 + (change is other_types)
    assert not any(refused(vault, db, place) for place in places if place.org == "org_c")


OTHERWISE = (b"\x00", b"", b"org_b", 2**62, -1, 1.5, "", "text", "1 ", "٢")


@WARM
@pytest.mark.parametrize("table", VAULT_TABLES)
def test_a_name_a_place_or_a_number_of_another_type_is_refused_as_any_other(
    vault: Vault, db: sqlite3.Connection, places: list[Place], table: str, warm: bool
):
    """Nothing but an error of the vault comes out of it, whether it is read, written or rotated."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[2] not in ("BLOB", "BIGINT")]
    columns = [name for name in columns if (table, name) != ("vault_root", "id")]  # SQLite takes whole numbers only
    outcomes: set[bool] = set()
    for (row,) in db.execute(f"SELECT rowid FROM {table} {mid_rotation(table)}").fetchall():
        for column, value in product(columns, OTHERWISE):
            with undone(db):
                db.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE rowid = ?", (value, row))
                if not warm:
                    vault.forget()
                outcomes |= {refused_or_named(vault, db, place) for place in places}
                use_it_otherwise(vault, db)
    assert outcomes == {True, False}
    assert not any(refused(vault, db, place) for place in places)


def refused_or_named(vault: Vault, db: sqlite3.Connection, place: Place) -> bool:
    """As `refused`; but an org without a key, and a root key that is not where its row says, may be told as such."""
    try:
        found = place.read(vault, db)
    except VaultError:
        return True
    assert found in (place.holds, None), place
    return found is None


def use_it_otherwise(vault: Vault, db: sqlite3.Connection) -> None:
    due = [*steps.due_org_keys(db, 2, most=9)]
    for step in (
        lambda: vault.put(db, org="org_b", connection="con_9", fields={"secret": "x"}, **SLOTS["con_1"]),
        lambda: vault.seal_text(db, "org_b", "prompt", "apr_1", "x"),
        lambda: vault.create_org_key(db, "org_new"),
        lambda: [vault.keyring.generations.of(db, key.generation) for key in due],
        lambda: [steps.reseal_credential(db, vault, one, 2) for one in steps.due_credentials(db, "org_b", 2, most=9)],
        lambda: rotate_org(db, vault, "org_b"),
    ):
        with suppress(VaultError):
            step()
