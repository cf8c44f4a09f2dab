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

from connectors import fileformat as keys
from connectors.arguments import RESERVED_HEADERS, Taken, check_header, compiled, read_arguments
from connectors.brief import BRIEFS
from connectors.conductblock import (
    STARTED,
    read_deprecation,
    read_errors,
    read_idempotency,
    read_idempotency_hours,
    read_limits,
    read_quota,
    texts_of,
)
from connectors.credentialblock import HEADER_VALUE, headers_of, read_credentials
from connectors.definition import (
    HOLE,
    Argument,
    BodyStyle,
    Connector,
    CredentialKind,
    Effect,
    Kind,
    Operation,
    Tool,
    WrappedServer,
    canonical,
)
from connectors.document import Document
from connectors.effects import derive, derive_operation, derive_wrapped, raised, until_reviewed
from connectors.errors import Unsendable
from connectors.layout import Layout, read_layout
from connectors.operations import pinned_document, read_operation_of
from connectors.request import base
from connectors.selectorblock import read_selector
from connectors.source import NAME_MEND, NAME_PATTERN, Spot, read_file, read_text
from connectors.variables import read_operation, read_variables
from connectors.wrapping import address_of, read_server, read_wrapped

_ID = re.compile(NAME_PATTERN)
_CALL = re.compile(keys.CALL_PATTERN)
_CALL_MEND = "Write `METHOD /path`, for instance `GET /v1/charges/{charge}`."
_ENDPOINT = re.compile(keys.ENDPOINT_PATTERN)
_VARIABLE = re.compile(keys.VARIABLE_PATTERN)
_SEGMENT = re.compile(r"([A-Za-z0-9._~:@-]|\{[a-z][a-z0-9_]*\})+")


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
    credentials = read_credentials(block.get("credentials"), form, started=bool(server and server.command))
    taken = RESERVED_HEADERS | {name for kind in credentials for name in headers_of(kind)}
    errors = read_errors(block.get("errors"), kind)
    about = _About(
        connector=identifier,
        kind=kind,
        form=form,
        document=pinned_document(block["document"], block["sha256"]) if kind == "openapi" else None,
        endpoint=_endpoint(block.get("endpoint")) if kind == "graphql" else "",
        base_url=address_of(server) if server and server.command else _base_url(block["base_url"]),
        headers=_headers(block.get("headers"), taken),
        body_style=_body_style(block.get("body")),
        idempotency=read_idempotency(block.get("idempotency")) if kind != "graphql" else (None, ()),
        idempotency_hours=read_idempotency_hours(block.get("idempotency")) if kind != "graphql" else 0,
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
        account=read_selector(verify.get("account")),
        errors=errors,
        idempotency_header=about.idempotency[0],
        idempotency_methods=about.idempotency[1],
        idempotency_hours=about.idempotency_hours,
        tools={name: _tool(name, tool, about) for name, tool in block["tools"].named("Tools").items()},
        quota=read_quota(block.get("quota")),
        limits=STARTED if server and server.transport == "stdio" else read_limits(block.get("limits")),
        deprecations=tuple(read_deprecation(item) for item in _list(block.get("deprecations"), "Deprecations")),
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
        text = value.matching("A header", HEADER_VALUE, "Use visible ASCII only.")
        headers[name.lower()] = (name, text)
    return tuple(headers.values())


def _key_variable(spot: Spot | None) -> str:
    if spot is None:
        return ""
    block = spot.block("Idempotency", keys.GRAPHQL_IDEMPOTENCY, keys.required(keys.GRAPHQL_IDEMPOTENCY))
    return block["variable"].matching("The variable", _VARIABLE, "Write its name as in the documents, without $.")


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
        made.append(replace(kind, verify=_verify(block, about), account=read_selector(block.get("account"))))
    return tuple(made)


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
        output_select=read_selector(output.get("select")),
        output_text=_output_text(output),
        output_redact=texts_of(output, "redact"),
        output_base64url=texts_of(output, "base64url"),
        output_brief=output["brief"].one_of("What makes it brief", BRIEFS) if "brief" in output else "",
        output_next=_next(output),
        output_next_url=read_selector(output.get("next_url")),
        output_usage=read_selector(output.get("usage")),
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
