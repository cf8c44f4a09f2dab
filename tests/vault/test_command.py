"""A program of the operator's: what it gets, and that it ends."""

import os
import select
import threading
import time
from pathlib import Path

import pytest

from vault import CannotResolve
from vault.command import SYSTEM_PATH, printed


def run(*words: str, seconds: float = 60.0, most: int = 1000, **more: str) -> bytes:
    return printed(words, what="The command", most=most, seconds=seconds, path=SYSTEM_PATH, more=more)


def ended(process: int) -> bool:
    """Whether this process, which need not be ours, ends within ten seconds."""
    try:
        watched = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watched], [], [], 10)[0])
    finally:
        os.close(watched)


def test_it_inherits_nothing(monkeypatch: pytest.MonkeyPatch):
    for name in (
        "KEYLEASH_HOME",
        "KEYLEASH_KV_TOKEN_FILE",
        "AWS_SECRET_ACCESS_KEY",
        "HOME",
        "LD_PRELOAD",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "/ours")
    monkeypatch.setenv("PATH", "/ours")
    given = dict(line.split("=", 1) for line in run("env", most=10_000).decode().splitlines())
    assert given.keys() == {"PATH", "HOME", "LANG"}
    assert given["PATH"] == SYSTEM_PATH
    assert "/ours" not in given.values()
    assert b"TOKEN=x" in run("env", TOKEN="x")


def test_it_gets_no_descriptor_no_folder_and_no_session_of_ours(tmp_path: Path):
    kept = os.open(tmp_path / "kept", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(kept, True)
    try:
        there = [int(name) for name in run("ls", "/proc/self/fd").split()]
    finally:
        os.close(kept)
    assert kept not in there
    assert len(there) <= 4, "standard streams, and the folder that is listed"
    assert run("pwd") == b"/\n"
    assert run("sh", "-c", "ps -o sid= -p $$").strip() != str(os.getsid(0)).encode()


def test_it_reads_nothing_and_what_it_says_beside_goes_nowhere(capfd: pytest.CaptureFixture[str]):
    assert run("sh", "-c", "cat; echo canary >&2; echo value") == b"value\n"
    assert capfd.readouterr() == ("", "")


def test_it_runs_without_a_shell(tmp_path: Path):
    assert run("echo", f"$HOME; touch {tmp_path}/made") == f"$HOME; touch {tmp_path}/made\n".encode()
    assert not (tmp_path / "made").exists()


def test_one_that_fails_or_cannot_be_run_is_not_quoted():
    with pytest.raises(CannotResolve, match="exit code 3") as failed:
        run("sh", "-c", "echo canary; echo canary >&2; exit 3")
    for words in (["/nowhere/canary"], ["canary-is-no-program"], ["/"], ["a\0canary"]):
        with pytest.raises(CannotResolve, match="cannot be run") as unknown:
            run(*words)
        assert "canary" not in str(unknown.value)
    assert "canary" not in str(failed.value)


def test_one_that_does_not_end_is_stopped_with_all_it_started(tmp_path: Path):
    pid = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(CannotResolve, match="within 3 seconds"):
        run("sh", "-c", f"sleep 60 & echo $! > {pid}; wait", seconds=3)
    assert time.monotonic() - started < 30
    assert ended(int(pid.read_text()))


def test_one_that_has_ended_while_its_child_holds_the_output_is_stopped_too(tmp_path: Path):
    pid = tmp_path / "pid"
    with pytest.raises(CannotResolve, match="within 3 seconds"):
        run("sh", "-c", f"echo value; sleep 60 & echo $! > {pid}", seconds=3)
    assert ended(int(pid.read_text()))


def test_a_child_in_a_session_of_its_own_does_not_hold_us_up(tmp_path: Path):
    pid = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(CannotResolve, match="within 3 seconds"):
        run("sh", "-c", f"setsid sh -c 'echo $$ > {pid}; exec sleep 20'", seconds=3)
    assert time.monotonic() - started < 15
    os.kill(int(pid.read_text()), 9)


def test_one_that_closes_its_output_and_goes_on_is_stopped():
    started = time.monotonic()
    with pytest.raises(CannotResolve, match="within 3 seconds"):
        run("sh", "-c", "exec >&-; exec sleep 60", seconds=3)
    assert time.monotonic() - started < 30


def test_one_that_prints_without_end_is_stopped_at_one_byte_too_many():
    started = time.monotonic()
    assert len(run("yes", most=1000)) == 1001
    assert time.monotonic() - started < 30


def test_what_it_printed_in_pieces_is_had_whole():
    assert run("sh", "-c", "printf a; sleep 0.1; printf b") == b"ab"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_and_no_dead_process_is_left():
    before, others = descriptors(), children()
    for _ in range(5):
        run("true")
        with pytest.raises(CannotResolve):
            run("false")
        with pytest.raises(CannotResolve):
            run("sleep", "60", seconds=0.05)
    assert descriptors() <= before  # another test's may be closed meanwhile
    assert children() <= others


def children() -> set[str]:
    """The processes that this one has started and not waited for: other tests may have some too."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())
