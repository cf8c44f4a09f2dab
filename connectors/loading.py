"""Turn a connector file into a `Connector`, or name the file, the line and the mend.

A file that loads holds no surprise later: every hole has its argument, every schema compiles, every effect is stated or
derived on the strict side, and no argument can take the place of a credential.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import jmespath
import jmespath.exceptions
import jmespath.functions

from connectors import fileformat as keys
from connectors import selecting
from connectors.arguments import RESERVED_HEADERS, Taken, check_header, compiled, read_arguments
from connectors.brief import BRIEFS
from connectors.definition import (
    HOLE,
    Argument,
    BodyStyle,
    Connector,
    CredentialKind,
    Deprecation,
    Effect,
    ErrorShape,
    Field,
    Kind,
    OAuth,
    Operation,
    Pace,
    Quota,
    SchemeName,
    Selector,
    Tool,
    WrappedServer,
    canonical,
)
from connectors.document import Document
from connectors.effects import derive, derive_operation, derive_wrapped, raised, until_reviewed
from connectors.errors import Unsendable
from connectors.layout import Layout, read_layout
from connectors.oauthblock import fields_of_app, read_oauth
from connectors.operations import pinned_document, read_operation_of
from connectors.request import base
from connectors.sigv4 import HEADERS as SIGNATURE_HEADERS
from connectors.source import NAME_MEND, NAME_PATTERN, Spot, read_file, read_text, suggestion
from connectors.variables import read_operation, read_variables
from connectors.wrapping import address_of, check_variable, read_server, read_wrapped

_ID = re.compile(NAME_PATTERN)
_CALL = re.compile(keys.CALL_PATTERN)
_CALL_MEND = "Write `METHOD /path`, for instance `GET /v1/charges/{charge}`."
_ENDPOINT = re.compile(keys.ENDPOINT_PATTERN)
_VARIABLE = re.compile(keys.VARIABLE_PATTERN)
_SEGMENT = re.compile(r"([A-Za-z0-9._~:@-]|\{[a-z][a-z0-9_]*\})+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,510}[\x21-\x7e])?")
_AWS_NAME = re.compile(keys.AWS_NAME_PATTERN)
_DATE = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?")


def load(path: Path) -> Connector:
    """The connector in this file; raises DefinitionError."""
    connector = _connector(read_file(path))
    if path.stem != connector.id:
        Spot(str(path), 1, "").fail(f"The id is {connector.id!r} in a file named {path.name!r}.", "Make them the same.")
    return connector


def parse(text: str, file: str = "connector.yaml") -> Connector:
    """The connector in this text; `file` is what errors call it. Raises DefinitionError."""
    return _connector(read_text(text, file))


def _connector(spot: Spot) -> Connector:
    kind = _kind(spot)
    form = keys.FORMS[kind]
    block = spot.block("A connector", form.connector, keys.required(form.connector))
    identifier = block["id"].matching("The id", _ID, NAME_MEND)
    server = read_server(block, spot) if kind == "mcp" else None
    credentials = _credentials(block.get("credentials"), form, started=bool(server and server.command))
    taken = RESERVED_HEADERS | {name for kind in credentials for name in _headers_of(kind)}
    errors = _errors(block.get("errors"), kind)
    about = _About(
        connector=identifier,
        kind=kind,
        form=form,
        document=pinned_document(block["document"], block["sha256"]) if kind == "openapi" else None,
        endpoint=_endpoint(block.get("endpoint")) if kind == "graphql" else "",
        base_url=address_of(server) if server and server.command else _base_url(block["base_url"]),
        headers=_headers(block.get("headers"), taken),
        body_style=_body_style(block.get("body")),
        idempotency=_idempotency(block.get("idempotency")) if kind != "graphql" else (None, ()),
        idempotency_hours=_idempotency_hours(block.get("idempotency")) if kind != "graphql" else 0,
        key_variable=_key_variable(block.get("idempotency")) if kind == "graphql" else "",
        user_errors=errors.user_errors,
        reviewed="reviewed" in block and block["reviewed"].flag("Reviewed"),
        server=server,
        taken=Taken(taken, frozenset(kind.name for kind in credentials if kind.scheme == "query")),
    )
    verify = block["verify"].block("Verify", form.verify, keys.required(form.verify)) if server is None else {}
    return Connector(
        id=identifier,
        title=block["title"].text("The title"),
        base_url=about.base_url,
        server=server,
        headers=about.headers,
        credentials=credentials if server else _verified_by_themselves(credentials, block["credentials"], about),
        verify=_verify(verify, about) if server is None else _verify_wrapped(about),
        account=_selector(verify.get("account")),
        errors=errors,
        idempotency_header=about.idempotency[0],
        idempotency_methods=about.idempotency[1],
        idempotency_hours=about.idempotency_hours,
        tools={name: _tool(name, tool, about) for name, tool in block["tools"].named("Tools").items()},
        quota=_quota(block.get("quota")),
        limits=STARTED if server and server.transport == "stdio" else _limits(block.get("limits")),
        deprecations=tuple(_deprecation(item) for item in _list(block.get("deprecations"), "Deprecations")),
        reviewed=about.reviewed,
        help=block["help"].text("Help") if "help" in block else "",
        file=spot.file,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What a tool needs to know of the connector around it."""

    connector: str
    kind: Kind
    form: keys.Form
    document: Document | None  # of OpenAPI
    endpoint: str  # of GraphQL; empty for REST
    base_url: str
    headers: tuple[tuple[str, str], ...]
    body_style: BodyStyle
    idempotency: tuple[str | None, tuple[str, ...]]
    idempotency_hours: int
    key_variable: str  # of GraphQL, in place of a header
    user_errors: str
    reviewed: bool
    server: WrappedServer | None
    taken: Taken


