"""Read the credentials of a connector file: where each stands in a request, and which fields a person enters.

No credential can stand where another header of Keyleash's stands, and each has a field that is secret.
"""

import re
from typing import cast

from connectors import fileformat as keys
from connectors.arguments import RESERVED_HEADERS, check_header
from connectors.definition import CredentialKind, Field, OAuth, SchemeName
from connectors.oauthblock import fields_of_app, read_oauth
from connectors.sigv4 import HEADERS as SIGNATURE_HEADERS
from connectors.source import Spot
from connectors.wrapping import check_variable

HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,510}[\x21-\x7e])?")
_AWS_NAME = re.compile(keys.AWS_NAME_PATTERN)

NOTHING = CredentialKind(
    id="none",
    label="Nothing",
    help="The server asks for no credential.",
    scheme="none",
    fields=(Field(name="nothing", label="Nothing", secret=False),),
)
"""What an account of a wrapped server is connected with that needs no credential."""


def read_credentials(spot: Spot | None, form: keys.Form, *, started: bool) -> tuple[CredentialKind, ...]:
    if spot is None:
        return (NOTHING,)
    return tuple(_credential(name, one, form, started=started) for name, one in spot.named("Credentials").items())


def _credential(identifier: str, spot: Spot, form: keys.Form, *, started: bool) -> CredentialKind:
    block = spot.block("A credential", form.credential, keys.required(form.credential))
    schemes: list[str] = form.credential["scheme"].schema["enum"]
    known = [name for name in schemes if (name == "env") is started]
    scheme = cast("SchemeName", block["scheme"].one_of("The scheme", known))
    label = block["label"].text("The label")
    oauth = read_oauth(block["oauth"], scheme) if "oauth" in block else None
    service, region = _aws(scheme, block, spot)
    return CredentialKind(
        id=identifier,
        label=label,
        help=block["help"].text("The help"),
        scheme=scheme,
        name=_credential_name(scheme, block, spot),
        prefix=_prefix(scheme, block),
        fields=_fields_of_oauth(oauth, block) if oauth else _fields(scheme, label, block, spot, form),
        oauth=oauth,
        service=service,
        region=region,
    )


def headers_of(kind: CredentialKind) -> tuple[str, ...]:
    """Where the credential stands, or what signs with it, in lower case."""
    if kind.scheme == "aws_sigv4":
        return tuple(name.lower() for name in SIGNATURE_HEADERS)
    return (kind.name.lower(),) if kind.scheme == "header" else ()


def _aws(scheme: SchemeName, block: dict[str, Spot], spot: Spot) -> tuple[str, str]:
    """Service and region of a signature; of others, nothing."""
    named = {key: block[key].matching(f"The {key}", _AWS_NAME, "As in its endpoint.") for key in _AWS if key in block}
    for key in named if scheme != "aws_sigv4" else ():
        block[key].fail(f"The scheme {scheme!r} has no {key}.", "Remove it.")
    if scheme == "aws_sigv4" and "service" not in named:
        spot.fail("The scheme 'aws_sigv4' needs its service.", "Add `service:`, for instance `secretsmanager`.")
    return named.get("service", ""), named.get("region", "")


_AWS = ("service", "region")
_AWS_FIELDS = (
    Field(name="access_key_id", label="access key id", secret=False, pattern="^A[KS]IA[A-Z0-9]{12,}$"),
    Field(name="secret_access_key", label="secret access key"),
)
_AWS_REGION = Field(name="region", label="region", secret=False, pattern="^[a-z]{2,}(-[a-z]+)+-[0-9]$")
_AWS_TOKEN = Field(name="session_token", label="session token of temporary credentials", optional=True)


def _fields_of_oauth(oauth: OAuth, block: dict[str, Spot]) -> tuple[Field, ...]:
    for key in ("fields", "pattern", "warnings"):
        if key in block:
            block[key].fail(f"Nobody enters a token that OAuth gives, so {key!r} means nothing.", "Remove it.")
    return fields_of_app(oauth)


