"""SECURITY.md's table of attacks on the record is what happens: each is found, or said not to be excluded.

Every cell is tried on the database and on an export of it, by `audit verify` and by the verifier that stands alone.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import pytest

from server.audit import Event, Report, append, verify_database
from server.audit.checkpoints import Grown, Signer, begun, grow, statement, stub_of
from server.audit.entry import canonical, column, entry_hash, log_hash
from server.audit.note import Checkpoint
from server.audit.noted import NotedHeads
from server.audit.proof import Proofs
from server.signing import signer_of
from tests.installed import Place
from tests.proving import both, exported, signer

TEXT = (Path(__file__).parents[2] / "SECURITY.md").read_text("utf-8")
COLUMNS = ("alone", "pinned", "checkpoint", "checkpoint, pinned")


def table() -> dict[str, tuple[str, ...]]:
    """The rows of SECURITY.md's table, by what is done."""
    (found,) = re.findall(r"\| what is done to the log.*?\n\|[- |]+\n((?:\|.*\n)+)", TEXT)
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in found.splitlines()]
    return {row[0]: tuple(row[1:]) for row in rows}


@dataclass
class Scene:
    """A log that was signed at its end, with what an auditor has kept."""

    place: Place
    signer: Signer
    kept: Checkpoint

    def sql(self, statement: str, values: tuple[Any, ...] = ()) -> Any:
        return self.place.database.write_now(lambda rows: rows.execute(statement, values).rowcount)

    def rows(self) -> list[tuple[Any, ...]]:
        return self.place.database.read(
            "SELECT seq, body, hash FROM audit_entry WHERE org = ? ORDER BY seq", (self.place.org,)
        )

    @property
    def last(self) -> int:
        return self.rows()[-1][0]

    def write_anew(self, since: int = 1) -> None:
        """Change the first entry from there on, and give all that follow fresh hashes: a whole chain again."""
        previous = log_hash(self.place.org)
        for seq, stored, hashed in self.rows():
            if seq < since:
                previous = hashed
                continue
            body = loads(stored) | ({"by": "mallory"} if seq == since else {})
            text = canonical(body)
            own = entry_hash(bytes.fromhex(previous), text.encode()).hex()
            self.sql(
                "UPDATE audit_entry SET body = ?, previous = ?, hash = ?, agent = ? WHERE org = ? AND seq = ?",
                (text, previous, own, column(body.get("agent")), self.place.org, seq),
            )
            previous = own

    def log(self, to: int | None = None) -> Grown:
        log = begun(self.place.org, None)
        grow(self.place.database, self.place.org, log, to=to)
        return log

    def own_key(self) -> Signer:
        """Another key in the place of the log's."""
        theirs = signer(self.place.org, seed=66)
        self.sql("UPDATE audit_key SET public = ? WHERE org = ?", (theirs.key.public.hex(), self.place.org))
        return theirs

    def take_the_beginning(self, by: Signer) -> None:
        """Delete the first three entries behind a stub."""
        stub = stub_of(self.log(3), by, first=1, size=9, by="mallory")
        self.sql("INSERT INTO audit_stub (org, seq, note) VALUES (?, ?, ?)", (self.place.org, 3, str(stub)))
        self.sql("DELETE FROM audit_entry WHERE org = ? AND seq <= 3", (self.place.org,))


def edit(scene: Scene) -> Checkpoint:
    assert scene.sql("UPDATE audit_entry SET body = replace(body, 'alice', 'mallory') WHERE seq = 2")
    return scene.kept


def delete(scene: Scene) -> Checkpoint:
    assert scene.sql("DELETE FROM audit_entry WHERE seq = 3")
    return scene.kept


def reorder(scene: Scene) -> Checkpoint:
    for one, other in ((3, -3), (4, 3), (-3, 4)):
        assert scene.sql("UPDATE audit_entry SET seq = ? WHERE seq = ?", (other, one))
    return scene.kept


def insert(scene: Scene) -> Checkpoint:
    for seq in range(scene.last, 3, -1):
        scene.sql("UPDATE audit_entry SET seq = ? WHERE seq = ?", (seq + 1, seq))
    columns = "at, event, body, previous, hash, agent, connection, tool, outcome"
    assert scene.sql(f"INSERT INTO audit_entry (org, seq, {columns}) SELECT org, 4, {columns} FROM audit_entry "
                     "WHERE seq = 3")  # fmt: skip
    return scene.kept