def _kind(spot: Spot) -> Kind:
    """What decides which keys the rest may have, and is therefore looked at first."""
    whole = spot.mapping("A connector")
    return cast("Kind", whole["kind"].one_of("The kind", list(keys.FORMS))) if "kind" in whole else "rest"


def _endpoint(spot: Spot | None) -> str:
    if spot is None:
        return ""
    path = spot.matching("The endpoint", _ENDPOINT, "Write its path, for instance `/graphql`.")
    if _check_path(path, spot, "Write its path, for instance `/graphql`."):
        spot.fail("The endpoint has a hole, and nobody to fill it.", "Every operation goes to one path.")
    return path


def _list(spot: Spot | None, what: str) -> list[Spot]:
    return spot.items(what) if spot else []


def _base_url(spot: Spot) -> str:
    text = spot.text("The base URL")
    try:
        address = base(text)
    except Unsendable as error:
        spot.fail(str(error))
    if not address.origin.startswith("https://"):
        spot.fail("The base URL must begin with https://.", "A connection may be pointed at http when it is made.")
    return address.url


def _body_style(spot: Spot | None) -> BodyStyle:
    return cast("BodyStyle", spot.one_of("The body", get_args(BodyStyle))) if spot else "json"


def _headers(spot: Spot | None, taken: frozenset[str]) -> tuple[tuple[str, str], ...]:
    if spot is None:
        return ()
    headers: dict[str, tuple[str, str]] = {}
    for name, value in spot.mapping("Headers").items():
        check_header(name, value, taken)
        if name.lower() in headers:
            value.fail(f"The header {name!r} is there twice.", "Remove one.")
        text = value.matching("A header", _HEADER_VALUE, "Use visible ASCII only.")
        headers[name.lower()] = (name, text)
    return tuple(headers.values())


def _idempotency(spot: Spot | None) -> tuple[str | None, tuple[str, ...]]:
    if spot is None:
        return None, ()
    block = spot.block("Idempotency", keys.IDEMPOTENCY, keys.required(keys.IDEMPOTENCY))
    header = block["header"].text("The header")
    check_header(header, block["header"], RESERVED_HEADERS)
    methods = [
        item.one_of("A method", ["POST", "PUT", "PATCH", "DELETE"]) for item in block["methods"].items("Methods")
    ]
    return header, tuple(methods)


