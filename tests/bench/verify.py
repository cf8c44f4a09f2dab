"""`python -m tests.bench.verify`: how fast a log is verified, beside a bare loop that parses each line and hashes it.

Both read the same export from the same file and take turns in one process. Ours is `audit verify --export` with a
checkpoint of every ten thousand entries, so the Merkle tree is computed as well. Beside that, what signing adds to an
entry: nothing where it is appended, and later, on a thread, what is said here. A quarter of a minute.
"""

import argparse
import hashlib
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from server.audit import Event, Status, append, export_file, verify_export
from server.audit.checkpoints import Checkpoints, Signer
from server.audit.note import Checkpoint, VerifierKey, origin_of, signed
from server.audit.proof import Proofs
from server.audit.tree import Frontier
from server.sqlite import SqliteDatabase, migrate
from vault.signing import SigningKey

ORG = "org_bench"
EVERY = 10_000
CALL = {
    **{"agent": "reconciler", "agent_id": "agt_1234567890abcdef", "member": "tess", "client": "claude-code"},
    **{"client_version": "2.1.0", "transport": "http", "address": "127.0.0.1", "connection": "stripe"},
    **{"account": "acct_1", "ownership": "own", "credential_version": 1, "source": "vault"},
    **{"tool": "stripe_create_refund", "definition": "sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f0", "effect": "spend"},
    **{"verdict": "confirm", "rules": ["preset:default#2"], "approval": "apr_1234567890abcdef"},
    "arguments": {"charge": "h1:00112233445566778899aabbccddeeff", "amount": "h1:ffeeddccbbaa99887766554433221100"},
    "plain": {"reason": "requested_by_customer"},
}
DONE = {"host": "api.stripe.com", "method": "POST", "status": 200, "bytes": 812, "milliseconds": 87, "outcome": "ok"}


def made(folder: Path, entries: int) -> tuple[Path, Proofs, dict[str, float]]:
    """An export of so many entries, attempts and outcomes in turn, its checkpoints, and what making these took."""
    migrate(folder / "log.db")
    key, tree, notes = SigningKey(bytes(range(32))), Frontier(), list[Checkpoint]()
    hashes: list[bytes] = []
    begun = time.process_time()
    with sqlite3.connect(folder / "log.db") as rows:
        for place in range(entries):
            outcome = {"attempt": place, **DONE} if place % 2 else {}
            event = Event.CALL_OUTCOME if place % 2 else Event.CALL_ATTEMPT
            hashes.append(bytes.fromhex(append(rows, ORG, event, **CALL, **outcome).hash))
    rows.close()
    appended = time.process_time() - begun
    for place in range(0, entries, EVERY):
        tree.extend(hashes[place : place + EVERY])
        notes.append(signed(origin_of(ORG), tree, key, {}))
    path = folder / "log.jsonl"
    database = SqliteDatabase(folder / "log.db")
    export_file(database, ORG, path)
    signing = seconds(lambda: Checkpoints(folder / "checkpoints").make(database, ORG, Signer(origin_of(ORG), key)))
    database.close()
    proofs = Proofs(tuple(notes), VerifierKey(origin_of(ORG), key.public))
    costs = {"append_us": appended / entries * 1e6, "signing_us": signing / entries * 1e6}
    return path, proofs, {name: round(cost, 1) for name, cost in costs.items()}


def bare(path: Path) -> None:
    """What anybody would write who wants to read a file of JSON lines and hash it."""
    with path.open("rb") as file:
        for line in file:
            json.loads(line)
            hashlib.sha256(line).digest()


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def race(entries: int, rounds: int) -> dict[str, float]:
    """Our speed as a share of the bare loop's: the median of the rounds, the lowest and the highest."""
    with tempfile.TemporaryDirectory() as folder:
        path, proofs, costs = made(Path(folder), entries)
        report = verify_export(path, proofs=proofs)
        assert (report.status, report.entries) == (Status.INTACT, entries), report
        ratios: list[float] = []
        ours: list[float] = []
        for turn in range(rounds):
            order = (lambda: bare(path), lambda: verify_export(path, proofs=proofs))
            taken = [seconds(work) for work in (order if turn % 2 else reversed(order))]
            theirs, mine = taken if turn % 2 else reversed(taken)
            ratios.append(theirs / mine)
            ours.append(mine)
        return {
            "share_of_bare_speed": round(statistics.median(ratios), 2),
            "lowest": round(min(ratios), 2),
            "highest": round(max(ratios), 2),
            "us_per_entry": round(statistics.median(ours) / entries * 1e6, 1),
            **costs,
            "bytes_per_entry": round(path.stat().st_size / entries),
        }


def main() -> int:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.verify", description="Verifying beside a bare loop.")
    parser.add_argument("--entries", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(json.dumps(race(given.entries, given.rounds), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
