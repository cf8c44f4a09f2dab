"""Put a secret into a request, at the moment of sending; each scheme is one class.

What comes back is every secret string that now stands in the request, raw or derived, so that none of them can come
back from the upstream unscrubbed. A secret that would change the shape of a request is refused, and never quoted.
"""

import base64
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from connectors.definition import CredentialKind, Field, SchemeName
from connectors.errors import CredentialMalformed
from connectors.request import Prepared
from connectors.sigv4 import Account, signed

MAX_SECRET = 16 * 1024  # characters

_VISIBLE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MEND = "Whoever connected the account has to enter it again."


class Revealing(Protocol):
    """A secret, seen from this room."""

    @property
    def fields(self) -> tuple[str, ...]: ...

    def reveal(self, field: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Sending:
    """What a signature covers: the request that is about to leave, and when that is, in seconds since the epoch."""

    request: Prepared
    at: float


class Scheme(Protocol):
    """One way in which a secret enters a request."""

    def apply(
        self,
        headers: dict[str, str],
        query: list[tuple[str, str]],
        kind: CredentialKind,
        secret: Revealing,
        sending: Sending | None,
    ) -> tuple[str, ...]:
        """Add the authentication; return every secret string in it. Raises CredentialMalformed.

        Only what signs looks at `sending`.
        """
        ...


class InHeader:
    """`Authorization: Bearer SECRET`, or the secret in a header of the connector's own."""

    def apply(
        self,
        headers: dict[str, str],
        query: list[tuple[str, str]],
        kind: CredentialKind,
        secret: Revealing,
        sending: Sending | None,
    ) -> tuple[str, ...]:
        value = _visible(secret.reveal("secret"))
        _put(headers, kind.name, kind.prefix + value)
        return (value,)


class InQuery:
    """`?name=SECRET`, for the upstreams that take nothing better."""

    def apply(
        self,
        headers: dict[str, str],
        query: list[tuple[str, str]],
        kind: CredentialKind,
        secret: Revealing,
        sending: Sending | None,
    ) -> tuple[str, ...]:
        value = _visible(secret.reveal("secret"))
        if any(name == kind.name for name, _ in query):
            raise CredentialMalformed("The request already has a query parameter where the credential belongs.")
        query.append((kind.name, value))
        return (value,)


class Basic:
    """RFC 7617, in UTF-8: the fields `user` and `password`, of which a connector may leave one out."""

    def apply(
        self,
        headers: dict[str, str],
        query: list[tuple[str, str]],
        kind: CredentialKind,
        secret: Revealing,
        sending: Sending | None,
    ) -> tuple[str, ...]:
        values = {field.name: _printable(secret.reveal(field.name)) for field in kind.fields}
        user, password = values.get("user", ""), values.get("password", "")
        if ":" in user:
            raise CredentialMalformed(f"The user name of this connection holds a colon. {_MEND}")
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        _put(headers, "Authorization", f"Basic {pair}")
        return (pair, *(values[field.name] for field in kind.fields if field.secret))


class NotInRequest:
    """The secret of a server that is started stands in its environment; one that needs none has none."""

    def apply(
        self,
        headers: dict[str, str],
        query: list[tuple[str, str]],
        kind: CredentialKind,
        secret: Revealing,
        sending: Sending | None,
    ) -> tuple[str, ...]:
        if kind.scheme != "none":
            raise CredentialMalformed(f"{kind.label} is no credential that a request can carry. {_MEND}")
        return ()


def environment(kind: CredentialKind, secret: Revealing) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables that a server which is started gets of a credential, and every secret string in them."""
    if kind.scheme == "none":
        return {}, ()
    values = {field.name: _printable(secret.reveal(field.name)) for field in kind.fields if field.variable}
    secrets = tuple(values[field.name] for field in kind.fields if field.variable and field.secret)
    return {field.variable: values[field.name] for field in kind.fields if field.variable}, secrets


class AwsSigV4:
    """AWS Signature Version 4, made anew for each sending; the secret access key itself never leaves."""

    def apply(
        self,
        headers: dict[str, str],
        query: list[tuple[str, str]],
        kind: CredentialKind,
        secret: Revealing,
        sending: Sending | None,
    ) -> tuple[str, ...]:
        assert sending is not None  # noqa: S101 - for the type checker: whoever sends says what
        values = {name: _visible(secret.reveal(name)) for name in secret.fields if secret.reveal(name)}
        account = Account(
            access_key_id=values["access_key_id"],
            secret_access_key=values["secret_access_key"],
            region=kind.region or values["region"],
            service=kind.service,
            session_token=values.get("session_token", ""),
        )
        outcome = signed(sending.request, headers, account, at=sending.at)
        for name, value in outcome.headers.items():
            _put(headers, name, value)
        return outcome.secrets


SCHEMES: Mapping[SchemeName, Scheme] = {
    "bearer": InHeader(),
    "header": InHeader(),
    "query": InQuery(),
    "basic": Basic(),
    "aws_sigv4": AwsSigV4(),
    "env": NotInRequest(),
    "none": NotInRequest(),
}

Attach = Callable[[dict[str, str], list[tuple[str, str]]], tuple[str, ...]]


def attaching(
    kind: CredentialKind, secret: Revealing, request: Prepared | None = None, *, clock: Callable[[], float] = time.time
) -> Attach:
    """What egress calls, with the headers and query of the final request, to authenticate it: anew for each try.

    A scheme that signs needs the `request` that is sent, and the time by `clock`.
    """
    scheme = SCHEMES[kind.scheme]

    def attach(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
        return scheme.apply(headers, query, kind, secret, Sending(request, clock()) if request else None)

    return attach


def check(kind: CredentialKind, fields: Mapping[str, str]) -> tuple[str, ...]:
    """Look at a credential as it is entered; returns what to warn of, raises CredentialMalformed for what cannot work.

    A value that does not look as expected is only warned of: vendors change their prefixes. Neither the warnings nor
    the error hold any of the values.
    """
    known = {field.name: field for field in kind.fields}
    for name in fields:
        if name not in known:
            raise CredentialMalformed(f"{kind.label} has no field {name!r}; it has {', '.join(known)}.")
    for name, field in known.items():
        if name not in fields:
            if field.optional:
                continue
            raise CredentialMalformed(f"{kind.label} needs {field.label!r} (field {name!r}).")
        _check_field(kind, field, fields[name])
    return tuple(text for name, field in known.items() if name in fields for text in _warnings(field, fields[name]))


def recognise(kinds: Sequence[CredentialKind], fields: Mapping[str, str]) -> CredentialKind | None:
    """The first kind that these values look like, else the first that has these fields, else None."""
    fitting = [kind for kind in kinds if _fits(kind, set(fields))]
    for kind in fitting:
        if all(_looks_like(field, fields[field.name]) for field in kind.fields if field.name in fields):
            return kind
    return fitting[0] if fitting else None


def _fits(kind: CredentialKind, names: set[str]) -> bool:
    all_of_it = {field.name for field in kind.fields}
    return names <= all_of_it and all(field.optional or field.name in names for field in kind.fields)


def _check_field(kind: CredentialKind, field: Field, value: str) -> None:
    what = f"What was given as {field.label}"
    if field.lines:
        if not value.strip() or len(value) > MAX_SECRET:
            wrong = "empty" if not value.strip() else f"longer than {MAX_SECRET} characters"
            raise CredentialMalformed(f"{what} is {wrong}.")
    elif kind.scheme in ("basic", "env", "none"):
        _printable(value, what=what, mend="Enter it again.")
    else:
        _visible(value, what=what, mend="Enter it again.")


def _looks_like(field: Field, value: str) -> bool:
    return not field.pattern or re.search(field.pattern, value) is not None


def _warnings(field: Field, value: str) -> Iterator[str]:
    if not _looks_like(field, value):
        yield f"This does not look like {field.label}: one matches {field.pattern}"
    for pattern, text in field.warnings:
        if re.search(pattern, value):
            yield text


def _put(headers: dict[str, str], name: str, value: str) -> None:
    if name.lower() in (given.lower() for given in headers):
        raise CredentialMalformed(f"The request already has a header {name}, where the credential belongs.")
    headers[name] = value


def _visible(value: str, *, what: str = "The credential", mend: str = _MEND) -> str:
    _printable(value, what=what, mend=mend)
    if not _VISIBLE.fullmatch(value):
        raise CredentialMalformed(f"{what} holds characters outside ASCII, or spaces at its ends. {mend}")
    return value


def _printable(value: str, *, what: str = "The credential", mend: str = _MEND) -> str:
    if not value:
        raise CredentialMalformed(f"{what} is empty. {mend}")
    if len(value) > MAX_SECRET:
        raise CredentialMalformed(f"{what} is longer than {MAX_SECRET} characters. {mend}")
    if _CONTROL.search(value):
        raise CredentialMalformed(f"{what} holds a line break or another control character. {mend}")
    return value