def _idempotency_hours(spot: Spot | None) -> int:
    hours = spot.mapping("Idempotency").get("hours") if spot is not None else None
    if hours is None:
        return 0
    if not isinstance(hours.value, int) or isinstance(hours.value, bool) or not 1 <= hours.value <= 720:
        hours.fail("The hours must be a whole number from 1 to 720.", "Write what the vendor promises.")
    return hours.value


def _key_variable(spot: Spot | None) -> str:
    if spot is None:
        return ""
    block = spot.block("Idempotency", keys.GRAPHQL_IDEMPOTENCY, keys.required(keys.GRAPHQL_IDEMPOTENCY))
    return block["variable"].matching("The variable", _VARIABLE, "Write its name as in the documents, without $.")


def _selector(spot: Spot | None) -> Selector | None:
    if spot is None:
        return None
    text = spot.text("The JMESPath expression")
    try:
        compiled = jmespath.compile(text)
    except jmespath.exceptions.JMESPathError as error:
        reason = " ".join(str(error).split())
        spot.fail(f"This is not JMESPath: {reason}.")
    _check_functions(cast("dict[str, Any]", compiled.parsed), spot)

    search = selecting.compiled(cast("dict[str, Any]", compiled.parsed))

    def find(value: Any) -> Any:
        try:
            return search(value)
        except (ValueError, TypeError, AttributeError, RecursionError):  # JMESPath's own are ValueErrors
            return None

    return Selector(text, find)


def _check_functions(part: Mapping[str, Any], spot: Spot) -> None:
    """JMESPath would find an unknown function, or one with too few arguments, only when an answer comes."""
    if part["type"] == "function_expression":
        table = cast("dict[str, dict[str, Any]]", jmespath.functions.Functions().FUNCTION_TABLE)
        if part["value"] not in table:
            spot.fail(f"JMESPath has no function {part['value']!r}.", f"{suggestion(part['value'], table)}".strip())
        signature = cast("list[dict[str, Any]]", table[part["value"]]["signature"])
        variadic = bool(signature) and bool(signature[-1].get("variadic"))
        given, wanted = len(part["children"]), len(signature)
        if given < wanted or (given > wanted and not variadic):
            spot.fail(f"The JMESPath function {part['value']!r} takes {wanted} arguments, not {given}.")
    for child in cast("list[Any]", part.get("children", [])):
        if isinstance(child, Mapping):
            _check_functions(cast("Mapping[str, Any]", child), spot)


# GraphQL, September 2025, 7.1.2; `code` is what most servers add.
_GRAPHQL_ERRORS = {"message": "errors[0].message", "code": "errors[0].extensions.code"}


def _errors(spot: Spot | None, kind: Kind) -> ErrorShape:
    block = spot.block("Errors", keys.FORMS[kind].errors) if spot else {}
    if kind == "graphql":
        block = {name: Spot("", 1, text) for name, text in _GRAPHQL_ERRORS.items()} | block
    header = block.get("request_id_header")
    if header:
        check_header(header.text("The header"), header, frozenset())
    return ErrorShape(
        message=_selector(block.get("message")),
        code=_selector(block.get("code")),
        request_id=_selector(block.get("request_id")),
        request_id_header=header.text("The header").lower() if header else None,
        ok_field=_selector(block.get("ok")),
        user_errors=block["user_errors"].text("The key") if "user_errors" in block else "",
        limited=_codes(block, "limited"),
        spent=_codes(block, "spent"),
        wait=_seconds(block.get("wait")),
        rejected=_codes(block, "rejected"),
        unclear=_codes(block, "unclear"),
    )


def _seconds(spot: Spot | None) -> float | None:
    if spot is None:
        return None
    if not isinstance(spot.value, int) or isinstance(spot.value, bool) or not 1 <= spot.value <= 3600:
        spot.fail(f"Seconds cannot be {spot.value!r}.", "Give a whole number from 1 to 3600.")
    return float(spot.value)


