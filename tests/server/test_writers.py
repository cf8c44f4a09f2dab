"""Several processes write and sign one log while they are killed: it stays one chain, and no checkpoint contradicts it.

`KEYLEASH_PROOFS=1` has each write 2,500 entries in the place of 60.
"""

import os
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import pytest

from server.audit import select, verify_database
from server.audit.note import read_notes
from server.audit.noted import NotedHeads
from server.audit.proof import Proofs
from server.signing import signer_of
from tests.commandline import CommandLine
from tests.installed import Place

WRITERS = 4
LONG = os.environ.get("KEYLEASH_PROOFS") == "1"
ENTRIES = 2_500 if LONG else 60
KILLS = 5 if LONG else 1
PATIENCE_S = 1800 if LONG else 240


@dataclass
class Writer:
    """One process after another, each killed but the last, that add so many entries between them."""

    line: CommandLine
    org: str
    name: str
    durable: set[int] = field(default_factory=set[int])
    refused: list[str] = field(default_factory=list[str])
    killed: int = 0

    def run(self) -> None:
        chance = random.Random(self.name)
        command = [sys.executable, "-m", "tests.server.writing", self.org, self.name, str(ENTRIES)]
        while True:
            kill_after = chance.randrange(5, ENTRIES // (KILLS + 1)) if self.killed < KILLS else None
            with subprocess.Popen(command, env=self.line.environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                told = 0
                for said in process.stdout:
                    if said.startswith("refused"):
                        self.refused.append(said)
                    elif said.strip().isdigit():
                        self.durable.add(int(said))
                        told += 1
                    if told == kill_after:
                        process.kill()
                        self.killed += 1
                        kill_after = None
            if process.returncode == 0:
                return


@pytest.mark.slow
@pytest.mark.both_databases
def test_four_processes_that_are_killed_write_one_chain_and_sign_it(place: Place, owner: CommandLine) -> None:
    writers = [Writer(owner, place.org, f"writer_{number}") for number in range(WRITERS)]
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert all(writer.killed == KILLS for writer in writers)
    assert [writer.refused for writer in writers] == [[]] * WRITERS
    key = signer_of(place.installation.database, place.installation.vault, place.org).verifier
    NotedHeads(place.installation.settings.noted_heads).note(place.database)
    notes = read_notes((place.home / "checkpoints" / place.org / "history.txt").read_bytes())
    assert len(notes) >= 4
    assert [one.size for one in notes] == sorted(one.size for one in notes)
    report = verify_database(place.database, place.org, proofs=Proofs(tuple(notes), key))
    assert report.exit_code == 0, report
    assert set(report.checkpoints) == {one.size for one in notes}
    written: dict[str, list[int]] = {writer.name: [] for writer in writers}
    for entry in select(place.database, place.org, event="audit.listed"):
        written[entry.body["agent"]].append(entry.body["number"])
    for writer in writers:
        assert sorted(written[writer.name]) == list(range(ENTRIES))
        assert writer.durable <= set(written[writer.name]), "what was said to be durable is not there"
