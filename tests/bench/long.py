"""`python -m tests.bench.long`: what a log of a million entries takes beside one of fifty thousand, in memory and time.

Every format of `audit export`, `audit verify` on the database and on an export, with a checkpoint of every ten thousand
entries, and the verifier that stands alone: each in a process of its own, on SQLite. Linux; half an hour.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from server.audit import FORMATS, Report, Status, export_file, standalone, verify_database, verify_export
from server.audit.note import VerifierKey, origin_of, read_notes
from server.audit.proof import Proofs
from server.sqlite import SqliteDatabase
from tests.bench.verify import ORG, made
from vault.signing import SigningKey

FEW, MANY = 50_000, 1_000_000
KEY = VerifierKey(origin_of(ORG), SigningKey(bytes(range(32))).public)


def _export(folder: Path, kind: str) -> None:
    database = SqliteDatabase(folder / "log.db")
    export_file(database, ORG, folder / "exported", format=kind)
    database.close()


def _proofs(folder: Path) -> Proofs:
    return Proofs(tuple(read_notes((folder / "notes.txt").read_bytes())), KEY)


def _verify_database(folder: Path) -> None:
    database = SqliteDatabase(folder / "log.db")
    _require_intact(verify_database(database, ORG, proofs=_proofs(folder)))
    database.close()


def _verify_export(folder: Path) -> None:
    _require_intact(verify_export(folder / "log.jsonl", proofs=_proofs(folder)))


def _alone(folder: Path) -> None:
    words = [str(folder / "log.jsonl"), "--checkpoint", str(folder / "notes.txt"), "--key", str(KEY)]
    if standalone.main(words) != 0:
        raise SystemExit("not intact")


def _require_intact(report: Report) -> None:
    if report.status is not Status.INTACT:
        raise SystemExit(f"not intact: {report}")


WORK: dict[str, Callable[[Path], None]] = {
    "verify the database": _verify_database,
    "verify an export": _verify_export,
    "the verifier that stands alone": _alone,
    **{f"export {kind}": (lambda folder, kind=kind: _export(folder, kind)) for kind in FORMATS},
}


def peak() -> int:
    """The most memory that this process has had, in bytes; what `getrusage` says holds its parent's too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measured(name: str, folder: Path) -> dict[str, float]:
    """One piece of work, in a process of its own."""
    words = [sys.executable, "-m", "tests.bench.long", "--folder", str(folder), "--only", name]
    ran = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def race(few: int, many: int) -> dict[str, dict[str, float]]:
    """Each piece of work on both logs."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as kept:
        folders = [Path(kept, name) for name in ("few", "many")]
        for folder, entries in zip(folders, (few, many), strict=True):
            folder.mkdir()
            _, proofs, _ = made(folder, entries)
            (folder / "notes.txt").write_text("\n".join(map(str, proofs.checkpoints)), "utf-8")
        for name in WORK:
            less, more = (measured(name, folder) for folder in folders)
            found[name] = {
                "peak_memory_ratio": round(more["peak"] / less["peak"], 2),
                "grown_by_mb": round((more["peak"] - more["before"]) / 1e6, 1),
                "us_per_entry_few": round(less["seconds"] / few * 1e6, 1),
                "us_per_entry_many": round(more["seconds"] / many * 1e6, 1),
            }
            print(name, found[name], file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.long", description="A long log beside a short one.")
    parser.add_argument("--few", type=int, default=FEW)
    parser.add_argument("--many", type=int, default=MANY)
    parser.add_argument("--only", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is None:
        print(json.dumps(race(given.few, given.many), indent=2))
        return 0
    before, begun = peak(), time.process_time()
    WORK[given.only](given.folder)
    print(json.dumps({"before": before, "peak": peak(), "seconds": time.process_time() - begun}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
