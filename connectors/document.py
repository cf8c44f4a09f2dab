"""An OpenAPI document as vendors publish them: read within bounds, its references followed, its operations found.

Nothing is validated as a whole, since strict validators refuse several of the documents that are out there: what an
operation needs is looked at when it is wanted, and what cannot be used is refused with a JSON pointer to it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast
from urllib.parse import unquote

from connectors.bounded import deeper_than
from connectors.errors import ConnectorError
from connectors.source import suggestion

MAX_JSON = 32 * 1024 * 1024  # bytes
MAX_YAML = 8 * 1024 * 1024  # bytes: read far more slowly
MAX_VALUES = 1_000_000  # in YAML, after its aliases have been written out
MAX_DEPTH = 100  # levels
MAX_TEXT = 400  # characters of a description
METHODS = ("get", "head", "post", "put", "patch", "delete")
OTHERS = ("options", "trace", "query", "connect")  # an operation there may be, and one that is never sent

_VERSION = re.compile(r"3\.[0-9]+(\.[0-9]+)?([-+].*)?")
_CALL = re.compile(r"([A-Za-z]{3,12}) (/.*)", re.DOTALL)
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")
_HOPS = 32  # a reference to a reference, and so on


class DocumentError(ConnectorError):
    """A document, or a part of it, cannot be used: where, why, and how to mend it. `reason` is short, for counting."""

    def __init__(self, message: str, mend: str = "", *, at: str = "", reason: str = "") -> None:
        super().__init__(f"{f'{at}: ' if at else ''}{message}{' ' if mend else ''}{mend}")
        self.message, self.mend, self.at, self.reason = message, mend, at, reason or message


@dataclass(frozen=True, slots=True)
class Part:
    """A value of the document, and the JSON pointer to it."""

    value: Any
    at: str

    @property
    def mapping(self) -> dict[str, Any]:
        """The value; empty where it is no mapping."""
        value = self.value
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    @property
    def reference(self) -> str | None:
        """Where its `$ref` leads; None without one."""
        found = self.mapping.get("$ref")
        return found if isinstance(found, str) else None

    def __getitem__(self, key: str | int) -> "Part":
        return Part(self.value[key], f"{self.at}/{_escaped(key)}")

    def get(self, key: str) -> "Part | None":
        """What stands at this key; None without one, or where this is no mapping."""
        return self[key] if key in self.mapping else None

    def items(self) -> "Iterator[tuple[str, Part]]":
        """Keys and values; none where this is no mapping."""
        for key in self.mapping:
            yield key, self[key]

    def list(self) -> "Iterator[Part]":
        """The items; none where this is no list."""
        for place in range(len(_items(self))):
            yield self[place]

    def text(self, key: str) -> str:
        """The text at this key; empty where there is none."""
        found = self.mapping.get(key)
        return found if isinstance(found, str) else ""

    def says(self, key: str) -> bool:
        """Whether this key is there, and true."""
        return self.mapping.get(key) is True

    def fail(self, message: str, mend: str = "", *, reason: str = "") -> NoReturn:
        raise DocumentError(message, mend, at=self.at, reason=reason)


@dataclass(frozen=True, slots=True)
class Described:
    """One operation of a document."""

    method: str  # in capitals
    path: str  # as the document writes it
    item: Part  # what stands at the path
    part: Part

    @property
    def id(self) -> str:
        return self.part.text("operationId")

    @property
    def call(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def summary(self) -> str:
        return line(self.part.text("summary"))

    @property
    def description(self) -> str:
        return line(self.part.text("description"))

    @property
    def deprecated(self) -> bool:
        return self.part.says("deprecated")

    @property
    def tags(self) -> tuple[str, ...]:
        tags = self.part.get("tags")
        return tuple(tag.value for tag in tags.list() if isinstance(tag.value, str)) if tags else ()


@dataclass(frozen=True)
class Document:
    """An OpenAPI document of 3.0, 3.1 or 3.2."""

    root: Mapping[str, Any] = field(repr=False)
    version: str
    _found: dict[str, Part] = field(default_factory=dict[str, Part], repr=False, compare=False)

    @property
    def title(self) -> str:
        info = Part(self.root, "").get("info")
        return line(info.text("title")) if info else ""

    def operations(self) -> Iterator[Described]:
        """All of them, in the document's order; those too whose method is never sent."""
        for path, item in Part(self.root, "")["paths"].items() if "paths" in self.root else ():
            if not path.startswith("/"):
                continue
            whole = self.resolve(item)
            for method, part in whole.items():
                if method.lower() in (*METHODS, *OTHERS) and isinstance(part.value, dict):
                    yield Described(method.upper(), path, whole, part)
            for method, part in _more(whole):
                yield Described(method, path, whole, part)

    def find(self, name: str) -> Described:
        """The operation of this operationId, or `METHOD /path`; raises DocumentError."""
        called = _CALL.fullmatch(name)
        if called:
            wanted = f"{called[1].upper()} {called[2]}"
            found = [each for each in self.operations() if each.call == wanted]
        else:
            found = [each for each in self.operations() if each.id == name]
        if len(found) == 1:
            return found[0]
        if found:
            calls = " or ".join(f"`{each.call}`" for each in found[:4])
            raise DocumentError(f"Several operations have the operationId {name!r}.", f"Write {calls}.")
        known = [each.call if called else each.id for each in self.operations()]
        raise DocumentError(
            f"The document has no operation {name[:80]!r}.",
            f"{suggestion(name, known)}Write its operationId, or `METHOD /path` as the document has it.",
        )

    def resolve(self, part: Part) -> Part:
        """What a reference leads to, however many there are on the way; anything else as it is."""
        for _ in range(_HOPS):
            if part.reference is None:
                return part
            part = self.at(part.reference, part)
        return part.fail("This reference leads through more than 32 others, or back to itself.", reason="endless $ref")

    def at(self, reference: str, of: Part) -> Part:
        """What stands at this reference (RFC 6901, as a fragment), which was found at `of`; raises DocumentError."""
        if reference in self._found:
            return self._found[reference]
        if not reference.startswith("#/") and reference != "#":
            of.fail(
                f"This refers to {reference[:120]!r}, which is outside of the document.",
                "Bundle it into one file first.",
                reason="$ref to elsewhere",
            )
        found = Part(self.root, "")
        for escaped in reference[2:].split("/") if reference != "#" else ():
            key = unquote(escaped).replace("~1", "/").replace("~0", "~")
            if key in found.mapping:
                found = found[key]
            elif _INDEX.fullmatch(key) and int(key) < len(_items(found)):
                found = found[int(key)]
            else:
                of.fail(f"This refers to {reference[:120]!r}, which is not there.", reason="broken $ref")
        self._found[reference] = found
        return found


