"""Write a connector file of kind openapi for chosen operations of a document, for a person to read and to prune.

Effects are suggested on the strict side, and the file says that nobody has reviewed it. What is written loads.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urljoin

from connectors.arguments import Taken
from connectors.catalogue import MAX_WIRE_NAME, Offered
from connectors.compiling import MAX_NAME, Input, arguments, outline, portable_name
from connectors.definition import Argument, Connector, Effect, Tool, canonical
from connectors.document import Described, Document, DocumentError, Part, line, read_json_document
from connectors.effects import derive
from connectors.errors import Unsendable
from connectors.finding import Index
from connectors.request import base
from connectors.signing_in import beginning, quoted, ways_to_sign_in
from connectors.slicing import cut

TOO_LARGE = 16_000
"""Bytes of schema, about 4,000 tokens: of more than that, only what is small is offered at first."""
MOST_FOUND = 20

TITLE = 60  # characters
_WHO = ("me", "whoami", "current", "self", "user", "account", "profile", "ping", "status", "health", "balance")
_PLAIN = re.compile(r"[\x21-\x7e]{1,200}")
_SEGMENT = re.compile(r"[A-Za-z0-9._~:@-]+")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An operation of a document, as it would become a tool. `refused` says why it cannot be one."""

    described: Described
    name: str
    effect: Effect
    size: int = 0  # bytes of its schema, for a model
    refused: str = ""


def candidate(document: Document, described: Described) -> Candidate:
    """What would become of this operation."""
    name = tool_name(described)
    method = described.method if described.method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "POST"
    effect = derive(method, re.sub(r"\{[^{}]*\}", "", described.path), f"{described.id} {name}")
    try:
        found = outline(document, described, _NOTHING_TAKEN)
        made = arguments(document, found.inputs, described.part)
    except DocumentError as problem:
        return Candidate(described, name, effect, refused=problem.message)
    return Candidate(described, name, effect, size=size_of(made))


def search(operations: Sequence[Described], words: str) -> list[Described]:
    """The operations that have to do with these words, the likeliest first."""
    return [operations[place] for place in ranked([_searched(each) for each in operations], words)[:MOST_FOUND]]


def ranked(tools: Sequence[Tool], words: str) -> list[int]:
    """Where those of the tools stand that have to do with these words, the likeliest first."""
    offered = {f"o_{place}": _offered(place, tool) for place, tool in enumerate(tools)}
    return [int(each.tool.name[2:]) for each in Index(tuple(offered.values())).search(words, offered.values())]


def tool_name(described: Described) -> str:
    """A tool's name for this operation."""
    return portable_name(described.id or f"{described.method} {described.path}") or "call"


@dataclass(frozen=True, slots=True)
class Draft:
    """A connector file and its document, as they would be written; `notes` are what a person should know of them."""

    id: str
    text: str
    document: bytes
    sha256: str
    tools: tuple[str, ...]
    notes: tuple[str, ...]


def draft(document: Document, chosen: Sequence[Described], *, identifier: str, source: str) -> Draft:
    """Write the file; raises DocumentError where an operation cannot be offered, or two are at different servers."""
    where, notes = _server(document, chosen, source, identifier)
    ways, more = ways_to_sign_in(document, chosen)
    notes += more
    content = cut(document, chosen)
    small = read_json_document(content, f"{identifier}.openapi.json")
    sha256 = hashlib.sha256(content).hexdigest()
    taken = Taken(frozenset(way.header.lower() for way in ways if way.header), frozenset(way.query for way in ways))
    tools: list[str] = []
    names: dict[str, None] = {}
    for described in chosen:
        name = free_name(tool_name(described), names, identifier)
        lines, said = _tool(name, small, small.find(described.call), described, taken)
        names[name] = None
        tools += lines
        notes += said
    verify = _verify(document, chosen)
    whole = [
        *_head(document, identifier, where, sha256, notes),
        "credentials:",
        *(text for way in ways for text in way.lines),
        "",
        "verify:",
        f"  call: {verify} # CHECK: it should be harmless, and succeed only with a working credential",
        "",
        "tools:",
        *tools,
    ]
    return Draft(identifier, "\n".join(whole) + "\n", content, sha256, tuple(names), tuple(notes))


# --- parts of the file


