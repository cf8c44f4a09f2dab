"""`python -m tests.bench.vault [--json FILE]`: what the vault costs beside the bare cryptographic calls.

Each operation takes turns with the calls to HKDF and AES-GCM that it cannot do without, made straight to the library
with keys, texts and associated data of the same lengths; nothing else is in these: no random numbers, no encoding, no
SQL. The ratios are the result, medians over the rounds of one run: absolute figures are this machine's.

A credential has one field. What is bare, for each operation:

    put         2 HKDF, 2 encryptions   the org's key wraps a data key, which seals the field
    open        2 HKDF, 2 decryptions   the same the other way: the org's key is in memory, and nothing else
    open cold   4 HKDF, 4 decryptions   after `forget()`: the check that the root key is the right one, the org's key,
                                        the data key, the field
    open again  1 decryption            this process has opened it before: the field's key is derived already
    re-wrap     2 HKDF, 1 of each       an org's key, from under one root key to under another
    re-seal     2 HKDF, 1 of each       a data key, from under one version of the org's key to under the next
    seal text   1 HKDF, 1 encryption    of 488 bytes; `unseal text` 1 HKDF, 1 decryption

The database is an SQLite file in WAL mode with `synchronous=FULL`. Lines that end in "committed" have the commit in
them, one for each `put` and one for a whole turn of keys, as a rotation's batches have it; the others have none.
"""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy.schema import CreateTable

from vault import LocalRootKey, Vault
from vault import rotation as steps
from vault.tables import Credential, Derived, OrgKey, VaultField, VaultRoot

AIM = 3.0
"""What opening a credential may cost at most, as a multiple of the bare calls."""

SLOT = {"origin": "https://api.stripe.com:443", "scheme": "bearer"}
SECRET = "sk_test_" + "a" * 99
TEXT = '{"charge": "ch_3Nxyz", "amount": 1200, "reason": "duplicate"}' * 8
KEY_BYTES = 32
BOUND_BYTES = 165
"""Of associated data: 65 of the blob itself, and a context of usual length."""


@dataclass(frozen=True)
class Bare:
    """One sealing or opening without the vault: its key, derived or ready, and AES-GCM over `size` bytes."""

    does: str
    """`encrypt` or `decrypt`"""
    size: int
    derived: bool = True
    """whether HKDF has to be asked for the key first"""

    def call(self) -> Callable[[], object]:
        """Exactly these calls, to be made over and over."""
        salt, text, bound = b"s" * 32, b"t" * self.size, b"b" * BOUND_BYTES

        def expanded() -> bytes:
            return HKDF(SHA256(), 76, salt=salt, info=b"keyleash/seal/v1").derive(b"k" * KEY_BYTES)

        cipher_key, nonce = expanded()[:KEY_BYTES], expanded()[KEY_BYTES : KEY_BYTES + 12]
        if self.does == "encrypt":
            return lambda: AESGCM(expanded()[:KEY_BYTES]).encrypt(nonce, text, bound)
        sealed = AESGCM(cipher_key).encrypt(nonce, text, bound)
        if self.derived:
            return lambda: AESGCM(expanded()[:KEY_BYTES]).decrypt(nonce, sealed, bound)
        ready = AESGCM(cipher_key)
        return lambda: ready.decrypt(nonce, sealed, bound)


WRAP, UNWRAP = Bare("encrypt", KEY_BYTES), Bare("decrypt", KEY_BYTES)


@dataclass
class Ground:
    """A database file with a vault on it, and `times` orgs and credentials, as many as a turn needs."""

    db: sqlite3.Connection
    times: int
    root: LocalRootKey = field(default_factory=lambda: LocalRootKey(b"r" * KEY_BYTES))
    after: LocalRootKey = field(default_factory=lambda: LocalRootKey(b"s" * KEY_BYTES))
    connections: tuple[str, ...] = ()

    def vault(self) -> Vault:
        """A vault of a process that has used the org's key, and opened none of its credentials."""
        vault = Vault(self.root)
        vault.keyring.newest(self.db, "org_a")
        return vault


Turn = tuple[Callable[[int], object], Callable[[], object]]
"""What is timed, handed the numbers from 0 up to `times`; and what undoes it afterwards, which is not."""


@dataclass(frozen=True)
class Operation:
    """What the vault does, beside the bare calls that it cannot do without."""

    bare: tuple[Bare, ...]
    turn: Callable[[Ground], Turn]
    aim: float | None = None
    clock: Callable[[], float] = time.thread_time
    """in seconds: of this thread's CPU, unless what is waited for, the disk, is to count"""