def _codes(block: Mapping[str, Spot], key: str) -> frozenset[str]:
    if key in block and "code" not in block:
        block[key].fail(f"`{key}:` lists codes, and there is no `code:` that finds one.", "Add `code:`.")
    return frozenset(_texts(block, key))


def _texts(block: Mapping[str, Spot], key: str) -> tuple[str, ...]:
    return block[key].texts(key.capitalize()) if key in block else ()


def _quota(spot: Spot | None) -> tuple[Quota, ...]:
    found: list[Quota] = []
    for name, part in spot.named("Quota").items() if spot else ():
        block = part.block("A quota", keys.QUOTA, keys.required(keys.QUOTA))
        for header in block.values():
            check_header(header.text("The header"), header, frozenset())
        of = block["of"].text("The header").lower() if "of" in block else ""
        found.append(Quota(name, block["left"].text("The header").lower(), of))
    return tuple(found)


STARTED = Pace(concurrent=4)
"""A program that is started for each call: so many of it at once, unless the connection says otherwise."""


def _limits(spot: Spot | None) -> Pace:
    block = spot.block("Limits", keys.LIMITS) if spot else {}
    return Pace(**{name: _count(part, keys.LIMITS[name].schema["maximum"]) for name, part in block.items()})


def _count(spot: Spot, most: int) -> int:
    if not isinstance(spot.value, int) or isinstance(spot.value, bool) or not 1 <= spot.value <= most:
        spot.fail(f"This must be a whole number from 1 to {most}.", "Write what the vendor says.")
    return spot.value


def _deprecation(spot: Spot) -> Deprecation:
    block = spot.block("A deprecation", keys.DEPRECATION, keys.required(keys.DEPRECATION))
    return Deprecation(
        date=block["date"].matching("The date", _DATE, "Write YYYY-MM or YYYY-MM-DD, in quotes."),
        what=block["what"].text("What"),
        see=block["see"].text("See") if "see" in block else "",
    )


# --- credentials ---------------------------------------------------------------------------------------------------


NOTHING = CredentialKind(
    id="none",
    label="Nothing",
    help="The server asks for no credential.",
    scheme="none",
    fields=(Field(name="nothing", label="Nothing", secret=False),),
)
"""What an account of a wrapped server is connected with that needs no credential."""


def _credentials(spot: Spot | None, form: keys.Form, *, started: bool) -> tuple[CredentialKind, ...]:
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


def _headers_of(kind: CredentialKind) -> tuple[str, ...]:
    """Where the credential stands, or what signs with it, in lower case."""
    if kind.scheme == "aws_sigv4":
        return tuple(name.lower() for name in SIGNATURE_HEADERS)
    return (kind.name.lower(),) if kind.scheme == "header" else ()


def _verified_by_themselves(
    kinds: tuple[CredentialKind, ...], spot: Spot, about: "_About"
) -> tuple[CredentialKind, ...]:
    """The same, each with the call that tries it where it has one of its own."""
    made: list[CredentialKind] = []
    for kind in kinds:
        own = spot.mapping("Credentials")[kind.id].mapping("A credential").get("verify")
        if own is None:
            made.append(kind)
            continue
        if about.endpoint:
            own.fail("Every credential of a GraphQL connector is tried by the same query.", "Remove it.")
        block = own.block("Verify", about.form.verify, keys.required(about.form.verify))
        made.append(replace(kind, verify=_verify(block, about), account=_selector(block.get("account"))))
    return tuple(made)


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
    prefix = block["prefix"].matching("The prefix", _HEADER_VALUE, "Use visible ASCII only.")
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


