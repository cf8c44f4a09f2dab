"""Read the GraphQL document of a tool: one named query or mutation, or an error with file, line and mend.

What is read is the language of executable documents (GraphQL, September 2025, section 2), narrowed to what a person can
read in one piece: no second operation, no subscription, no named fragment, printable ASCII only. No schema is known
here: whether a field exists is for the vendor to say.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar

from connectors.definition import Operation
from connectors.source import Spot

MAX_DEPTH = 24  # levels of selections, lists and objects

_TOKEN = re.compile(
    r"""
    (?P<ignored>(?:[ \t\r\n,\ufeff]|\#[^\r\n]*)+)
  | (?P<name>[_A-Za-z][_0-9A-Za-z]*)
  | (?P<block>\"\"\")
  | (?P<string>"(?:[ !\#-\[\]-~]|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*")
  | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![0-9A-Za-z_.]))
  | (?P<sign>\.\.\.|[!$&()\[\]{}:=@|])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a variable: a name, or a list of another type."""

    name: str  # empty for a list
    item: "Type | None"
    required: bool

    def __str__(self) -> str:
        return (f"[{self.item}]" if self.item else self.name) + ("!" if self.required else "")


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that a document declares."""

    name: str
    type: Type
    default: bool  # so that it may be left out whatever its type
    line: int  # in the connector file


@dataclass(frozen=True, slots=True)
class Document:
    """An operation, the fields at its top by their own names, and its variables, each of which it uses."""

    operation: Operation
    fields: tuple[str, ...]
    variables: Mapping[str, Variable]


def read_document(spot: Spot) -> Document:
    """The document that stands here; raises DefinitionError."""
    text = spot.text("The document")
    # In a YAML block the text begins on the line below its key.
    written = spot.value if isinstance(spot.value, str) else text
    first = spot.line + ("\n" in written)
    tokens, compact = _tokens(written, first, spot.file)
    return _Reader(spot.file, tokens).document(compact)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def _tokens(text: str, line: int, file: str) -> tuple[list[_Token], str]:
    """The tokens, and the document as one line: what GraphQL ignores shrinks to a comma, a space or nothing."""
    tokens: list[_Token] = []
    compact: list[str] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup == "block":
            _unreadable(Spot(file, line, text), text[at:])
        piece, at = found[0], found.end()
        if found.lastgroup == "ignored":
            bare = re.sub(r"#[^\r\n]*", " ", piece)
            compact.append(("," if "," in bare else "") + (" " if bare.strip(",") else ""))
            line += piece.count("\n")
        else:
            tokens.append(_Token(found.lastgroup or "", piece, line))
            compact.append(piece)
    tokens.append(_Token("end", "", line))
    return tokens, "".join(compact).strip(" ,")


def _unreadable(spot: Spot, rest: str) -> NoReturn:
    if rest.startswith('"""'):
        spot.fail("A document cannot hold a block string.", r'Write "…" on one line, with \n for a new line.')
    if rest.startswith('"'):
        spot.fail("This text in quotes is not GraphQL.", r"End it on its line, in ASCII: é is \u00e9.")
    spot.fail(f"A GraphQL document cannot hold {rest[0]!a} here.", "Remove it.")


_Read = TypeVar("_Read")


class _Reader:
    """Goes through the tokens once, from left to right."""

    def __init__(self, file: str, tokens: list[_Token]) -> None:
        self._file, self._tokens, self._at = file, tokens, 0
        self._variables: dict[str, Variable] = {}
        self._used: dict[str, int] = {}  # with the first line
        self._fields: list[str] = []
        self._depth = 0

    def document(self, compact: str) -> Document:
        kind, name = self._opening()
        if self._take("("):
            self._declare()
        self._directives()
        answers = self._selections(top=True)
        self._closing()
        operation = Operation(kind=kind, name=name, document=compact, answers=answers)
        if kind == "mutation" and len(answers) != 1:
            self._fail(self._tokens[0], "A mutation of a tool has one field.", "Make a tool of each.")
        self._compare_variables()
        return Document(operation, tuple(self._fields), self._variables)

    def _opening(self) -> tuple[Literal["query", "mutation"], str]:
        token = self._tokens[self._at]
        match token.text:
            case "query" | "mutation" as kind:
                self._at += 1
            case "{":
                self._fail(token, "The operation has no name.", "Write `query Name { … }`.")
            case "subscription":
                self._fail(token, "A subscription has no single answer.", "Write a query or a mutation.")
            case "fragment":
                self._fail(token, _NO_FRAGMENTS, "Write its fields where they are used.")
            case _:
                self._fail(token, "A document begins with `query` or `mutation`.", "Write `query Name { … }`.")
        if self._tokens[self._at].kind != "name":
            self._fail(self._tokens[self._at], "The operation has no name.", f"Write `{kind} Name`.")
        return kind, self._name()

    def _closing(self) -> None:
        token = self._tokens[self._at]
        if token.text == "fragment":
            self._fail(token, _NO_FRAGMENTS, "Write its fields where they are used.")
        if token.text in ("query", "mutation", "subscription", "{"):
            self._fail(token, "There are two operations.", "Make a tool of each.")
        if token.kind != "end":
            self._unexpected("the end")

    def _compare_variables(self) -> None:
        for name, variable in self._variables.items():
            if name not in self._used:
                Spot(self._file, variable.line, "").fail(f"The variable ${name} is never used.", "Remove it.")
        for name, line in self._used.items():
            if name not in self._variables:
                Spot(self._file, line, "").fail(
                    f"The variable ${name} is not declared.", f"Add `${name}: Type` to the operation's parentheses."
                )

    # --- declarations

    def _declare(self) -> None:
        while not self._take(")"):
            line = self._tokens[self._at].line
            self._expect("$")
            name = self._name()
            self._expect(":")
            kind = self._type()
            default = self._take("=")
            if default:
                self._value(constant=True)
            if name in self._variables:
                Spot(self._file, line, "").fail(f"The variable ${name} is declared twice.", "Remove one.")
            self._variables[name] = Variable(name, kind, default, line)

    def _type(self) -> Type:
        if self._take("["):
            item = self._deeper(self._type)
            self._expect("]")
            return Type("", item, self._take("!"))
        return Type(self._name(), None, self._take("!"))

    # --- selections

    def _selections(self, *, top: bool = False) -> dict[str, Any]:
        """What is selected, as the keys of its answer; fields of inline fragments stand among the others."""
        self._expect("{")
        keys: dict[str, Any] = {}
        while not self._take("}"):
            if self._take("..."):
                _merge(keys, self._inline(top=top))
            else:
                _merge(keys, self._field(top=top))
        if not keys:
            self._at -= 1
            self._unexpected("a field")
        return keys

    def _field(self, *, top: bool) -> dict[str, Any]:
        key = self._name()
        name = self._name() if self._take(":") else key
        if top:
            self._fields.append(name)
        self._arguments()
        self._directives()
        return {key: self._deeper(self._selections) if self._tokens[self._at].text == "{" else {}}

    def _inline(self, *, top: bool) -> dict[str, Any]:
        token = self._tokens[self._at]
        if token.kind == "name" and token.text != "on":
            self._fail(token, _NO_FRAGMENTS, "Write `... on Type { … }`, or the fields themselves.")
        if self._take("on"):
            self._name()
        self._directives()
        return self._deeper(lambda: self._selections(top=top))

    def _directives(self) -> None:
        while self._take("@"):
            self._name()
            self._arguments()

    def _arguments(self) -> None:
        if self._take("("):
            for _ in self._pairs(")"):
                self._value()

    # --- values

    def _value(self, *, constant: bool = False) -> None:
        token = self._tokens[self._at]
        self._at += 1
        if token.text == "$" and not constant:
            self._used.setdefault(self._name(), token.line)
        elif token.text == "[":
            while not self._take("]"):
                self._deeper(lambda: self._value(constant=constant))
        elif token.text == "{":
            for _ in self._pairs("}"):
                self._deeper(lambda: self._value(constant=constant))
        elif token.kind not in ("name", "number", "string"):
            self._at -= 1
            self._unexpected("a constant" if constant else "a value")

    def _pairs(self, end: str) -> Iterator[str]:
        """`name:` once for each value that the caller reads, up to the end."""
        while not self._take(end):
            name = self._name()
            self._expect(":")
            yield name

    # --- tokens

    def _deeper(self, read: Callable[[], _Read]) -> _Read:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(
                self._tokens[self._at], f"The document is nested deeper than {MAX_DEPTH} levels.", "Ask for less."
            )
        found = read()
        self._depth -= 1
        return found

    def _take(self, text: str) -> bool:
        token = self._tokens[self._at]
        taken = token.text == text and token.kind in ("sign", "name")
        self._at += taken
        return taken

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._unexpected(f"`{text}`")

    def _name(self) -> str:
        token = self._tokens[self._at]
        if token.kind != "name":
            self._unexpected("a name")
        self._at += 1
        return token.text

    def _unexpected(self, wanted: str) -> NoReturn:
        token = self._tokens[self._at]
        found = "the document ends" if token.kind == "end" else f"there is {token.text[:40]!a}"
        self._fail(token, f"This is not GraphQL: {found} where {wanted} should be.", "Compare the brackets.")

    def _fail(self, token: _Token, message: str, mend: str) -> NoReturn:
        Spot(self._file, token.line, "").fail(message, mend)


_NO_FRAGMENTS = "A document cannot hold named fragments."


def _merge(keys: dict[str, Any], more: dict[str, Any]) -> None:
    for key, below in more.items():
        _merge(keys.setdefault(key, {}), below)