def cut_off(scene: Scene) -> Checkpoint:
    assert scene.sql("DELETE FROM audit_entry WHERE seq > ?", (scene.last - 2,)) == 2
    return scene.kept


def rewrite(scene: Scene) -> Checkpoint:
    scene.write_anew()
    return scene.kept


def rewrite_with_their_own_key(scene: Scene) -> Checkpoint:
    scene.write_anew()
    return statement(scene.log(), scene.own_key())


def rewrite_with_the_logs_key(scene: Scene) -> Checkpoint:
    scene.write_anew()
    return statement(scene.log(), scene.signer)


def rewrite_what_is_newer(scene: Scene) -> Checkpoint:
    scene.place.database.write_now(lambda rows: append(rows, scene.place.org, Event.AUDIT_LISTED, by="alice"))
    scene.write_anew(since=scene.last)
    return scene.kept


def prune_with_their_own_key(scene: Scene) -> Checkpoint:
    scene.take_the_beginning(scene.own_key())
    return scene.kept


def prune_with_the_logs_key(scene: Scene) -> Checkpoint:
    scene.take_the_beginning(scene.signer)
    return scene.kept


ATTACKS: dict[str, Callable[[Scene], Checkpoint]] = {
    "an entry is edited": edit,
    "an entry is deleted": delete,
    "two entries change places": reorder,
    "an entry is inserted": insert,
    "the end is cut off": cut_off,
    "all of it is written anew, with fresh hashes": rewrite,
    "the same, with a key and a checkpoint of their own in the place of yours": rewrite_with_their_own_key,
    "the beginning is deleted behind a stub of their own": prune_with_their_own_key,
    "what is newer than your checkpoint is written anew": rewrite_what_is_newer,
    "with the root key: all of it is written anew": rewrite,
    "with the root key: the same, and signed by the log's key in the place of your checkpoint": (
        rewrite_with_the_logs_key
    ),
    "with the root key: the beginning is deleted behind a stub, as `audit prune` does": prune_with_the_logs_key,
}


@pytest.fixture
def scene(place: Place) -> Scene:
    found = signer_of(place.installation.database, place.installation.vault, place.org)
    for _ in range(4):
        place.database.write_now(lambda rows: append(rows, place.org, Event.AUDIT_LISTED, by="alice"))
    noted = NotedHeads(place.installation.settings.noted_heads)
    kept, new = noted.checkpoint(place.installation.database, place.org, found)
    assert new
    return Scene(place, found, kept)


def test_the_table_has_every_attack() -> None:
    assert set(table()) == set(ATTACKS)
    assert {len(cells) for cells in table().values()} == {4}
    assert {cell for cells in table().values() for cell in cells} == {"found", "refused", "not excluded"}


def test_an_untouched_log_is_intact_whatever_it_is_held_to(scene: Scene, tmp_path: Path) -> None:
    for name in COLUMNS:
        for report in reports(scene, scene.kept, name, tmp_path, alone=True):
            assert report.exit_code == 0, (name, report)
            assert report.checkpoints == ((scene.kept.size,) if "checkpoint" in name else ())


@pytest.mark.both_databases
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_found_or_said_not_to_be_excluded_as_the_table_says(
    scene: Scene, tmp_path: Path, attack: str
) -> None:
    scene.place.unlock_the_log()
    handed = ATTACKS[attack](scene)
    for name, said in zip(COLUMNS, table()[attack], strict=True):
        for report in reports(scene, handed, name, tmp_path):
            assert report.exit_code == {"found": 1, "refused": 3, "not excluded": 0}[said], (name, report)
            if said == "not excluded":
                assert report.cannot_exclude, (name, report)
            if said == "found":
                assert report.first_bad, (name, report)


def reports(scene: Scene, handed: Checkpoint, name: str, folder: Path, *, alone: bool = False) -> list[Report]:
    """What the database and an export of it are found to be."""
    key = scene.signer.verifier if "pinned" in name else None
    notes = str(handed) if "checkpoint" in name else ""
    database, org = scene.place.database, scene.place.org
    proofs = Proofs((handed,) if notes else (), key)
    export = exported(database, org)
    return [verify_database(database, org, proofs=proofs), both(export, folder, notes, key, alone=alone)]