# --- tools ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How the call of a tool is made, and what that suggests it does."""

    method: str
    path: str
    suggested: Effect
    arguments: tuple[Argument, ...]
    operation: Operation | None = None
    layout: Layout = field(default_factory=Layout)
    body_style: BodyStyle = "json"
    headers: tuple[tuple[str, str], ...] = ()
    upstream: str = ""
    pinned: str = ""
    annotations: Mapping[str, bool] = field(default_factory=dict[str, bool])
    compiled: Any = None  # what is sent, where the file alone does not say it


def _rest(name: str, block: dict[str, Spot], about: _About) -> _Way:
    method, path, holes = _call(block["call"])
    arguments = read_arguments(block, method, holes, about.taken, about.body_style)
    return _Way(
        method=method,
        path=path,
        suggested=derive(method, path, name),
        arguments=arguments,
        layout=read_layout(block, method, arguments, about.body_style, about.taken),
        body_style=about.body_style,
    )


def _graphql(name: str, block: dict[str, Spot], about: _About) -> _Way:
    document = read_operation(block, about.key_variable, about.user_errors)
    operation = document.operation
    return _Way(
        method="POST",
        path=about.endpoint,
        suggested=derive_operation(operation.kind, document.fields, operation.name, name),
        arguments=read_variables(block, document, about.taken),
        operation=operation,
    )


def _openapi(name: str, block: dict[str, Spot], about: _About) -> _Way:
    if about.document is None:
        raise AssertionError("a connector of kind openapi has a document")
    sent = {header.lower() for header, _ in about.headers} | {(about.idempotency[0] or "").lower()}
    taken = Taken(about.taken.headers | sent, about.taken.queries)
    found = read_operation_of(block, about.document, taken)
    return _Way(
        method=found.method,
        path=found.path,
        suggested=derive(found.method, found.path, f"{found.id} {name}"),
        arguments=found.arguments,
        layout=Layout(found.fixed_query, found.fixed_body),
        body_style=found.body_style,
        headers=found.headers,
        compiled=found.sent,
    )


def _mcp(name: str, block: dict[str, Spot], about: _About) -> _Way:
    if about.server is None:
        raise AssertionError("a connector of kind mcp has a server")
    found = read_wrapped(block)
    return _Way(
        method="tools/call",
        path="",
        suggested=derive_wrapped(f"{found.upstream} {name}"),
        arguments=found.arguments,
        layout=Layout(fixed_body=found.fixed),
        upstream=found.upstream,
        pinned=found.pinned,
        annotations=found.annotations,
        compiled=[found.sent, about.server.endpoint],
    )


_WAYS: Mapping[Kind, Callable[[str, dict[str, Spot], _About], _Way]] = {
    "rest": _rest,
    "graphql": _graphql,
    "openapi": _openapi,
    "mcp": _mcp,
}


def _verify_wrapped(about: _About) -> Tool:
    """A server that lets itself be asked what it can do is there, and takes the credential."""
    schema = _input_schema({}, [])
    return Tool(
        name="verify",
        title="List what the server can do",
        description="Check that the server is there and takes the credential.",
        effect=Effect.READ,
        method="tools/list",
        path="",
        input_schema=schema,
        definition_hash=_hash(about, {"call": "tools/list"}, [about.server.endpoint] if about.server else []),
        validator=compiled(schema, Spot("", 1, "")),
    )


def _verify(block: dict[str, Spot], about: _About) -> Tool:
    if about.endpoint:
        way = _graphql("verify", block, about)
        if way.operation is None or way.operation.kind != "query":
            block["document"].fail("To verify must change nothing.", "Write a query.")
        hashed = {"document": way.operation.document}
    else:
        method, path, holes = _call(block["call"])
        if holes:
            block["call"].fail("The verify call has a hole, and nobody to fill it.", "Use a call without arguments.")
        style = about.body_style
        layout = read_layout(block, method, (), style, about.taken)
        headers = _headers(block.get("headers"), about.taken.headers)
        way = _Way(
            method=method,
            path=path,
            suggested=Effect.READ,
            arguments=(),
            layout=layout,
            body_style=style,
            headers=headers,
        )
        more = {key: block[key].plain() for key in ("headers", "fixed") if key in block}
        hashed = {"call": f"{method} {path}", **more}
    schema = _input_schema({}, [])
    return Tool(
        name="verify",
        title="Check the credential",
        description="Check that the credential works.",
        effect=Effect.READ,
        method=way.method,
        path=way.path,
        operation=way.operation,
        input_schema=schema,
        headers=way.headers,
        body_style=way.body_style,
        fixed_query=way.layout.fixed_query,
        fixed_body=way.layout.fixed_body,
        definition_hash=_hash(about, hashed),
        validator=compiled(schema, block["call" if "call" in block else "document"]),
    )


