"""A log of any length is exported and streamed in constant memory, and keeps nobody from writing meanwhile.

`KEYLEASH_PROOFS=1` makes it a million entries, in every format.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from server.audit import FORMATS, Event, append, export_file
from server.audit.receivers import AppendedFile
from server.audit.streaming import Place as Noted
from server.audit.streaming import Position, Stream, Taken, beginning
from tests.installed import Place

pytestmark = [pytest.mark.both_databases, pytest.mark.slow]

PROOFS = "KEYLEASH_PROOFS" in os.environ
COUNT = 1_000_000 if PROOFS else 20_000
MOST = 16 * 1024 * 1024
"""By how many bytes this process may have grown at the most, from the first thousand entries on."""

FILL = """
WITH RECURSIVE n(seq) AS (SELECT CAST(? AS INTEGER) UNION ALL SELECT seq + 1 FROM n WHERE seq < ?)
INSERT INTO audit_entry (org, seq, at, event, body, previous, hash, agent, connection, tool, outcome)
SELECT ?, seq, 1700000000000 + seq, 'call.outcome',
    '{"agent":"reconciler","at":"2026-01-31T08:05:09.123Z","event":"call.outcome","host":"https://api.stripe.com",'
    || '"method":"POST","org":"o","outcome":"succeeded","reason":"' || ? || '","seq":' || seq
    || ',"status":200,"tool":"stripe_create_refund","v":1}',
    ?, ?, 'reconciler', 'stripe', 'stripe_create_refund', 'succeeded'
FROM n"""


class Growth:
    """How much larger this process has become since the first look."""

    def __init__(self) -> None:
        self.first = self.most = 0

    def __call__(self, _: object = None) -> None:
        now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.first = self.first or now
        self.most = max(self.most, now - self.first)


@pytest.fixture
def filled(place: Place) -> int:
    """The number of the last entry."""
    place.unlock_the_log()
    start = len(place.events()) + 1
    end = start + COUNT - 1
    values = (start, end, place.org, "x" * 300, "0" * 64, "0" * 64)
    place.database.of(place.org).write_now(lambda rows: rows.execute(FILL, values))
    return end


@pytest.mark.skipif(sys.platform != "linux", reason="how large a process is stands in /proc")
@pytest.mark.parametrize("kind", FORMATS if PROOFS else ["ocsf"])
def test_an_export_takes_constant_memory(place: Place, filled: int, tmp_path: Path, kind: str) -> None:
    database, grown = place.installation.database.of(place.org), Growth()
    done = export_file(database, place.org, tmp_path / "log.out", format=kind, progress=grown)
    assert done.entries == filled
    assert (tmp_path / "log.out").stat().st_size > 8 * MOST or not PROOFS
    assert grown.first > 0
    assert grown.most < MOST


@pytest.mark.skipif(sys.platform != "linux", reason="how large a process is stands in /proc")
def test_a_stream_takes_constant_memory(place: Place, filled: int, tmp_path: Path) -> None:
    database, grown = place.installation.database.of(place.org), Growth()

    class Measured(AppendedFile):
        def send(self, entries: Any) -> Taken:
            taken = super().send(entries)
            grown()
            return taken

    start = beginning(place.org)
    position = Position(place.org, "there", "syslog", {}, start.seq, start.hash)
    receiver = Measured(tmp_path / "log.out", FORMATS["syslog"], place.org)
    stream = Stream(database, Noted(tmp_path / "noted"), position, receiver, print, print)
    stream.begin()
    stream.follow(once=True)
    receiver.close()
    assert stream.sent == filled
    assert grown.first > 0
    assert grown.most < MOST


def test_others_write_while_a_log_is_exported(place: Place, filled: int, tmp_path: Path) -> None:
    written: list[int] = []

    def write(_: int) -> None:
        if len(written) < 5:
            entry = place.database.of(place.org).write_now(lambda rows: append(rows, place.org, Event.ORG_FROZEN))
            written.append(entry.seq)

    database = place.installation.database.of(place.org)
    done = export_file(database, place.org, tmp_path / "log.out", format="jsonl", progress=write)
    assert written == [filled + number for number in range(1, 6)]
    assert done.entries == filled
    assert '"org.frozen"' not in (tmp_path / "log.out").read_text()