def _items(part: Part) -> list[Any]:
    value = part.value
    return cast("list[Any]", value) if isinstance(value, list) else []


def _more(item: Part) -> Iterator[tuple[str, Part]]:
    """Operations of methods that OpenAPI itself does not name (3.2)."""
    more = item.get("additionalOperations")
    yield from ((method, part) for method, part in more.items() if isinstance(part.value, dict)) if more else ()


def read_document(content: bytes, name: str) -> Document:
    """The document in these bytes, JSON or YAML; `name` is what errors call it. Raises DocumentError."""
    text = _decoded(content, name)
    return _document(_json(text, content, name) if text.lstrip()[:1] in ("{", "[") else _yaml(text, name), name)


def read_json_document(content: bytes, name: str) -> Document:
    """The same of JSON alone, which is read fast enough to be read at each start. Raises DocumentError."""
    return _document(_json(_decoded(content, name), content, name), name)


def line(text: str) -> str:
    """A text of the document on one line, without its HTML tags and without characters that cannot be seen."""
    said = _TAG.sub(" ", text) if "<" in text else text
    if not said.isprintable():
        said = "".join(char if char.isprintable() else " " for char in said)
    return " ".join(said.split())


def short(text: str) -> str:
    """The beginning of such a text; all of it where that is not long."""
    said = line(text)
    return said if len(said) <= MAX_TEXT else f"{said[: MAX_TEXT - 1].rstrip()}…"


_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = content.count(b"\n", 0, error.start) + 1
        raise DocumentError("The document is not UTF-8.", at=f"{name}:{where}") from None