def _tool(name: str, spot: Spot, about: _About) -> Tool:
    block = spot.block("A tool", about.form.tool, keys.required(about.form.tool))
    way = _WAYS[about.kind](name, block, about)
    names = [argument.name for argument in way.arguments]
    stated = raised(_effect(way, block, spot, about), way.annotations)
    unreviewed = about.kind in ("openapi", "mcp") and not about.reviewed
    effect = until_reviewed(stated) if unreviewed else stated
    output = block["output"].block("Output", about.form.output) if "output" in block else {}
    schema = _input_schema(
        {argument.name: argument.schema for argument in way.arguments},
        [argument.name for argument in way.arguments if argument.required],
    )
    return Tool(
        name=name,
        title=block["title"].text("The title"),
        description=" ".join(block["description"].text("The description").split()),
        effect=effect,
        method=way.method,
        path=way.path,
        operation=way.operation,
        upstream=way.upstream,
        pinned=way.pinned,
        arguments=way.arguments,
        input_schema=schema,
        headers=(*way.headers, *_headers(block.get("headers"), about.taken.headers)),
        body_style=way.body_style,
        fixed_query=way.layout.fixed_query,
        fixed_body=way.layout.fixed_body,
        encode=way.layout.encode,
        output_select=_selector(output.get("select")),
        output_text=_output_text(output),
        output_redact=_texts(output, "redact"),
        output_base64url=_texts(output, "base64url"),
        output_brief=output["brief"].one_of("What makes it brief", BRIEFS) if "brief" in output else "",
        output_next=_next(output),
        output_next_url=_selector(output.get("next_url")),
        output_usage=_selector(output.get("usage")),
        ask=_ask(block.get("ask"), names, effect, spot, raised=effect is not stated),
        grant=_grant(block.get("grant"), names, stated, unreviewed=unreviewed),
        plain=_names_of(block.get("plain"), names),
        shared=_shared(block.get("shared"), stated, about),
        unreviewed=None if effect is stated else stated,
        because=block["because"].text("Because") if "because" in block else "",
        definition_hash=_hash(about, {"name": name, "effect": effect} | spot.plain(), way.compiled),
        validator=compiled(schema, spot),
    )


def _call(spot: Spot) -> tuple[str, str, list[str]]:
    method, path = spot.matching("The call", _CALL, _CALL_MEND).split(" ", 1)
    return method, path, _check_path(path, spot, _CALL_MEND)


def _check_path(path: str, spot: Spot, mend: str) -> list[str]:
    """The holes of a path that can be sent."""
    for segment in path[1:].removesuffix("/").split("/") if path != "/" else []:
        if segment in (".", "..") or not _SEGMENT.fullmatch(segment):
            spot.fail(f"The path has a segment {segment!r} that cannot be sent.", mend)
    holes = HOLE.findall(path)
    for hole in holes:
        if holes.count(hole) > 1:
            spot.fail(f"The hole {{{hole}}} is there twice.", "Give each its own argument.")
    return holes


def _output_text(output: Mapping[str, Spot]) -> bool:
    if "text" not in output or not output["text"].flag("Text"):
        return False
    for other in ("select", "redact", "usage", "base64url", "brief", "next", "next_url"):
        if other in output:
            output["text"].fail(f"A text has nothing that `{other}:` could find.", "Remove one of the two.")
    return True


