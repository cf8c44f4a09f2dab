"""The demo does what it says, ends well, and shows no key."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from server.cli.demo import _at_the_terminal  # pyright: ignore[reportPrivateUsage]


def demo(tmp_path: Path, *options: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from server.cli import main; main()", "demo", *options],
        input=typed,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.slow
def test_the_scene_is_told_to_its_end_and_leaves_nothing_behind(tmp_path: Path) -> None:
    told = demo(tmp_path, "--no-input")
    assert told.returncode == 0, told.stdout + told.stderr
    for line in [
        "Refunds sent to Stripe: 0",
        "Refunds sent to Stripe: 1",
        "still 1",
        "In none of",
        "Intact:",
        "Altered. First bad entry: ",
        "Simulated: Stripe",
    ]:
        assert line in told.stdout
    (connect,) = (line for line in told.stdout.splitlines() if "keyleash connect stripe" in line)
    assert connect.endswith("--allow-private 127.0.0.1/32"), "in a pipe nothing is folded"
    assert "rk_test_" not in told.stdout + told.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_person_who_only_denies_sends_nothing(tmp_path: Path) -> None:
    told = demo(tmp_path, typed="what?\nd\n")
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("Nobody is at this terminal, so the demo answers: deny") == 1, "the pipe has ended"
    assert told.stdout.count("Refunds sent to Stripe: 0") == 2
    assert "Approved" not in told.stdout


def test_without_anyone_at_the_terminal_it_answers_itself_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        ask = _at_the_terminal(Console(file=told, width=200))

        async def twice() -> list[str]:
            return [await ask(["approve", "deny"]) for _ in range(2)]

        assert asyncio.run(twice()) == ["deny", "approve"]
    for answer in ["deny", "approve"]:
        assert f"Nobody is at this terminal, so the demo answers: {answer}" in told.getvalue()


@pytest.mark.slow
def test_ctrl_c_at_the_question_ends_it_at_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from server.cli import main; main()", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    told = b""
    while b"then Enter" not in told:
        more = process.stdout.read1(4096)  # type: ignore[attr-defined]
        assert more, told  # it ended, and would never ask
        told += more
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"Traceback" not in rest
    assert b"went wrong" not in rest
    assert list(tmp_path.iterdir()) == []
