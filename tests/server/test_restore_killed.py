"""Killed at any step, a restore leaves the one installation or the other, and running it again finishes it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.audit import Event, append
from server.audit.noted import NotedHeads
from tests.commandline import CommandLine
from tests.installed import Place

SCRIPT = Path(__file__).with_name("killed_restore.py")
PASSPHRASE = "correct horse battery"
EVERY = int(os.environ.get("KEYLEASH_KILL_EVERY", "0"))
"""Kill at every so many steps rather than at the chosen share of them; 1 takes minutes."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork"),
    pytest.mark.sqlite_only("it is about SQLite's file"),
]


@pytest.fixture
def file(place: Place, owner: CommandLine, tmp_path: Path) -> Path:
    """A backup with a connector file; since then that is gone, and three entries were recorded and noted."""
    folder = place.installation.settings.connectors
    folder.mkdir(mode=0o700)
    (folder / "mine.yaml").write_text("id: mine")
    (tmp_path / "kept").mkdir()
    file = tmp_path / "kept" / "b.db"
    assert owner("vault", "backup", str(file)).code == 0
    ran = owner("vault", "export-recovery", str(file.with_name("r")), "--passphrase-stdin", stdin=PASSPHRASE.encode())
    assert ran.code == 0
    (folder / "mine.yaml").unlink()
    for _ in range(3):
        place.database.write_now(lambda rows: append(rows, place.org, Event.AUDIT_LISTED, by="x"))
    NotedHeads(place.installation.settings.noted_heads).note(place.database)
    place.installation.close()
    return file


def killed(line: CommandLine, template: Path, home: Path, *arguments: str, stdin: str = "", every: int) -> Any:
    """What each kill left, and what running the restore again made of it."""
    given = (json.dumps(list(arguments)), json.dumps(stdin), json.dumps(EVERY or every))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(template), str(home), *given],
        capture_output=True,
        text=True,
        env=line.environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ended"] == 0, done.stderr
    odd = [(one["at"], one["killed"], one["step"]) for one in found["results"] if one["killed"] != signal.SIGKILL]
    assert odd == [], found["steps"]
    return found["results"]


def template_of(place: Place, tmp_path: Path) -> Path:
    """The home as it is, to be copied to where this process has no database open that it will close at some time."""
    shutil.copytree(place.home, tmp_path / "template")
    return tmp_path / "template"


def complete(left: Any) -> bool:
    """Whether everything that comes after the database is there as well: the kill came after the last change."""
    return left["unfinished"] is False


def require_finished(results: Any) -> None:
    for one in results:
        finished = {"is": "new", "whole": True, "served": True, "sealed": None, "connector": True, "left_over": []}
        finished["unfinished"] = False
        before, after = one["left"].get("kept", 0), one["finished"].pop("kept")
        assert (one["again"], one["finished"]) == (0, finished), one["step"]
        assert one["left"]["is"] != "new" or after == before, f"{one['step']}: it was restored twice"


def test_over_an_installation(place: Place, owner: CommandLine, tmp_path: Path, file: Path) -> None:
    results = killed(
        owner, template_of(place, tmp_path), tmp_path / "killed", str(file), "--yes", "--accept-rollback", every=11
    )
    assert len(results) > 10
    for one in results:
        left, step = one["left"], one["step"]
        assert left["is"] in ("old", "new"), step
        assert (left["whole"], left["sealed"]) == (True, None), step
        # The old one goes on as if nothing had been; the new one waits until the rest of it is there.
        assert left["served"] is (left["is"] == "old" or complete(left)), step
    assert {one["left"]["is"] for one in results} == {"old", "new"}
    require_finished(results)


def test_onto_a_new_machine(place: Place, owner: CommandLine, tmp_path: Path, file: Path) -> None:
    (place.home / "keys" / "root.key").unlink()
    recovery = ("--recovery", str(file.with_name("r")), "--root", "file", "--passphrase-stdin")
    home = tmp_path / "new"
    results = killed(owner, tmp_path / "none", home, str(file), *recovery, stdin=PASSPHRASE, every=11)
    assert len(results) > 6
    for one in results:
        left = one["left"]
        if left != {"is": "old"}:
            assert (left["is"], left["whole"], left["sealed"]) == ("new", True, None), one["step"]
            assert left["served"] is complete(left), one["step"]
    assert {one["left"]["is"] for one in results} == {"old", "new"}
    require_finished(results)


def test_over_a_damaged_database(place: Place, owner: CommandLine, tmp_path: Path, file: Path) -> None:
    template = template_of(place, tmp_path)
    (template / "data" / "keyleash.db").write_text("broken" * 1000)
    (template / "data" / "keyleash.db-wal").write_text("an old journal")
    results = killed(owner, template, tmp_path / "killed", str(file), "--yes", "--accept-rollback", every=9)
    assert len(results) > 8
    for one in results:
        assert one["left"]["is"] == "new" or one["left"]["is"].startswith("not to be opened"), one["step"]
    require_finished(results)
