"""Kill a restore at one step after another, and say what each left behind. Run by `test_restore_killed.py`.

A step is a file that is opened, made, renamed or removed below the home, or an SQL statement. The process that runs the
restore counts its own steps and kills itself before the one that it was told: the same one in every run.
"""

import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.app import open_installation
from server.audit import AuditError, Status, select, verify_database
from server.cli.commands import app
from server.database import DatabaseProblem
from server.duty import require_current
from server.settings import Settings
from vault.newfile import UNFINISHED

COUNTED = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "sqlite3.connect")


def in_child(work: Callable[[], None]) -> int:
    """Do the work in a process of its own; returns how that ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(99)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def counting(home: Path, kill_at: int, steps: list[str] | None = None) -> None:
    """From now on count steps; die before the one of this number."""
    count = 0

    def step(what: str) -> None:
        nonlocal count
        if steps is not None:
            steps.append(what)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event in COUNTED and given and str(home) in str(given[0]):
            step(f"{event} {Path(str(given[0])).name[:40]}")

    def connected(*given: Any, connect: Callable[..., sqlite3.Connection] = sqlite3.connect, **more: Any) -> Any:
        connection = connect(*given, **more)
        connection.set_trace_callback(lambda sql: step(f"sql {sql[:60]}"))
        return connection

    sqlite3.connect = connected
    sys.addaudithook(heard)


def restore(arguments: list[str], stdin: str) -> None:
    read, write = os.pipe()
    os.write(write, stdin.encode())
    os.close(write)
    os.dup2(read, 0)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    app(args=["vault", "restore", *arguments], prog_name="keyleash")


def left(home: Path, template: Path) -> dict[str, Any]:
    """What the home is now: `old` or `new`, and whether it may be served."""
    live = home / "data" / "keyleash.db"
    if not live.exists():
        return {"is": "old" if not (template / "data" / "keyleash.db").exists() else "gone"}
    installation = open_installation(Settings(home=home))
    database = installation.database
    try:
        require_current(database, installation.settings)
        served = True
    except (AuditError, DatabaseProblem):
        served = False
    last = [next(select(database, org, newest_first=True, limit=1)).body["event"] for org in database.orgs()]
    reports = [verify_database(database, org).status for org in database.orgs()]
    ((integrity,),) = database.read("PRAGMA integrity_check")
    found = {
        "is": "new" if set(last) == {"vault.restored"} else "old" if "vault.restored" not in last else "half",
        "whole": integrity == "ok" and set(reports) == {Status.INTACT},
        "served": served,
        "sealed": installation.vault.sealed,
        "unfinished": bool(database.read("SELECT 1 FROM sqlite_master WHERE name LIKE 'backup%'")),
        "kept": len(list((home / "backups").glob("*.db"))),
        "connector": (home / "data" / "connectors" / "mine.yaml").exists(),
        "left_over": sorted(str(path) for path in [*home.rglob(UNFINISHED), *home.glob("restoring")]),
    }
    installation.close()
    return found


def said_by(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a child finds out; nothing of it is kept in this process."""
    read, write = os.pipe()
    ended = in_child(lambda: (os.write(write, json.dumps(work()).encode()), None)[1])
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    return json.loads(text) if ended == 0 else {"is": f"not to be opened: {ended}"}


def chosen(steps: list[str], every: int) -> list[int]:
    """Every so many steps once something is kept or changed, and fewer of those that only look."""
    begins = next(at for at, step in enumerate(steps) if "unfinished" in step)
    return [*range(0, begins - 1, 5 * every), *range(begins - 1, len(steps), every)]


def main() -> None:
    template, home = Path(sys.argv[1]), Path(sys.argv[2])
    arguments, stdin, every = (json.loads(text) for text in sys.argv[3:])
    os.environ["KEYLEASH_HOME"] = str(home)

    def fresh() -> None:
        shutil.rmtree(home, ignore_errors=True)
        if template.exists():
            shutil.copytree(template, home)

    fresh()
    steps, ended = all_steps(home, lambda: restore(arguments, stdin))
    results = []
    for at in chosen(steps, every):
        fresh()
        killed = in_child(lambda at=at: (counting(home, at), restore(arguments, stdin))[1])
        after = said_by(lambda: left(home, template))
        again = in_child(lambda: restore(arguments, stdin))
        finished = said_by(lambda: left(home, template))
        results.append(
            {"at": at, "step": steps[at], "killed": killed, "left": after, "again": again, "finished": finished}
        )
    sys.stdout.write(json.dumps({"steps": len(steps), "ended": ended, "results": results}))


def all_steps(home: Path, work: Callable[[], None]) -> tuple[list[str], int]:
    """Do the work once without a kill; its steps."""
    read, write = os.pipe()
    steps: list[str] = []

    def whole() -> None:
        counting(home, -1, steps)
        try:
            work()
        finally:
            os.write(write, json.dumps(steps).encode()[:60_000])

    ended = in_child(whole)
    os.close(write)
    with os.fdopen(read) as said:
        return json.loads(said.read()), ended


if __name__ == "__main__":
    main()
