"""Write a connector file of kind mcp for chosen tools of a server, for a person to read and to prune.

What the server says of itself is data: bounded, on one line each, and without a character that cannot be seen. Effects
are suggested on the strict side, and the file says that nobody has reviewed it. What is written loads.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, cast

from connectors import fileformat as keys
from connectors.compiling import Input, arguments, portable_name
from connectors.definition import HOLE, Argument, Connector, CredentialKind, Effect, OAuth, WrappedServer, canonical
from connectors.document import Document, DocumentError, Part, line
from connectors.effects import derive_wrapped, raised, raised_by_words
from connectors.importing import (
    MOST_FOUND,
    TITLE,
    TOO_LARGE,
    as_searched,
    ask_line,
    free_name,
    is_deprecated,
    pruned,
    ranked,
    size_of,
)
from connectors.scrub import Scrubber
from connectors.signing_in import beginning, quoted
from connectors.upstream import Definition

MOST_TEXT = 1_000  # characters of a description
MOST_ABOUT = 120  # characters of it where tools are listed

_UPSTREAM = re.compile(keys.UPSTREAM_PATTERN)
_ARGUMENT = re.compile(keys.UPSTREAM_ARGUMENT_PATTERN)
_PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_READ_OTHERWISE = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})  # by YAML 1.1
_HALF = re.compile("[\ud800-\udfff]")
_FLOW = 100  # characters that one line of a schema takes at most


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tool of a server, as it would be offered. `refused` says why it cannot be."""

    definition: Definition
    name: str
    effect: Effect
    why: str  # of the effect
    inputs: tuple[Input, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    size: int = 0  # bytes of its schema, for a model
    refused: str = ""

    @property
    def hash(self) -> str:
        """What a file pins."""
        return self.definition.hash

    @property
    def title(self) -> str:
        """A few words for people: the server's, where it has some that are short."""
        return title_of(self.definition, self.name)

    @property
    def about(self) -> str:
        """The beginning of what the server says of it."""
        return beginning(said(self.definition), MOST_ABOUT)


def candidates(definitions: Sequence[Definition], secrets: Sequence[str] = ()) -> list[Candidate]:
    """What would become of a server's tools."""
    often = Counter(each.name for each in definitions)
    found = [candidate(each, secrets) for each in definitions]
    twice = "The server lists it more than once, and nobody can tell which would be called."
    return [replace(each, refused=twice) if often[each.definition.name] > 1 else each for each in found]


def candidate(definition: Definition, secrets: Sequence[str] = ()) -> Candidate:
    """What would become of this tool. One that repeats one of the `secrets` is refused, and shown without it."""
    scrubber = Scrubber(secrets)
    if scrubber.finds(canonical(dict(definition.raw))):
        named = Definition({"name": scrubber.text(line(_text(definition.raw, "name")))})
        return Candidate(named, "call", Effect.GRANT, "", refused="It repeats the credential that it was given.")
    upstream = _text(definition.raw, "name")
    name = portable_name(upstream) or "call"
    effect, why = suggested(upstream, name, definition)
    try:
        if not _UPSTREAM.fullmatch(upstream):
            raise DocumentError("Its name has characters that no client takes, or is longer than 128.")
        inputs, left_out = _inputs(definition)
        made = arguments(_document(definition), inputs, Part(dict(definition.raw), ""))
    except DocumentError as problem:
        return Candidate(definition, name, effect, why, refused=problem.message)
    return Candidate(definition, name, effect, why, tuple(inputs), tuple(left_out), size_of(made))


def suggested(upstream: str, name: str, definition: Definition) -> tuple[Effect, str]:
    """The effect that the names mean, raised by what the server says of the tool; and which of these it was."""
    named = derive_wrapped(f"{upstream} {name}")
    described = raised_by_words(named, said(definition))
    effect = raised(described, annotations_of(definition))
    why = "its annotations" if effect is not described else "its description" if described is not named else "its name"
    return effect, why


def annotations_of(definition: Definition) -> dict[str, bool]:
    """What the server says that the tool does, as far as a file can hold it."""
    given = definition.raw.get("annotations")
    found = cast("Mapping[str, Any]", given if isinstance(given, Mapping) else {})
    return {name: found[name] for name in keys.ANNOTATIONS if isinstance(found.get(name), bool)}


def said(definition: Definition) -> str:
    """What the server says of the tool, on one line."""
    return line(_text(definition.raw, "description"))


def title_of(definition: Definition, name: str) -> str:
    """A few words for people."""
    title = line(_text(definition.raw, "title")).rstrip(".")
    return title if 0 < len(title) <= TITLE else name.replace("_", " ").capitalize()


def search(candidates: Sequence[Candidate], words: str) -> list[Candidate]:
    """The tools that have to do with these words, the likeliest first."""
    tools = [as_searched(each.name, each.title, said(each.definition), each.effect) for each in candidates]
    return [candidates[place] for place in ranked(tools, words)][:MOST_FOUND]


# --- the server, before there is a file


@dataclass(frozen=True, slots=True)
class Source:
    """A server to import from: its address or its command, and how it is signed in to."""

    server: WrappedServer
    url: str  # empty where it is started
    kind: CredentialKind | None  # None where it needs no credential


def standing_in(source: Source) -> Connector:
    """What stands for the file that is yet to be written: it can be spoken to, and offers nothing."""
    name = source.url.partition("://")[2].partition("/")[0] or source.server.command[0]
    return Connector(
        id="server",
        title=name,
        base_url=source.url,
        server=source.server,
        credentials=(source.kind,) if source.kind else (),
        verify=as_searched("verify", "", "", Effect.READ),
        tools={},
    )


@dataclass(frozen=True, slots=True)
class Draft:
    """A connector file, as it would be written; `notes` are what a person should know of it."""

    id: str
    text: str
    tools: tuple[str, ...]
    notes: tuple[str, ...]


def draft(source: Source, chosen: Sequence[Candidate], *, identifier: str, title: str) -> Draft:
    """Write the file for tools of which none is refused."""
    where, notes = _where(source, identifier)
    names: dict[str, None] = {}
    tools: list[str] = []
    for each in chosen:
        name = free_name(each.name, names, identifier)
        names[name] = None
        lines, more = _tool(name, each)
        tools += lines
        notes += more
    whole = [
        *_head(identifier, title, notes),
        *where,
        *(_credential(source.kind) if source.kind else ()),
        "",
        "tools:",
        *tools,
    ]
    return Draft(identifier, "\n".join(whole) + "\n", tuple(names), tuple(notes))


# --- parts of the file


def _head(identifier: str, title: str, notes: Sequence[str]) -> Iterator[str]:
    shown = line(title)[:TITLE] or identifier
    yield f"# {shown}, written by `keyleash connector import-mcp` from what the server says of its tools."
    yield "#"
    yield "# Nobody has reviewed this yet. Until `reviewed` is true, what reads is asked about as `sensitive` is, and"
    yield "# everything else each time. Titles and descriptions are the server's own words, and the model will read"
    yield "# them: does each tool do what it says, is its effect right, is anything offered that need not be? Remove"
    yield "# what you do not need (a tool, or an argument in `input`), and set `reviewed: true`."
    yield "#"
    yield "# `pinned` is the hash of the server's definition. Once the server says anything else of a tool, it is held"
    yield "# until `keyleash connector review` has shown the difference, and somebody has said yes."
    yield from (f"# - {note}" for note in notes)
    yield ""
    yield f"id: {identifier}"
    yield f"title: {quoted(shown)}"
    yield "kind: mcp"
    yield "reviewed: false"


def _where(source: Source, identifier: str) -> tuple[list[str], list[str]]:
    """Where the server is, and what there is to say of that."""
    if source.server.command:
        words = ", ".join(quoted(word) for word in source.server.command)
        return [f"command: [{words}] # started as this system's user, for each call"], []
    if source.url.startswith("https://"):
        return [f"base_url: {quoted(source.url)}"], []
    path = "/" + source.url.partition("://")[2].partition("/")[2]
    example = f"https://{identifier.replace('_', '-')}.invalid{path.rstrip('/')}"
    note = f"It was reached at {source.url}, without https: `keyleash connect {identifier} --base-url {source.url}`."
    return [f"base_url: {quoted(example)} # stands for it: a file names no address without https"], [note]


def _credential(kind: CredentialKind) -> Iterator[str]:
    yield ""
    yield "credentials:"
    yield f"  {kind.id}:"
    yield f"    label: {quoted(kind.label)}"
    yield f"    help: {quoted(kind.help)}"
    yield f"    scheme: {kind.scheme}"
    if kind.scheme in ("header", "query", "env"):
        yield f"    name: {quoted(kind.name)}"
    if kind.oauth is not None:
        yield from _oauth(kind.oauth)


def _oauth(oauth: OAuth) -> Iterator[str]:
    """Found in the server's metadata, and not followed any more once it stands here."""
    yield "    oauth: # as the server and its authorization server said; tokens are had there, and nowhere else"
    yield f"      authorize: {quoted(oauth.authorize)}"
    yield f"      token: {quoted(oauth.token)}"
    if oauth.revoke is not None:
        yield f"      revoke: {{url: {quoted(oauth.revoke.url)}}}"
    if oauth.register:
        yield f"      register: {quoted(oauth.register)} # makes an app for whoever brings none"
    if oauth.scopes:
        yield f"      scopes: [{', '.join(map(quoted, oauth.scopes))}]"
    yield f"      client: {quoted(oauth.client)}"
    if oauth.issuer:
        yield f"      issuer: {quoted(oauth.issuer)}"
    for name, params in (("authorize_params", oauth.authorize_params), ("token_params", oauth.token_params)):
        if params:
            yield f"      {name}: {{{', '.join(f'{key}: {quoted(str(value))}' for key, value in params)}}}"


def _tool(name: str, each: Candidate) -> tuple[list[str], list[str]]:
    made, left = _offered(each)
    size, notes = size_of(made), list[str]()
    if size > TOO_LARGE:
        notes.append(f"{name} has a schema of {size} bytes, which is much for a model, and needs all of it.")
    elif any(not is_deprecated(given) for given in each.inputs if given.name in left):
        notes.append(f"{name} has a schema too large for a model; what makes it so is not offered at first.")
    names = {given.name: given.required for given in made}
    holes = [given for given in each.inputs if given.name in names and HOLE.fullmatch(f"{{{given.name}}}")]
    keeps = [given for given, required in names.items() if required] or list(names)[:1]
    hints = annotations_of(each.definition)
    lines = [
        "",
        f"  {name}:",
        f"    # schema {size} bytes",
        *(f"    {key}: {_flow(value)}" for key, value in as_written(each.definition).items() if key != "input"),
        f"    upstream: {quoted(each.definition.name)}",
        f"    pinned: {quoted(each.definition.hash)}",
        f"    effect: {each.effect} # suggested by {each.why}",
        f"    ask: {quoted(ask_line(each.title, holes))}",
    ]
    if hints:
        shown = ", ".join(f"{key}: {_flow(value)}" for key, value in hints.items())
        lines.append(f"    annotations: {{{shown}}}")
    if each.effect in (Effect.READ, Effect.SENSITIVE) and keeps:
        lines.append(f"    grant: [{', '.join(map(quoted, keeps))}]")
    lines += [f"    {row}" for row in _written("input", _input(made), 0)]
    if left:
        lines.append(f"    # not offered: {', '.join(left)}")
    lines += [f"    # left out: {line(wire)[:60]}, which {why}" for wire, why in each.left_out]
    return lines, notes


def as_written(definition: Definition) -> dict[str, Any]:
    """What an import writes of a definition, by the keys of a tool. Raises DocumentError."""
    each = candidate(definition)
    if each.refused:
        raise DocumentError(each.refused)
    made, _ = _offered(each)
    about = beginning(said(definition), MOST_TEXT) or each.title
    return {"title": each.title, "description": " ".join(about.split()), "input": _input(made)}


def block_of(key: str, value: Any) -> list[str]:
    """A key of a tool with its value, in lines."""
    return list(_written(key, value, 0)) if key == "input" else [f"{key}: {_flow(value)}"]


def _offered(each: Candidate) -> tuple[tuple[Argument, ...], list[str]]:
    """The arguments that are offered at first, and the names of the others."""
    document, whole = _document(each.definition), Part(dict(each.definition.raw), "")
    offered, left = pruned(document, each.inputs, whole)
    return arguments(document, offered, whole), left


# --- arguments


def _document(definition: Definition) -> Document:
    """The tool's schema as something whose references can be followed."""
    schema = definition.raw.get("inputSchema")
    return Document(cast("Mapping[str, Any]", schema) if isinstance(schema, Mapping) else {}, "3.1")


def _inputs(definition: Definition) -> tuple[list[Input], list[tuple[str, str]]]:
    """What the tool takes, and of what is optional and cannot be offered, why. Raises DocumentError."""
    document = _document(definition)
    root = document.resolve(Part(dict(document.root), ""))
    if root.mapping.get("type") != "object":
        raise DocumentError("Its arguments are not one object: the root of its schema has to say `type: object`.")
    properties, listed = root.get("properties"), root.get("required")
    found = list(properties.items()) if properties is not None else []
    if not found and any(key in root.mapping for key in ("anyOf", "oneOf", "allOf", "$ref")):
        raise DocumentError("Its arguments are put together of several schemas, and none stands at the root.")
    named = [each.value for each in listed.list()] if listed is not None else []
    required = {each for each in named if isinstance(each, str)}
    if missing := sorted(required - {name for name, _ in found}):
        raise DocumentError(f"It needs {line(missing[0])[:60]!r}, of which its schema says nothing.")
    inputs, left_out = list[Input](), list[tuple[str, str]]()
    for name, part in found:
        if _ARGUMENT.fullmatch(name) and part.value is not False:
            inputs.append(Input(name=name, place="body", wire_name=name, schema=part, required=name in required))
        elif name in required:
            raise DocumentError(f"It needs {line(name)[:60]!r}, and no argument can be called so.")
        else:
            left_out.append((name, "cannot be an argument's name"))
    return sorted(inputs, key=lambda each: not each.required), left_out


def _input(made: Sequence[Argument]) -> dict[str, Any]:
    """The arguments as a file has them: what YAML cannot say there, or would read otherwise, is left out."""
    required = [argument.name for argument in made if argument.required]
    schema: dict[str, Any] = {"type": "object"}
    if made:
        schema["properties"] = {argument.name: _sayable(argument.schema) for argument in made}
    return schema | ({"required": required} if required else {})


def _sayable(value: Any) -> Any:
    """Without what a connector file cannot hold, null and half a character: as a value in a list, or with its key."""
    if isinstance(value, Mapping):
        made = {
            key: _sayable(item) for key, item in cast("Mapping[str, Any]", value).items() if not _is_unsayable(item)
        }
        return {key: item for key, item in made.items() if key != "enum" or item}
    if isinstance(value, list | tuple):
        return [_sayable(item) for item in cast("Sequence[Any]", value) if not _is_unsayable(item)]
    return value


def _is_unsayable(value: Any) -> bool:
    return value is None or (isinstance(value, str) and _HALF.search(value) is not None)


def _written(key: str, value: Any, level: int) -> Iterator[str]:
    """A key and its value: on one line where that is short, else a line for each part."""
    indent = "  " * level
    name = key if _PLAIN_KEY.fullmatch(key) and key.lower() not in _READ_OTHERWISE else quoted(key)
    flow = _flow(value)
    if not (isinstance(value, Mapping) and value) or (len(flow) + len(indent) <= _FLOW and level > 1):
        yield f"{indent}{name}: {flow}"
        return
    yield f"{indent}{name}:"
    for inner, item in cast("Mapping[str, Any]", value).items():
        yield from _written(inner, item, level + 1)


def _flow(value: Any) -> str:
    """A value on one line, as YAML reads it and no other way."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            text = format(Decimal(repr(value)), "f")
            return text if "." in text else f"{text}.0"
        case str():
            return quoted(value)
        case Mapping():
            given = cast("Mapping[str, Any]", value).items()
            return f"{{{', '.join(f'{quoted(key)}: {_flow(item)}' for key, item in given)}}}"
        case _:
            return f"[{', '.join(map(_flow, cast('Sequence[Any]', value)))}]"


def _text(raw: Mapping[str, Any], key: str) -> str:
    found = raw.get(key)
    return found if isinstance(found, str) else ""