def _json(text: str, content: bytes, name: str) -> Any:
    if len(content) > MAX_JSON:
        raise DocumentError(f"The document is larger than {MAX_JSON >> 20} MiB.", at=name)
    if deeper_than(content, MAX_DEPTH):
        raise DocumentError(f"The document is nested deeper than {MAX_DEPTH} levels.", at=name)
    try:
        return json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise DocumentError(f"This is not JSON: {error.msg}.", at=f"{name}:{error.lineno}") from None
    except (ValueError, RecursionError):
        raise DocumentError("This is not JSON: it holds a number that JSON does not have.", at=name) from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _yaml(text: str, name: str) -> Any:
    """YAML as the JSON that it stands for: no dates, no `on` for true, aliases written out within bounds."""
    import yaml

    if len(text) > MAX_YAML:
        raise DocumentError(
            f"The document is larger than {MAX_YAML >> 20} MiB of YAML.", "Take the vendor's JSON.", at=name
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(loader):  # type: ignore[misc, valid-type]  # one for each document: its resolvers are its own
        yaml_implicit_resolvers: Mapping[str, Sequence[tuple[str, re.Pattern[str]]]] = _RESOLVERS

    try:
        return _Plain(name).value(yaml.load(text, Loader=Loader), MAX_DEPTH)  # noqa: S506 - a safe loader, narrowed
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DocumentError(f"This is not YAML: {error.problem}.", at=f"{name}:{where}") from None
    except (yaml.YAMLError, ValueError):
        raise DocumentError("This is not YAML, or holds what may not stand there.", at=name) from None
    except RecursionError:
        raise DocumentError(f"The document is nested deeper than {MAX_DEPTH} levels.", at=name) from None


# The core schema of YAML 1.2 (10.3.2), by first character as PyYAML wants it: `no`, `on` and dates are texts.
_NULL, _BOOL = re.compile(r"~|null|Null|NULL|"), re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)\.[0-9]*|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]{1,3})?")
_NUMBER = [
    ("tag:yaml.org,2002:int", re.compile(f"(?:{_INTEGER.pattern})$")),
    ("tag:yaml.org,2002:float", re.compile(f"(?:{_FLOAT.pattern})$")),
]
_RESOLVERS: dict[str, Sequence[tuple[str, re.Pattern[str]]]] = {
    **{first: [("tag:yaml.org,2002:null", re.compile(f"(?:{_NULL.pattern})$"))] for first in ("~", "n", "N", "")},
    **{first: [("tag:yaml.org,2002:bool", re.compile(f"(?:{_BOOL.pattern})$"))] for first in "tTfF"},
    **dict.fromkeys("-+.0123456789", _NUMBER),
}


class _Plain:
    """Copies what YAML made into plain JSON, and stops at the first value too many."""

    def __init__(self, name: str) -> None:
        self._name, self._left = name, MAX_VALUES

    def value(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth < 0:
            raise DocumentError(
                "The document holds too much, or is nested too deeply, once its YAML aliases are written out.",
                "Take the vendor's JSON.",
                at=self._name,
            )
        if isinstance(value, dict):
            return {self._key(key): self.value(item, depth - 1) for key, item in cast("dict[Any, Any]", value).items()}
        if isinstance(value, list):
            return [self.value(item, depth - 1) for item in cast("list[Any]", value)]
        if value is None or isinstance(value, str | bool | int | float):
            return value
        raise DocumentError(f"The document holds a {type(value).__name__}, which is no JSON.", at=self._name)

    def _key(self, key: Any) -> str:
        if key == "<<":
            raise DocumentError("YAML's merge key `<<` is not taken.", "Take the vendor's JSON.", at=self._name)
        if isinstance(key, bool):
            return "true" if key else "false"
        return "null" if key is None else str(key)


def _document(root: Any, name: str) -> Document:
    if not isinstance(root, dict):
        raise DocumentError("This is no OpenAPI document: it is no mapping.", at=name)
    whole = cast("dict[str, Any]", root)
    if "swagger" in whole:
        raise DocumentError(
            f"This is Swagger {str(whole['swagger'])[:10]}, and OpenAPI 3 is taken.",
            "Look for the vendor's newer document, or convert this one.",
            at=name,
        )
    version = str(whole.get("openapi", ""))[:20]
    if not _VERSION.fullmatch(version):
        raise DocumentError("This is no OpenAPI 3 document.", "It begins with `openapi: 3.0.3`, for instance.", at=name)
    return Document(whole, ".".join(version.split(".")[:2]))


def _escaped(key: str | int) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")
