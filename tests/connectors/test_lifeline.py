"""Whatever ends the process that started servers, these end with it, and nothing else does."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from connectors.lifeline import Lifeline

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no process is started on Windows")

SLEEPS = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
HOLDS = """
import subprocess, sys, time
from connectors.lifeline import Lifeline
sleeps = sys.argv[1:]
line = Lifeline()
one, other, free = [subprocess.Popen(sleeps, start_new_session=True) for _ in range(3)]
with line.over(one.pid):
    with line.over(other.pid):
        if True:
            print(one.pid, other.pid, free.pid, line._watch.pid, flush=True)
            if sys.stdin.readline() == "die\\n":
                time.sleep(600)
    print("over", flush=True)
    time.sleep(600)
"""


def there(pid: int) -> bool:
    """Whether it runs; what has ended and nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123 - a line of the kernel's
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ended(pid: int) -> bool:
    until = time.monotonic() + 20
    while there(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def holding(word: str) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A process that holds two of three others over its lifeline; told `leave`, it holds one."""
    holds = subprocess.Popen(
        [sys.executable, "-c", HOLDS, *SLEEPS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pids: list[int] = []
    try:
        with holds:
            assert holds.stdout is not None
            assert holds.stdin is not None
            pids = [int(each) for each in holds.stdout.readline().split()]
            holds.stdin.write(f"{word}\n")
            holds.stdin.flush()
            if word == "leave":
                assert holds.stdout.readline() == "over\n"
            yield holds, pids
            holds.kill()
    finally:
        for pid in pids:
            if there(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_held_ends_with_a_killed_holder_and_what_is_not_stays(how: signal.Signals) -> None:
    with holding("die") as (holds, (one, other, free, watch)):
        holds.send_signal(how)
        assert ended(one)
        assert ended(other)
        assert ended(watch), "and the watch is gone with its work"
        assert there(free)


def test_what_was_let_go_is_not_ended_any_more() -> None:
    with holding("leave") as (holds, (one, other, _free, _watch)):
        holds.kill()
        assert ended(one)
        assert there(other)


def watch_of(line: Lifeline) -> "subprocess.Popen[bytes]":
    assert line._watch is not None
    return line._watch


def killed(line: Lifeline) -> "subprocess.Popen[bytes]":
    """The watch, which somebody has killed."""
    watch = watch_of(line)
    watch.kill()
    watch.wait()
    return watch


def let_go(line: Lifeline) -> "subprocess.Popen[bytes]":
    """The watch, which is told no more, as if this process had ended."""
    watch = watch_of(line)
    assert watch.stdin is not None
    watch.stdin.close()
    return watch


def test_a_watch_that_was_killed_is_begun_anew_with_all_that_is_held() -> None:
    line = Lifeline()
    with subprocess.Popen(SLEEPS, start_new_session=True) as one:
        with line.over(one.pid):
            first = killed(line)
            with subprocess.Popen(SLEEPS, start_new_session=True) as two, line.over(two.pid):
                second = let_go(line)
                assert second is not first
                assert (one.wait(20), two.wait(20)) == (-signal.SIGKILL, -signal.SIGKILL)
                assert second.wait(20) == 0
        line.close()


def test_nothing_is_begun_where_nothing_is_held() -> None:
    line = Lifeline()
    line.close()
    assert line._watch is None


def test_a_watch_that_stands_still_holds_up_no_end() -> None:
    """A server runs as the same user, and can stop it."""
    line = Lifeline()
    with subprocess.Popen(SLEEPS, start_new_session=True) as one:
        with line.over(one.pid):
            watch = watch_of(line)
            watch.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        line.close()
        assert time.monotonic() - began < 10
        assert watch.returncode is not None
        one.kill()


def test_nothing_is_held_of_what_could_not_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    line = Lifeline()
    with monkeypatch.context() as patch:
        patch.setattr("connectors.lifeline.subprocess.Popen", none)
        with pytest.raises(OSError, match="no more"), line.over(1234567):
            pytest.fail("it is not begun")
    assert line._groups == set()


def test_a_watch_that_was_killed_is_begun_anew_before_anything_else_begins() -> None:
    line = Lifeline()
    with subprocess.Popen(SLEEPS, start_new_session=True) as one:
        with line.over(one.pid):
            first = killed(line)
            line.look()
            second = let_go(line)
            assert second is not first
            assert one.wait(20) == -signal.SIGKILL
        line.look()
        line.close()