def _head(document: Document, identifier: str, where: str, sha256: str, notes: Sequence[str]) -> Iterator[str]:
    yield f"# {line(document.title) or identifier}, written by `keyleash connector import-openapi` from its document."
    yield "#"
    yield "# Nobody has reviewed this yet. Until `reviewed` is true, what reads is asked about as `sensitive` is, and"
    yield "# everything else each time. Read every tool: is its effect right, is anything offered that need not be,"
    yield "# does the ask line say what a person agrees to? Remove what you do not need, and set `reviewed: true`."
    yield from (f"# - {note}" for note in notes)
    yield ""
    yield f"id: {identifier}"
    yield f"title: {quoted(line(document.title)[:TITLE] or identifier)}"
    yield "kind: openapi"
    external = Part(document.root, "").get("externalDocs")
    if external is not None and external.text("url").startswith("https://"):
        yield f"help: {quoted(line(external.text('url')))}"
    yield "reviewed: false"
    yield f"base_url: {quoted(where)}"
    yield f"document: {identifier}.openapi.json"
    yield f"sha256: {quoted(sha256)}"
    yield ""


def _tool(
    name: str, document: Document, described: Described, original: Described, taken: Taken
) -> tuple[list[str], list[str]]:
    found = outline(document, described, taken)
    offered, left = pruned(document, found.inputs, described.part)
    size = size_of(arguments(document, offered, described.part))
    effect = derive(found.method, found.path, f"{described.id} {name}")
    notes = [f"{described.call} is deprecated."] if described.deprecated else []
    if size > TOO_LARGE:
        notes.append(f"{name} has a schema of {size} bytes, which is much for a model, and needs all of it.")
    elif any(not is_deprecated(each) for each in found.inputs if each.name in left):
        notes.append(f"{name} has a schema too large for a model; what makes it so is not offered at first.")
    title = original.summary.rstrip(".")
    title = title if 0 < len(title) <= TITLE else name.replace("_", " ").capitalize()
    about = beginning(original.description) or beginning(original.summary) or title
    keeps = [each.name for each in offered if each.place == "path"] or [each.name for each in offered[:1]]
    names = [each.name for each in offered]
    lines = [
        "",
        f"  {name}:",
        f"    # {line(described.call)}; schema {size} bytes" + ("; DEPRECATED" if described.deprecated else ""),
        f"    title: {quoted(title)}",
        f"    description: {quoted(about)}",
        f"    operation: {quoted(described.id if _unique(document, described) else described.call)}",
        f"    effect: {effect} # suggested by its method and its words",
        f"    ask: {quoted(ask_line(title, offered))}",
    ]
    if effect in (Effect.READ, Effect.SENSITIVE) and keeps:
        lines.append(f"    grant: [{', '.join(keeps)}]")
    if found.inputs:
        lines.append(f"    arguments: [{', '.join(names)}]")
    if left:
        lines.append(f"    # not offered: {', '.join(left)}")
    lines += [f"    # left out: {line(wire)[:60]}, which {why}" for wire, why in found.left_out]
    return lines, notes


def pruned(document: Document, inputs: Sequence[Input], of: Part) -> tuple[list[Input], list[str]]:
    """What is offered at first, and the names of the rest: nothing deprecated, and of too much the smallest."""
    sizes = {each.name: size_of(arguments(document, [each], of)) for each in inputs}
    order = {each.name: place for place, each in enumerate(inputs)}
    left = TOO_LARGE
    offered: list[Input] = []
    for each in sorted(inputs, key=lambda each: (not each.required, sizes[each.name])):
        left -= sizes[each.name]
        if each.required or (left >= 0 and not is_deprecated(each)):
            offered.append(each)
    offered.sort(key=lambda each: (not each.required, order[each.name]))
    return offered, [each.name for each in inputs if each not in offered]


def is_deprecated(given: Input) -> bool:
    """Whether whoever described it says that it should not be used any more."""
    return given.deprecated or given.schema.says("deprecated")


def size_of(made: Sequence[Argument]) -> int:
    """Bytes of these arguments' schemas, for a model."""
    return len(canonical({argument.name: dict(argument.schema) for argument in made}).encode("utf-8", "replace"))


def ask_line(title: str, offered: Sequence[Input]) -> str:
    """One line that says what a person agrees to, with the arguments that have to be there."""
    said = title.replace("{", "(").replace("}", ")")
    holes = [each.name for each in offered if each.required][:3] or [each.name for each in offered[:1]]
    return f"{said}: {', '.join(f'{hole} {{{hole}}}' for hole in holes)}" if holes else said


def _unique(document: Document, described: Described) -> bool:
    return bool(_PLAIN.fullmatch(described.id)) and sum(each.id == described.id for each in document.operations()) == 1


def free_name(name: str, names: Iterable[str], identifier: str) -> str:
    """The name, or the first like it that none of these has; a connection called `identifier` has room for it."""
    taken, most = set(names), min(MAX_NAME, MAX_WIRE_NAME - len(identifier) - 1)
    others = (f"{name[: most - 3]}_{number}" for number in range(2, len(taken) + 3))
    name = name[:most]
    return name if name not in taken else next(other for other in others if other not in taken)


