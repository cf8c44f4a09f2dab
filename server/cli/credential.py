"""Take a credential from a person, a pipe, or a place that they name; never from an argument.

Arguments stay in the shell's history and can be read by every process of the machine. What is taken is never shown
again: no message here quotes it, or any part of it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import typer

from connectors.definition import CredentialKind, Field
from server.cli.terminal import ask_hidden, ask_line
from server.connections import ConnectionProblem

MAX_BYTES = 64 * 1024
COMMAND_SECONDS = 30.0

OPTIONS = "Or give it with `--secret-stdin`, or `--secret-from env:NAME|file:PATH|cmd:COMMAND`."


def read_fields(kind: CredentialKind, *, stdin: bool, reference: str | None, home: Path) -> dict[str, str]:
    """The fields of a credential of this kind: from standard input, from a reference, else asked for one by one.

    Raises ConnectionProblem or terminal.NoTerminal; what was given is checked for its form only.
    """
    if stdin and reference is not None:
        raise typer.BadParameter("Give --secret-stdin or --secret-from, not both.")
    if stdin:
        return parse_fields(kind, _from_stdin())
    if reference is not None:
        return parse_fields(kind, resolve(reference, home=home))
    return {
        field.name: (ask_hidden if field.secret else ask_line)(f"{_asked(kind, field)}: ", otherwise=OPTIONS)
        for field in kind.fields
    }


def _asked(kind: CredentialKind, field: Field) -> str:
    return kind.label if field.label == kind.label else f"{kind.label}, {field.label}"


def parse_fields(kind: CredentialKind, text: str) -> dict[str, str]:
    """One field: the text without the line's end. Several: a JSON object, or one line for each, in their order."""
    names = [field.name for field in kind.fields]
    text = text.removeprefix("\ufeff").rstrip("\r\n")
    if len(names) == 1:
        return {names[0]: text}
    wanted = f"{kind.label} has the fields {', '.join(names)}: give one JSON object with them, or one line for each."
    if text.lstrip().startswith("{"):
        return _from_object(names, text, wanted)
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if len(lines) != len(names):
        raise ConnectionProblem(f"{len(lines)} lines were given. {wanted}")
    return dict(zip(names, lines, strict=True))


def resolve(reference: str, *, home: Path) -> str:
    """What `env:NAME`, `file:PATH` or `cmd:COMMAND` holds at this moment. Raises ConnectionProblem."""
    scheme, colon, where = reference.partition(":")
    if not colon or not where or scheme not in REFERENCES:
        raise ConnectionProblem(
            "--secret-from takes a reference to a secret, never the secret itself: env:NAME, file:PATH or cmd:COMMAND."
        )
    return REFERENCES[scheme](where, home)


def _from_environment(name: str, _home: Path) -> str:
    value = os.environ.get(name)
    if not value:
        # The name is not repeated: somebody may have put the secret where its name belongs.
        raise ConnectionProblem("The environment variable that --secret-from names is not set, or is empty.")
    return value


def _from_file(name: str, home: Path) -> str:
    path = Path(name).expanduser()
    try:
        if path.resolve().is_relative_to(home.resolve()):
            raise ConnectionProblem(f"{path} is in Keyleash's own folder, which no credential may point into.")
        if not path.is_file():
            raise ConnectionProblem("The file that --secret-from names does not exist, or is not a regular file.")
        with path.open("rb") as file:
            return _text(file.read(MAX_BYTES + 1), "The file")
    except OSError as error:
        raise ConnectionProblem(f"The file that --secret-from names cannot be read: {error.strerror}.") from None


def _from_command(command: str, _home: Path) -> str:
    """Run a command without a shell and take its standard output; what it says elsewhere goes nowhere."""
    import shlex

    try:
        words = shlex.split(command)
    except ValueError:
        raise ConnectionProblem("The command that --secret-from names has a quote that is not closed.") from None
    try:
        running = subprocess.Popen(  # noqa: S603 - the operator's own command, without a shell
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError, IndexError) as error:
        why = getattr(error, "strerror", None) or "it is empty"
        raise ConnectionProblem(f"The command that --secret-from names cannot be run: {why}.") from None
    return _output_of(running)


def _output_of(running: "subprocess.Popen[bytes]", seconds: float | None = None) -> str:
    seconds = COMMAND_SECONDS if seconds is None else seconds
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill(running)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        with running:
            output = cast("Any", running.stdout).read(MAX_BYTES + 1)
            if len(output) > MAX_BYTES:
                _kill(running)
            code = running.wait()
    finally:
        timer.cancel()
    if late.is_set():
        raise ConnectionProblem(f"The command that --secret-from names did not end within {seconds:g} seconds.")
    text = _text(output, "What the command printed")
    if code != 0:
        raise ConnectionProblem(f"The command that --secret-from names failed with exit code {code}.")
    return text


def _kill(running: "subprocess.Popen[bytes]") -> None:
    """The command and whatever it started."""
    try:
        if sys.platform == "win32":
            running.kill()
        else:
            os.killpg(running.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


REFERENCES: dict[str, Callable[[str, Path], str]] = {
    "env": _from_environment,
    "file": _from_file,
    "cmd": _from_command,
}


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise ConnectionProblem("Standard input is the terminal, which would show it. Leave --secret-stdin out.")
    return _text(sys.stdin.buffer.read(MAX_BYTES + 1), "Standard input")


def _text(raw: bytes, what: str) -> str:
    if len(raw) > MAX_BYTES:
        raise ConnectionProblem(f"{what} is longer than {MAX_BYTES} bytes, which no credential is.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConnectionProblem(f"{what} is not UTF-8 text.") from None


def _from_object(names: Sequence[str], text: str, wanted: str) -> dict[str, str]:
    try:
        given: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ConnectionProblem(f"That begins like JSON and is none. {wanted}") from None
    fields = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    if set(fields) != set(names) or not all(isinstance(value, str) for value in fields.values()):
        raise ConnectionProblem(f"The JSON object does not have exactly these fields, each a text. {wanted}")
    return {name: str(fields[name]) for name in names}