@contextmanager
def ground(folder: Path, times: int) -> Iterator[Ground]:
    """Lay it out in this folder."""
    with closing(sqlite3.connect(folder / "vault.db", isolation_level=None, cached_statements=256)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA foreign_keys=ON")
        for table in (VaultRoot, OrgKey, Derived, Credential, VaultField):
            db.execute(str(CreateTable(table.__table__)))  # pyright: ignore[reportAttributeAccessIssue]
        found = Ground(db, times, connections=tuple(f"con_{number:08}" for number in range(times)))
        vault = Vault(found.root)
        db.execute("BEGIN")
        vault.install(db)
        for org in ("org_a", *(f"org_{number:08}" for number in range(times))):
            vault.create_org_key(db, org)
        for connection in found.connections:
            vault.put(db, org="org_a", connection=connection, fields={"secret": SECRET}, **SLOT)
        db.execute("COMMIT")
        yield found


# -- one turn of each


def _put(on: Ground) -> Turn:
    vault = on.vault()
    on.db.execute("BEGIN")
    return lambda n: _put_one(on, vault, n), lambda: on.db.execute("ROLLBACK")


def _put_committed(on: Ground) -> Turn:
    vault = on.vault()

    def one(number: int) -> None:
        on.db.execute("BEGIN IMMEDIATE")
        _put_one(on, vault, number)
        on.db.execute("COMMIT")

    def undo() -> None:
        on.db.execute("BEGIN")
        for number in range(on.times):
            vault.remove(on.db, org="org_a", connection=f"new_{number:08}")
        on.db.execute("COMMIT")

    return one, undo


def _put_one(on: Ground, vault: Vault, number: int) -> None:
    vault.put(on.db, org="org_a", connection=f"new_{number:08}", fields={"secret": SECRET}, **SLOT)


def _open(on: Ground) -> Turn:
    vault = on.vault()
    return lambda n: _open_one(on, vault, n), _nothing


def _open_again(on: Ground) -> Turn:
    vault = on.vault()
    _open_one(on, vault, 0)
    return lambda _n: _open_one(on, vault, 0), _nothing


def _open_cold(on: Ground) -> Turn:
    vault = on.vault()

    def one(number: int) -> None:
        vault.forget()
        _open_one(on, vault, number)

    return one, _nothing


def _open_one(on: Ground, vault: Vault, number: int) -> None:
    with vault.open(on.db, org="org_a", connection=on.connections[number], version=1, **SLOT) as secret:
        secret.reveal()


def _rewrap(on: Ground) -> Turn:
    due = steps.due_org_keys(on.db, 2, most=on.times)
    on.db.execute("BEGIN")
    return lambda n: _rewrap_one(on, due[n]), lambda: on.db.execute("ROLLBACK")


def _rewrap_committed(on: Ground) -> Turn:
    due = steps.due_org_keys(on.db, 2, most=on.times)

    def undo() -> None:
        on.db.execute("BEGIN")
        for key in due:
            on.db.execute("UPDATE vault_org_key SET wrapped = ?, root = 1 WHERE org = ?", (key.wrapped, key.org))
        on.db.execute("COMMIT")

    return _in_one_commit(on, lambda n: _rewrap_one(on, due[n])), undo


def _rewrap_one(on: Ground, key: steps.OrgKey) -> None:
    wrapped = steps.rewrapped(key.wrapped, key.context, before=on.root, after=on.after)
    assert steps.move_org_key(on.db, key, wrapped, 2)


def _reseal(on: Ground) -> Turn:
    vault = on.vault()
    on.db.execute("BEGIN")
    due = _with_a_next_org_key(on, vault)
    return lambda n: steps.reseal_credential(on.db, vault, due[n], 2), lambda: on.db.execute("ROLLBACK")


def _reseal_committed(on: Ground) -> Turn:
    vault = on.vault()
    before = on.db.execute("SELECT data_key, connection FROM vault_credential").fetchall()
    on.db.execute("BEGIN")
    due = _with_a_next_org_key(on, vault)
    on.db.execute("COMMIT")

    def undo() -> None:
        on.db.execute("BEGIN")
        on.db.executemany("UPDATE vault_credential SET key_version = 1, data_key = ? WHERE connection = ?", before)
        on.db.execute("DELETE FROM vault_derived")
        on.db.execute("DELETE FROM vault_org_key WHERE version = 2")
        on.db.execute("COMMIT")

    return _in_one_commit(on, lambda n: steps.reseal_credential(on.db, vault, due[n], 2)), undo


def _with_a_next_org_key(on: Ground, vault: Vault) -> list[steps.DueCredential]:
    wrapped = steps.next_org_key("org_a", 2, on.root)
    steps.begin_org(on.db, vault, "org_a", wrapped=steps.OrgKey("org_a", 2, wrapped, 1), purposes=())
    return steps.due_credentials(on.db, "org_a", 2, most=on.times)


def _in_one_commit(on: Ground, one: Callable[[int], object]) -> Callable[[int], None]:
    def batch(number: int) -> None:
        if number == 0:
            on.db.execute("BEGIN IMMEDIATE")
        one(number)
        if number == on.times - 1:
            on.db.execute("COMMIT")

    return batch


def _seal_text(on: Ground) -> Turn:
    vault = on.vault()
    return lambda _n: vault.seal_text(on.db, "org_a", "approval-call", "apr_1", TEXT), _nothing


def _unseal_text(on: Ground) -> Turn:
    vault = on.vault()
    sealed = vault.seal_text(on.db, "org_a", "approval-call", "apr_1", TEXT)
    return lambda _n: vault.unseal_text(on.db, "org_a", "approval-call", "apr_1", sealed), _nothing


def _nothing() -> None:
    pass


OPERATIONS: dict[str, Operation] = {
    "put": Operation((WRAP, Bare("encrypt", len(SECRET))), _put),
    "put, committed": Operation((WRAP, Bare("encrypt", len(SECRET))), _put_committed, clock=time.perf_counter),
    "open": Operation((UNWRAP, Bare("decrypt", len(SECRET))), _open, aim=AIM),
    "open cold": Operation((UNWRAP, UNWRAP, UNWRAP, Bare("decrypt", len(SECRET))), _open_cold, aim=AIM),
    "open again": Operation((Bare("decrypt", len(SECRET), derived=False),), _open_again),
    "re-wrap": Operation((UNWRAP, WRAP), _rewrap),
    "re-wrap, committed": Operation((UNWRAP, WRAP), _rewrap_committed, clock=time.perf_counter),
    "re-seal": Operation((UNWRAP, WRAP), _reseal),
    "re-seal, committed": Operation((UNWRAP, WRAP), _reseal_committed, clock=time.perf_counter),
    "seal text": Operation((Bare("encrypt", len(TEXT)),), _seal_text),
    "unseal text": Operation((Bare("decrypt", len(TEXT)),), _unseal_text),
}


# -- the run


def bench(*, rounds: int, times: int) -> dict[str, Any]:
    """Run every operation beside its bare calls, `times` in each of `rounds` turns; returns the report."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in OPERATIONS}
    with tempfile.TemporaryDirectory() as folder, ground(Path(folder), times) as on:
        for operation in OPERATIONS.values():
            taken(on, operation)  # the first turn pays for what is compiled and cached once
        for _ in range(rounds):
            for name, operation in OPERATIONS.items():
                found[name].append(taken(on, operation))
    return {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "times": times,
        "operations": {name: _figures(OPERATIONS[name], turns) for name, turns in found.items()},
    }


def taken(on: Ground, operation: Operation) -> tuple[float, float]:
    """Seconds that one of the operation takes, and its bare calls before and after it."""
    calls = [bare.call() for bare in operation.bare]
    before = _timed(lambda _n: [call() for call in calls], on.times, operation.clock)
    work, undo = operation.turn(on)
    try:
        took = _timed(work, on.times, operation.clock)
    finally:
        undo()
    return took, (before + _timed(lambda _n: [call() for call in calls], on.times, operation.clock)) / 2


def _timed(work: Callable[[int], object], times: int, clock: Callable[[], float]) -> float:
    began = clock()
    for number in range(times):
        work(number)
    return (clock() - began) / times


def _figures(operation: Operation, turns: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [took / bare for took, bare in turns]
    return {
        "us": round(statistics.median(took for took, _ in turns) * 1e6, 1),
        "bare_us": round(statistics.median(bare for _, bare in turns) * 1e6, 1),
        "hkdf": sum(bare.derived for bare in operation.bare),
        "encryptions": sum(bare.does == "encrypt" for bare in operation.bare),
        "decryptions": sum(bare.does == "decrypt" for bare in operation.bare),
        "ratio": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
        "aim": operation.aim,
    }


def table(report: dict[str, Any]) -> str:
    """The report as a table that fits a terminal."""
    lines = [f"Python {report['python']}, {report['processors']} processors; {report['times']} to a turn", ""]
    lines.append(f"{'':20} {'takes':>11} {'bare':>10}   {'HKDF':>4} {'enc':>3} {'dec':>3}   ratio (rounds)")
    for name, found in report["operations"].items():
        aim = f", aim {found['aim']:.0f}" if found["aim"] else ""
        lines.append(
            f"{name:20} {found['us']:8.1f} us {found['bare_us']:7.1f} us   {found['hkdf']:4} {found['encryptions']:3} "
            f"{found['decryptions']:3}   {found['ratio']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f}){aim}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.vault", description="What the vault costs.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--times", type=int, default=50, help="of each operation in a turn")
    given = parser.parse_args()
    report = bench(rounds=given.rounds, times=given.times)
    print(table(report))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
