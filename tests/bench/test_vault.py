"""The vault's benchmark runs, in a short form, and its bare calls are those that each operation really makes."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.bench.vault import AIM, OPERATIONS, Ground, bench, ground, table

CALLS = ("HKDF.derive", "AESGCM.encrypt", "AESGCM.decrypt")


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Ground]:
    with ground(tmp_path, times=3) as laid:
        yield laid


def calls_of(work: Callable[[], object]) -> Counter[str]:
    """How often each of the cryptographic calls is made, by whomever, as the interpreter itself sees it."""
    seen = Counter[str](dict.fromkeys(CALLS, 0))

    def profile(_frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and getattr(called, "__qualname__", "") in CALLS:
            seen[called.__qualname__] += 1

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_bare_calls_are_those_that_the_operation_makes_and_as_many_as_are_written_down(on: Ground, name: str):
    operation = OPERATIONS[name]
    work, undo = operation.turn(on)
    made = Counter[str]()
    for number in range(on.times):
        made += calls_of(lambda number=number: work(number))
    undo()
    bare = Counter[str]()
    for one in operation.bare:
        call = one.call()
        bare += calls_of(call)
        assert one.derived == (calls_of(call)["HKDF.derive"] == 1)
    assert made == Counter({call: count * on.times for call, count in bare.items()})


def test_what_a_turn_changes_is_undone(on: Ground):
    before = list(on.db.iterdump())
    for operation in OPERATIONS.values():
        work, undo = operation.turn(on)
        for number in range(on.times):
            work(number)
        undo()
        assert list(on.db.iterdump()) == before


def test_it_is_a_file_in_wal_mode_that_is_flushed(on: Ground):
    assert on.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert on.db.execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.mark.slow
def test_opening_a_credential_is_not_far_from_its_bare_calls():
    """The aim is 3, of CPU time, in a long run; twice that here, so that nothing but a change of the code fails it."""
    report = json.loads(json.dumps(bench(rounds=15, times=20)))
    assert report["operations"].keys() == OPERATIONS.keys()
    for name, figures in report["operations"].items():
        assert 0 < figures["lowest"] <= figures["ratio"] <= figures["highest"]
        assert figures["aim"] == (AIM if name in ("open", "open cold") else None)
        if figures["aim"]:
            assert figures["ratio"] <= 2 * AIM, name
    assert "open cold" in table(report)