def _credential_name(scheme: SchemeName, block: dict[str, Spot], spot: Spot) -> str:
    if scheme in ("bearer", "basic", "aws_sigv4"):
        if "name" in block:
            block["name"].fail(f"The scheme {scheme!r} always stands in Authorization.", "Remove the name.")
        return "Authorization"
    if scheme == "env" and "fields" in block:
        if "name" in block:
            block["name"].fail("With fields, each has its `variable`.", "Remove the name.")
        return ""
    if "name" not in block:
        spot.fail(f"The scheme {scheme!r} needs the name of its {scheme}.", "Add `name:`.")
    name = block["name"].text("The name")
    if scheme == "env":
        return check_variable(block["name"])
    if scheme == "header":
        check_header(name, block["name"], RESERVED_HEADERS - {"authorization"})  # for a key that stands there bare
    return name


def _prefix(scheme: SchemeName, block: dict[str, Spot]) -> str:
    if "prefix" not in block:
        return "Bearer " if scheme == "bearer" else ""
    if scheme not in ("bearer", "header"):
        block["prefix"].fail(f"The scheme {scheme!r} takes no prefix.", "Remove it.")
    prefix = block["prefix"].matching("The prefix", HEADER_VALUE, "Use visible ASCII only.")
    return prefix if prefix.endswith("=") else f"{prefix} "


def _fields(scheme: SchemeName, label: str, block: dict[str, Spot], spot: Spot, form: keys.Form) -> tuple[Field, ...]:
    if scheme == "aws_sigv4":
        for key in ("fields", "pattern", "warnings"):
            if key in block:
                block[key].fail(f"What signs for AWS is always the same, and {key!r} means nothing.", "Remove it.")
        return (*_AWS_FIELDS, *(() if "region" in block else (_AWS_REGION,)), _AWS_TOKEN)
    if "fields" not in block:
        if scheme == "basic":
            spot.fail("The scheme 'basic' needs its fields.", "Add `fields:` with `user:`, `password:` or both.")
        variable = block["name"].text("The name") if scheme == "env" else ""
        pattern, warnings = _regex(block.get("pattern")), _warnings(block)
        return (Field(name="secret", label=label, pattern=pattern, warnings=warnings, variable=variable),)
    for key in ("pattern", "warnings"):
        if key in block:
            block[key].fail(f"With fields, {key!r} belongs to each of them.", "Move it there.")
    expected = ("user", "password") if scheme == "basic" else ("secret",)
    fields: list[Field] = []
    for name, value in block["fields"].named("Fields").items():
        if name not in expected and scheme != "env":
            value.fail(f"The scheme {scheme!r} has no field {name!r}.", f"Known: {', '.join(expected)}.")
        part = value.block("A field", form.credential_field, keys.required(form.credential_field))
        if ("variable" in part) is not (scheme == "env"):
            value.fail(
                "With the scheme 'env', and with no other, a field has its `variable`.", "Change one of the two."
            )
        fields.append(
            Field(
                name=name,
                label=part["label"].text("The label"),
                secret=part["secret"].flag("Secret") if "secret" in part else True,
                pattern=_regex(part.get("pattern")),
                warnings=_warnings(part),
                variable=check_variable(part["variable"]) if "variable" in part else "",
            )
        )
    if not any(field.secret for field in fields):
        block["fields"].fail("No field is secret.", "A credential needs one.")
    return tuple(fields)


def _regex(spot: Spot | None) -> str:
    if spot is None:
        return ""
    text = spot.text("The pattern")
    _check_regex(text, spot)
    return text


def _check_regex(text: str, spot: Spot) -> None:
    try:
        re.compile(text)
    except re.error as error:
        spot.fail(f"{text!r} is not a regular expression: {error}.")


def _warnings(block: dict[str, Spot]) -> tuple[tuple[str, str], ...]:
    if "warnings" not in block:
        return ()
    warnings = block["warnings"].mapping("Warnings")
    for pattern, spot in warnings.items():
        _check_regex(pattern, spot)
    return tuple((pattern, spot.text("A warning")) for pattern, spot in warnings.items())
