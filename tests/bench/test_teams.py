"""The benchmark of many orgs asks by each of them in turn, and counts no answer that did not go well."""

import contextlib
from pathlib import Path

import httpx2
import pytest

from server.app import open_installation
from server.audit import Event, select
from server.settings import Settings
from tests.bench.contest import BenchProblem, process
from tests.bench.teams import ASKED, ask, serving
from tests.bench.wire import HOST


def test_each_org_is_asked_in_turn(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(process("tests.bench.upstream"))
        assert upstream.stdout is not None
        base = f"http://{HOST}:{int(upstream.stdout.readline())}"
        crowd = stack.enter_context(serving(tmp_path / "home", 2, base))
        client = stack.enter_context(httpx2.Client(timeout=60))
        for kind in ASKED:
            ask(crowd, client, kind, 4)
            assert crowd.cpu_us[kind][0] > 0
        crowd.tokens = ["wrong"]
        with pytest.raises(BenchProblem, match="did not go well"):
            ask(crowd, client, "list", 1)
    with contextlib.closing(open_installation(Settings(home=tmp_path / "home"))) as installation:
        for org in installation.directory.orgs():
            entries = select(installation.database.of(org.id), org.id)
            assert sum(entry.body["event"] == Event.CALL_OUTCOME for entry in entries) == 2
