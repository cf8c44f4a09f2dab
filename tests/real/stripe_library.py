"""Stripe's own Python library, which Stripe generates from its document: read as text, never imported."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from tests.real.fetching import Cache

VERSION = "16.1.0"
ANY = ast.Name("Any")
LISTS = frozenset({"ListObject", "SearchResultObject"})


@dataclass(frozen=True)
class Module:
    """One file of the library."""

    root: Path
    path: Path

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """Every class of the file, by name, those inside others too; of two, the one that stands less deep."""
        found = [node for node in ast.walk(self._tree) if isinstance(node, ast.ClassDef)]
        return {node.name: node for node in reversed(found)}

    @cached_property
    def _imported(self) -> dict[str, str]:
        found = [node for node in ast.walk(self._tree) if isinstance(node, ast.ImportFrom) and node.module]
        return {alias.name: str(node.module) for node in found for alias in node.names}

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    def find(self, name: str) -> "tuple[Module, ast.ClassDef] | None":
        """The class of this name, here or where it is imported from."""
        if name in self.classes:
            return self, self.classes[name]
        origin = self._imported.get(name, "")
        path = self.root.parent.joinpath(*origin.split(".")).with_suffix(".py")
        other = _module(self.root, path) if origin.startswith("stripe.") and path.is_file() else None
        return (other, other.classes[name]) if other and name in other.classes else None


@lru_cache(maxsize=256)
def _module(root: Path, path: Path) -> Module:
    return Module(root, path)


@dataclass(frozen=True)
class Stripe:
    """The library's requests, by method and path with nameless holes."""

    version: str | None
    operations: dict[tuple[str, str], tuple[Module, ast.FunctionDef]]
    answers: bool = True

    @classmethod
    def read(cls, cache: Cache) -> "Stripe":
        """Download and read it."""
        root = cache.pip(f"stripe=={VERSION}") / "stripe"
        version = re.search(r'CURRENT = "([^"]+)"', (root / "_api_version.py").read_text())
        modules = [_module(root, path) for path in root.glob("_*_service.py")]
        operations = {key: (module, function) for module in modules for key, function in _requests(module)}
        return cls(version[1] if version else None, operations)

    def operation(self, method: str, path: str) -> "Described | None":
        """The operation; None where there is none."""
        found = self.operations.get((method, _nameless(path)))
        return None if found is None else Described(*found)


def _nameless(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def _requests(module: Module) -> Iterator[tuple[tuple[str, str], ast.FunctionDef]]:
    """What each method of the service sends: `self._request("get", "/v1/…", …)`."""
    for service in module.classes.values():
        for function in (node for node in service.body if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if isinstance(call.func, ast.Attribute) and call.func.attr == "_request":
                    method, path = (
                        next(part.value for part in ast.walk(each) if isinstance(part, ast.Constant))
                        for each in call.args[:2]
                    )
                    yield (str(method).upper(), _nameless(str(path))), function


class Described:
    """One method of one of the library's services."""

    def __init__(self, module: Module, function: ast.FunctionDef) -> None:
        given = {argument.arg: argument.annotation for argument in function.args.args}
        params = given.get("params")
        self._params = Annotation(module, params) if params else None
        self.answer = Annotation(module, function.returns or ANY)
        place = "body" if "'post'" in ast.unparse(function) else "query"
        names = self._params.fields() if self._params and "Optional" not in ast.unparse(given["params"] or ANY) else {}
        self.required = frozenset(
            (place, name) for name, (_, annotation) in names.items() if "NotRequired" not in ast.unparse(annotation)
        )

    def values(self, place: str, name: str) -> frozenset[str] | None:
        """The values that an argument may have; `created[gte]` is the field `gte` of `created`."""
        at: Annotation | None = self._params
        for part in name.replace("]", "").split("["):
            at = at.field(part) if at else None
        return at.literals() if at else None


@dataclass(frozen=True)
class Annotation:
    """A type annotation, as the shape of an answer."""

    module: Module
    node: ast.expr

    def fields(self) -> dict[str, tuple[Module, ast.expr]]:
        """The fields of every class that the annotation names."""
        found: dict[str, tuple[Module, ast.expr]] = {}
        for module, definition in self._classes():
            for each in definition.body:
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    found[each.target.id] = (module, each.annotation)
        return found

    def field(self, name: str) -> "Annotation | None":
        """The shape of a field; None where there is none of that name."""
        if name in (fields := self.fields()):
            module, annotation = fields[name]
            if name == "data" and LISTS.intersection(self._names()):
                return self  # `data: List[T]`, and T stands in our own annotation: ListObject[Charge]
            return Annotation(module, annotation)
        return None if fields else Annotation(self.module, ANY)

    def item(self) -> "Annotation":
        """The shape of a list's items: the same annotation, without what it is a list of."""
        return Annotation(self.module, _inside(self.node))

    def literals(self) -> frozenset[str]:
        """The texts that it may be; empty where it may be any text."""
        return frozenset(
            str(part.value)
            for node in ast.walk(_parsed(self.node))
            if isinstance(node, ast.Subscript) and _name(node.value) == "Literal"
            for part in ast.walk(node.slice)
            if isinstance(part, ast.Constant)
        )

    def _classes(self) -> Iterator[tuple[Module, ast.ClassDef]]:
        outer = _parsed(self.node)
        names = self._names()
        if "ExpandableField" in names:
            return  # an id, which is what comes where nobody asks for more
        if isinstance(outer, ast.Subscript) and (name := _name(outer.value)) in LISTS:
            names = [name]
        for name in names:
            if found := self.module.find(name):
                yield found

    def _names(self) -> list[str]:
        return [node.id for node in ast.walk(_parsed(self.node)) if isinstance(node, ast.Name)]


def _parsed(node: ast.expr) -> ast.expr:
    """The annotation with its texts read as annotations, those of Literal apart."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _parsed(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Subscript) and _name(node.value) != "Literal":
        return ast.Subscript(node.value, _parsed(node.slice), node.ctx)
    if isinstance(node, ast.Tuple):
        return ast.Tuple([_parsed(each) for each in node.elts], node.ctx)
    if isinstance(node, ast.BinOp):
        return ast.BinOp(_parsed(node.left), node.op, _parsed(node.right))
    return node


def _inside(node: ast.expr) -> ast.expr:
    """`Charge` of `ListObject[Charge]` or `Optional[List[Charge]]`."""
    parsed = _parsed(node)
    while isinstance(parsed, ast.Subscript):
        wrapper, parsed = _name(parsed.value), parsed.slice
        if wrapper in {*LISTS, "List", "list"}:
            return parsed
    return parsed


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""
