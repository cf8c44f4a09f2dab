"""Linear's schema, out of the types of the npm package `@linear/sdk`, which Linear generates from it.

The package carries no schema file. Its types name every field, argument and value, in a form as regular as its
generator; lists and needs are the schema's own, and so is what is deprecated.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import graphql

from tests.real.fetching import Cache
from tests.real.report import Wrong

VERSION = "98.0.0"
_BUILT_IN = frozenset({"ID", "String", "Boolean", "Int", "Float"})
_BLOCK = re.compile(r"^type (\w+) = ((?:\w+ & )*)\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_UNION = re.compile(r"^type (\w+) = (\w+(?: \| \w+)*);$", re.MULTILINE)
_ENUM = re.compile(r"^declare enum (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"(?:^  /\*\*(?P<note>.*?)\*/\n)?^  (?P<name>\w+)\??: (?P<type>[^\n]+);$", re.MULTILINE | re.DOTALL)


def read(cache: Cache) -> graphql.GraphQLSchema:
    """Download the package and make its types a schema again."""
    (file,) = (cache.tarball("@linear/sdk", VERSION) / "dist").glob("index-*.d.mts")
    types = _Types.read(file.read_text("utf-8"))
    if not {"Query", "Mutation", "QueryIssuesArgs"} <= types.blocks.keys():
        raise Wrong("the package's types are of another form than they were")
    return graphql.build_schema("\n".join(types.definitions()), assume_valid=True)


@dataclass
class _Types:
    """The declarations of the package, by name."""

    blocks: dict[str, str] = field(default_factory=dict)
    parents: dict[str, list[str]] = field(default_factory=dict)
    unions: dict[str, list[str]] = field(default_factory=dict)
    enums: dict[str, list[str]] = field(default_factory=dict)
    lower: dict[str, str] = field(default_factory=dict)  # the generator writes URL as Url in names of its own

    @classmethod
    def read(cls, text: str) -> "_Types":
        found = cls()
        for name, parents, body in _BLOCK.findall(text):
            found.blocks[name] = body
            found.parents[name] = re.findall(r"\w+", parents)
        found.unions = {name: re.findall(r"\w+", members) for name, members in _UNION.findall(text)}
        found.enums = {name: re.findall(r'= "(\w+)"', body) for name, body in _ENUM.findall(text)}
        found.lower = {name.lower(): name for name in found.blocks}
        return found

    def definitions(self) -> Iterator[str]:
        """Of everything that a query or a mutation leads to, in the schema's own language."""
        interfaces = {name for parents in self.parents.values() for name in parents}
        todo, seen = ["Query", "Mutation"], set[str]()
        while todo:
            name = todo.pop()
            if name in seen or name in _BUILT_IN:
                continue
            seen.add(name)
            if name in self.enums:
                yield f"enum {name} {{ {' '.join(self.enums[name])} }}"
            elif name in self.unions:
                todo += self.unions[name]
                yield f"union {name} = {' | '.join(self.unions[name])}"
            elif name in self.blocks:
                lines, more = self._fields(name)
                todo += [*more, *self.parents[name]]
                yield f"{self._head(name, interfaces)} {{\n{lines}\n}}"
            else:
                yield f"scalar {name}"

    def _head(self, name: str, interfaces: set[str]) -> str:
        parents = " & ".join(self.parents[name])
        made = f" implements {parents}" if parents else ""
        if name in interfaces:
            return f"interface {name}{made}"
        return f"type {name}{made}" if "__typename?:" in self.blocks[name] else f"input {name}"

    def _fields(self, name: str) -> tuple[str, list[str]]:
        lines, names = list[str](), list[str]()
        for found in _FIELD.finditer(self.blocks[name]):
            if found["name"] == "__typename":
                continue
            given = self.blocks.get(self.lower.get(f"{name}{found['name']}args".lower(), ""), "")
            arguments: list[str] = []
            for each in _FIELD.finditer(given):
                arguments.append(f"{each['name']}: {_written(each['type'], names)}")
            old = " @deprecated" if "@deprecated" in (found["note"] or "") else ""
            parentheses = f"({', '.join(arguments)})" if arguments else ""
            lines.append(f"  {found['name']}{parentheses}: {_written(found['type'], names)}{old}")
        return "\n".join(lines), names


def _written(kind: str, names: list[str]) -> str:
    """A type as the schema writes it; the names in it are added to `names`."""
    if outer := re.fullmatch(r"(?:Input)?Maybe<(.*)>", kind):
        return _written(outer[1], names).removesuffix("!")
    if listed := re.fullmatch(r"Array<(.*)>", kind):
        return f"[{_written(listed[1], names)}]!"
    name = re.fullmatch(r'Scalars\["(\w+)"\]|(\w+)', kind)
    if name is None:
        raise Wrong(f"the package has a type of another form: {kind[:80]}")
    names.append(name[1] or name[2])
    return f"{names[-1]}!"