def _next(output: Mapping[str, Spot]) -> str:
    if "next" in output:
        return output["next"].text("Next")
    if "next_url" in output:
        output["next_url"].fail("Nobody knows which part of that URL is wanted.", "Add `next:`.")
    return ""


def _hash(about: _About, tool: Mapping[str, Any], compiled: Any = None) -> str:
    """Changes with anything that decides what a call of this tool sends, shows or returns."""
    whole = [about.connector, about.base_url, about.headers, about.body_style, about.idempotency, tool]
    whole += [about.endpoint, about.key_variable] if about.endpoint else []
    whole += [compiled] if compiled else []
    whole += [about.idempotency_hours] if about.idempotency_hours else []
    return hashlib.sha256(canonical(whole).encode()).hexdigest()


def _input_schema(properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return schema | {"required": required} if required else schema


def _names_of(spot: Spot | None, arguments: list[str]) -> tuple[str, ...]:
    if spot is None:
        return ()
    return tuple(item.one_of("An argument", arguments) for item in spot.items("A list of arguments"))


def _grant(spot: Spot | None, arguments: list[str], stated: Effect, *, unreviewed: bool) -> tuple[str, ...]:
    if spot and unreviewed and stated.strictness >= Effect.WRITE.strictness:
        spot.fail(
            "Until this file is reviewed, only its reads are offered an hour.",
            "Remove `grant:`, or read every tool and set `reviewed: true`.",
        )
    return _names_of(spot, arguments)


def _shared(spot: Spot | None, stated: Effect, about: _About) -> bool:
    if spot is None or not spot.flag("Shared"):
        return False
    if stated.strictness > Effect.METERED.strictness:
        spot.fail(
            f"A tool whose effect is {stated} is not safe where several organisations use one account.",
            "Remove `shared:`.",
        )
    if not about.reviewed:
        spot.fail("Only a reviewed file says what several organisations may share.", "Remove `shared:`.")
    return True


def _ask(spot: Spot | None, arguments: list[str], effect: Effect, tool: Spot, *, raised: bool) -> str:
    if spot is None and raised:
        tool.fail(
            "Until this file is reviewed, a person is asked for its reads too, and this has no `ask`.",
            "Say in one line what a person agrees to.",
        )
    if spot is None:
        if effect is not Effect.READ:
            tool.fail(f"A tool whose effect is {effect} needs an `ask`.", "Say in one line what a person agrees to.")
        return ""
    text = spot.text("The ask")
    if "\n" in text:
        spot.fail("The ask has more than one line.", "Shorten it.")
    holes: list[str] = HOLE.findall(text)
    for hole in holes:
        if hole not in arguments:
            spot.fail(f"The ask names {{{hole}}}, which is no argument.", f"Known: {', '.join(arguments) or 'none'}.")
    if "{" in HOLE.sub("", text) or "}" in HOLE.sub("", text):
        spot.fail("The ask has a brace that is no hole.", "Write {argument}, and nothing else in braces.")
    if any(HOLE.fullmatch(f"{{{name}}}") for name in arguments) and not holes:
        spot.fail("The ask names no argument.", "Say what it will act on, for instance {" + arguments[0] + "}.")
    return text


def _effect(way: _Way, block: dict[str, Spot], tool: Spot, about: _About) -> Effect:
    if "effect" not in block:
        if about.reviewed:
            tool.fail(
                "A reviewed file states every effect.", f"Add `effect:`; the method and names suggest {way.suggested}."
            )
        return way.suggested
    stated = Effect(block["effect"].one_of("The effect", [effect.value for effect in Effect]))
    if stated is Effect.READ and way.operation and way.operation.kind == "mutation":
        block["effect"].fail("A mutation does more than read.", "State what it does, or make it a query.")
    if stated.strictness < way.suggested.strictness and "because" not in block:
        block["effect"].fail(
            f"{stated} is milder than {way.suggested}, which the method and names suggest.", "Add `because:`."
        )
    return stated
