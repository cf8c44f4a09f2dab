"""A connection's credential, of the right form and in hand: as it is stored, or read from where a reference says.

Whether it is a reference is said by what was sealed; the connection's row only repeats it, and must agree. No message
here quotes a secret, and nothing is raised from a frame that holds one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import cast

from connectors.auth import check, recognise
from connectors.definition import CredentialKind, Field
from connectors.errors import CredentialMalformed
from connectors.signed import SIGNED
from server.connections import Connection, ConnectionProblem
from server.settings import Settings
from vault import STORED, CannotOpen, CannotResolve, Resolver, Secret, source_of
from vault.references import TOKEN_FIELD

SHORTEST_SECRET = 8
"""A shorter secret could not be scrubbed from answers without tearing holes into ordinary words."""


def resolver_of(settings: Settings) -> Resolver:
    """What resolves references with these settings."""
    return Resolver(
        home=settings.home,
        seconds=settings.reference_seconds,
        op_token_file=settings.op_token_file,
        kv_address=settings.kv_address,
        kv_token_file=settings.kv_token_file,
        kv_ca_file=settings.kv_ca_file,
    )


def is_reference(connection: Connection, sealed: Secret) -> bool:
    """Whether what was sealed for the connection names a place, rather than being the credential.

    CannotOpen where the connection's row says otherwise: it was changed behind Keyleash's back.
    """
    if source_of(sealed) != connection.source:
        raise CannotOpen
    return connection.source != STORED


def stays_elsewhere(connection: Connection, kind: CredentialKind, sealed: Secret) -> bool:
    """Whether what a call sends has to be read from where it stays. Raises CannotOpen as `is_reference` does.

    A token is sealed beside the reference to what it was had with; that is read when a token is needed.
    """
    if not is_reference(connection, sealed):
        return False
    if (TOKEN_FIELD in sealed.fields) is (kind.oauth is None):
        raise CannotOpen
    return kind.oauth is None


def resolved(resolver: Resolver, kind: CredentialKind, reference: Secret) -> Secret:
    """The credential that the reference leads to now; wipe it after. Raises CannotResolve, in bounded time.

    It is checked as one that a person gives: what is too short could not be scrubbed from answers.
    """
    with resolver.resolve(reference) as found:
        outcome = _taken_apart(kind, found)
    problem = outcome if isinstance(outcome, str) else _looked_at(kind, outcome)[1]
    if isinstance(outcome, str) or problem:
        raise CannotResolve(f"What the reference leads to is no credential of this connection. {problem}")
    return outcome


def credential(resolver: Resolver, connection: Connection, kind: CredentialKind, sealed: Secret) -> Secret:
    """What a call sends: what was opened, or what it leads to; wipe it after. Raises CannotOpen or CannotResolve."""
    return resolved(resolver, kind, sealed) if stays_elsewhere(connection, kind, sealed) else sealed


def parse_fields(kind: CredentialKind, given: Secret) -> Secret:
    """The fields of a credential from one text (the field `secret`). Raises ConnectionProblem.

    One field: the text without the line's end. Several: a JSON object, or one line for each, in their order, of which
    a key file as the last takes all that are left; or the file itself that a provider gives.
    """
    outcome = _taken_apart(kind, given)
    if isinstance(outcome, str):
        raise ConnectionProblem(outcome)
    return outcome


def check_fields(kind: CredentialKind, fields: Secret) -> list[str]:
    """Refuse a credential of the wrong shape; returns warnings for the person. Raises ConnectionProblem."""
    warnings, problem = _looked_at(kind, fields)
    if problem:
        raise ConnectionProblem(problem)
    return warnings


def recognised(kinds: Sequence[CredentialKind], fields: Secret) -> CredentialKind | None:
    """The first kind that these values look like, else the first that has these fields, else None."""
    return recognise(kinds, {name: fields.reveal(name) for name in fields.fields})


def _looked_at(kind: CredentialKind, fields: Secret) -> tuple[list[str], str | None]:
    """What to warn of, and what is wrong."""
    values = {name: fields.reveal(name) for name in fields.fields}
    try:
        warnings = list(check(kind, values))
    except CredentialMalformed as error:
        return [], str(error)
    for wanted in kind.fields:
        if wanted.secret and wanted.name in values and len(values[wanted.name]) < SHORTEST_SECRET:
            return warnings, (
                f"{wanted.label} is shorter than {SHORTEST_SECRET} characters: that is not a whole key. {kind.help}"
            )
    return warnings, None


def _taken_apart(kind: CredentialKind, given: Secret) -> Secret | str:
    """The fields, or why there are none."""
    names = [field.name for field in kind.fields]
    text = given.reveal().removeprefix("\ufeff").rstrip("\r\n")
    if len(names) == 1:
        return Secret({names[0]: text})
    file = SIGNED[kind.oauth.grant].taken_apart(text) if kind.oauth and kind.oauth.signed else None
    if file is not None:
        return Secret(file)
    wanted = f"{kind.label} has the fields {_named(kind.fields)}: give one JSON object with them, or one line for each."
    if text.lstrip().startswith("{"):
        return _from_object(kind.fields, text, wanted)
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if kind.fields[-1].lines:
        lines = [*lines[: len(names) - 1], "\n".join(lines[len(names) - 1 :])]
    required = sum(not field.optional for field in kind.fields)
    if not required <= len(lines) <= len(names):
        return f"{len(lines)} lines were given. {wanted}"
    return Secret(_without_empty(kind.fields, dict(zip(names, lines, strict=False))))


def _named(fields: Sequence[Field]) -> str:
    return ", ".join(f"{field.name} (may be left out)" if field.optional else field.name for field in fields)


def _without_empty(fields: Sequence[Field], values: Mapping[str, str]) -> dict[str, str]:
    """An optional field that was given as nothing was not given."""
    optional = {field.name for field in fields if field.optional}
    return {name: value for name, value in values.items() if value or name not in optional}


def _from_object(known: Sequence[Field], text: str, wanted: str) -> Secret | str:
    try:
        given: object = json.loads(text)
    except (ValueError, RecursionError):
        return f"That begins like JSON and is none. {wanted}"
    fields = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    required = {field.name for field in known if not field.optional}
    if not required <= set(fields) <= {field.name for field in known} or not all(
        isinstance(value, str) for value in fields.values()
    ):
        return f"The JSON object does not have exactly these fields, each a text. {wanted}"
    return Secret(_without_empty(known, {name: str(value) for name, value in fields.items()}))
