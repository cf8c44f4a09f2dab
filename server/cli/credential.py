"""Take a credential from a person, a pipe, or a place that they name; never from an argument.

Arguments stay in the shell's history and can be read by every process of the machine. What is taken is never shown
again: no message here quotes it, or any part of it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from connectors.definition import CredentialKind, Field
from server.cli.terminal import ask_hidden, ask_hidden_lines, ask_line
from server.connections import ConnectionProblem
from server.credential import parse_fields
from vault import Resolver, Secret, to_reference
from vault.hostfile import read_file
from vault.references import FORMS, MAX_BYTES

OPTIONS = f"Give it with `--secret-stdin`, or name where it is: `--secret-from` with one of {FORMS}."


@dataclass(frozen=True)
class Given:
    """What was given: `fields` to try it with, and `sealed` to keep, which is the same or a reference to them."""

    fields: Secret
    sealed: Secret


def require_one_way(*, stdin: bool, reference: str | None, copy: bool) -> None:
    """Refuse options that contradict each other, before anything is read."""
    if stdin and reference is not None:
        raise typer.BadParameter("Give --secret-stdin or --secret-from, not both.")
    if copy and reference is None:
        raise typer.BadParameter("--copy goes with --secret-from: it stores what is found there now.")


def take(kind: CredentialKind, *, stdin: bool, reference: str | None, copy: bool, resolver: Resolver) -> Given:
    """A credential of this kind: from standard input, from where a reference leads, else asked for one by one.

    Raises ConnectionProblem, CannotResolve or terminal.NoTerminal; what was given is checked for its form only.
    """
    if kind.scheme == "none":
        if stdin or reference is not None:
            raise ConnectionProblem("The server needs no credential: leave the option out.")
        nothing = Secret({field.name: field.name for field in kind.fields})
        return Given(nothing, nothing)
    if reference is not None:
        pointer = to_reference(reference)
        with resolver.resolve(pointer) as found:
            fields = parse_fields(kind, found)
        return Given(fields, fields if copy else pointer)
    fields = parse_fields(kind, from_stdin()) if stdin else _asked_for(kind)
    return Given(fields, fields)


def _asked_for(kind: CredentialKind) -> Secret:
    given = {field.name: _asked_field(kind, field) for field in kind.fields}
    return Secret({field.name: given[field.name] for field in kind.fields if given[field.name] or not field.optional})


def _asked_field(kind: CredentialKind, field: Field) -> str:
    if field.lines:
        return _file_or_its_path(_asked(kind, field))
    none = " (nothing, if there is none)" if field.optional else ""
    return (ask_hidden if field.secret else ask_line)(f"{_asked(kind, field)}{none}: ", otherwise=OPTIONS).strip()


def _file_or_its_path(what: str) -> str:
    """A key file, pasted whole; or what is in the file whose path was given in its place."""
    text = ask_hidden_lines(
        f"{what}: paste it whole, or give the path of its file (nothing is shown): ", whole=_is_whole, otherwise=OPTIONS
    )
    if text.lstrip().startswith(_BEGINNINGS):
        return text
    content = read_file(Path(text.strip()).expanduser(), f"The file of the {what}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConnectionProblem(f"The file of the {what} is not text.") from None


_BEGINNINGS = ("-----BEGIN", "{")


def _is_whole(text: str) -> bool:
    """Whether a paste has come to its end: a path is one line, PEM ends with its END, and JSON with its last brace."""
    begun = text.strip()
    if begun.startswith("{"):
        return begun.endswith("}") and begun.count("{") == begun.count("}")
    return not begun.startswith("-----BEGIN") or (begun.endswith("-----") and "-----END" in begun)


def _asked(kind: CredentialKind, field: Field) -> str:
    return kind.label if field.label == kind.label else f"{kind.label}, {field.label}"


def from_stdin(option: str = "--secret-stdin") -> Secret:
    """What standard input holds, as the field `secret`; it is never a terminal. Raises ConnectionProblem."""
    if sys.stdin.isatty():
        raise ConnectionProblem(f"Standard input is the terminal, which would show it. Leave {option} out.")
    raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    long = len(raw) > MAX_BYTES
    del raw  # from here on a traceback that prints locals finds no secret
    if long:
        del text
        raise ConnectionProblem(f"Standard input is longer than {MAX_BYTES} bytes, which no credential is.")
    if text is None:
        raise ConnectionProblem("Standard input is not UTF-8 text.")
    return Secret({"secret": text})
