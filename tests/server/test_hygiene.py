"""Every command, and the server, run without core dumps and out of other processes' reach."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commandline import CommandLine
from tests.installed import Place

ROOT = Path(__file__).parents[2]
TOLD = """
import atexit, json, sys
from server.hygiene import memory_is_private
atexit.register(lambda: print(json.dumps(memory_is_private()), file=sys.stderr))
from server.cli import main
main()
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="prctl(2) is Linux's; elsewhere only core dumps are off"
)


def told(line: CommandLine, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=line.environment,
        cwd=line.person,
        input=b"",
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.stderr.decode()


def test_a_process_as_it_starts_is_neither() -> None:
    """So that the tests below can fail."""
    code = "import json; from server.hygiene import memory_is_private; print(json.dumps(memory_is_private()))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert '"not readable by other processes": false' in done.stdout


@pytest.mark.parametrize("arguments", [("connector", "list"), ("nonsense",), ("serve", "--agent", "reconciler")])
def test_what_a_process_holds_is_private_to_it(keyleash: CommandLine, place: Place, arguments: tuple[str, ...]) -> None:
    assert place.home == keyleash.home
    assert told(keyleash, TOLD, *arguments).splitlines()[-1] == (
        '{"no core dumps": true, "not readable by other processes": true}'
    )


def test_doctor_says_so(keyleash: CommandLine, place: Place) -> None:
    assert place.home == keyleash.home
    found = keyleash.alone("doctor", "--json").json
    assert [one["status"] for one in found if one["check"] == "memory"] == ["ok"]
