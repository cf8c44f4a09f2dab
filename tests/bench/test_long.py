"""The benchmark of long logs runs, in a short form."""

import sys
from pathlib import Path

import pytest

from tests.bench.long import WORK, measured
from tests.bench.verify import made


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory a process had stands in /proc")
def test_what_a_long_log_takes_is_measured(tmp_path: Path) -> None:
    _, proofs, _ = made(tmp_path, 200)
    (tmp_path / "notes.txt").write_text("\n".join(map(str, proofs.checkpoints)), "utf-8")
    for name in ("verify the database", "the verifier that stands alone", "export csv"):
        found = measured(name, tmp_path)
        assert found["peak"] >= found["before"] > 1_000_000
    assert {each.removeprefix("export ") for each in WORK} >= {"jsonl", "csv", "ocsf", "cef", "syslog", "otlp"}