# --- where it is


def _server(document: Document, chosen: Sequence[Described], source: str, identifier: str) -> tuple[str, list[str]]:
    """The base URL that the chosen operations share, and what there is to say of it."""
    urls = {_url(each, document): each for each in chosen}
    if len(urls) > 1:
        one, other = list(urls.items())[:2]
        raise DocumentError(
            f"{one[1].call} is at {one[0] or 'no server'}, and {other[1].call} at {other[0] or 'no server'}.",
            "A connector has one base URL: import them into one each.",
            at=other[1].part.at,
        )
    stated = next(iter(urls), "")
    notes: list[str] = []
    if "{" in stated or stated != _filled(stated, document, chosen):
        notes.append(f"The server {stated} has parts of one's own; base_url has the document's examples for them.")
    filled = _filled(stated, document, chosen)
    joined = urljoin(source, filled) if source.startswith("https://") else filled
    try:
        where = base(joined.rstrip("/"))
        if where.origin.startswith("https://"):
            return where.url, notes
    except Unsendable:
        pass
    notes.append("The document names no server that is reached by https: write base_url. `.invalid` is an example.")
    return f"https://{identifier.replace('_', '-')}.invalid", notes


def _servers(described: Described | None, document: Document) -> Part | None:
    """The servers of an operation: its own, its path's or the document's."""
    places = [described.part, described.item] if described else []
    for place in (*places, Part(document.root, "")):
        found = place.get("servers")
        if found is not None and any(True for _ in found.list()):
            return found
    return None


def _url(described: Described, document: Document) -> str:
    found = _servers(described, document)
    urls = [line(each.text("url")) for each in found.list()] if found else []
    return next((url for url in urls if url.startswith("https://")), urls[0] if urls else "")


def _filled(url: str, document: Document, chosen: Sequence[Described]) -> str:
    """The URL with the document's own defaults in its variables."""
    found = _servers(chosen[0] if chosen else None, document)
    for server in found.list() if found else ():
        variables = server.get("variables")
        for name, variable in variables.items() if variables and line(server.text("url")) == url else ():
            url = url.replace(f"{{{name}}}", variable.text("default"))
    return url


def _verify(document: Document, chosen: Sequence[Described]) -> str:
    """A read without arguments; one that says who one is, where there is one."""
    shared = _url(chosen[0], document) if chosen else ""
    reads = [each for each in document.operations() if _is_bare(each, document) and _url(each, document) == shared]
    ranked = sorted(reads, key=lambda each: (_rank(each), each.path.count("/"), len(each.path)))
    return f"GET {ranked[0].path}" if ranked else "GET /"


def _rank(described: Described) -> int:
    words = set(re.findall(r"[a-z]+", portable_name(f"{described.path} {described.id}")))
    return next((place for place, word in enumerate(_WHO) if word in words), len(_WHO))


def _is_bare(described: Described, document: Document) -> bool:
    segments = described.path[1:].removesuffix("/").split("/")
    if described.method != "GET" or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        return False
    try:
        return not any(each.required for each in outline(document, described, _NOTHING_TAKEN).inputs)
    except DocumentError:
        return False


# --- searching


_NOTHING_TAKEN = Taken(frozenset(), frozenset())


class _Anything:
    """Every argument is right: nothing is called here."""

    def is_valid(self, instance: object) -> bool:
        return instance is not None

    def iter_errors(self, instance: object) -> Iterator[object]:
        del instance
        return iter(())


def _searched(described: Described) -> Tool:
    """The operation as the search for tools takes one."""
    name = tool_name(described)
    return as_searched(
        name,
        described.summary or name,
        f"{described.description} {' '.join(described.tags)} {described.path}",
        derive(described.method, "", name) if described.method in _METHODS else Effect.WRITE,
        method=described.method,
        path=described.path,
    )


def as_searched(name: str, title: str, description: str, effect: Effect, *, method: str = "", path: str = "") -> Tool:
    """A tool that can be searched for, and not called."""
    return Tool(
        name=name,
        title=title,
        description=description,
        effect=effect,
        method=method,
        path=path,
        input_schema=MappingProxyType({}),
        validator=_Anything(),
    )


def _offered(place: int, tool: Tool) -> Offered:
    connector = Connector(
        id=f"o_{place}", title="", base_url="https://document.invalid", credentials=(), verify=tool, tools={}
    )
    return Offered(f"o_{place}", "", connector, tool)


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
