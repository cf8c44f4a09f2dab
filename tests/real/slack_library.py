"""Slack's own Python library: read as text, never imported. It names methods and arguments, not what comes back."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from tests.real.fetching import Cache
from tests.real.shape import Anything

VERSION = "3.47.0"


@dataclass(frozen=True)
class Slack:
    """The library's methods, by HTTP method and path."""

    operations: dict[tuple[str, str], "Described"]
    version: str | None = None  # Slack has none
    answers: bool = False

    @classmethod
    def read(cls, cache: Cache) -> "Slack":
        """Download and read it."""
        file = cache.pip(f"slack_sdk=={VERSION}") / "slack_sdk" / "web" / "client.py"
        return cls(dict(_methods(ast.parse(file.read_text()))))

    def operation(self, method: str, path: str) -> "Described | None":
        """The operation; None where there is none."""
        return self.operations.get((method, path))


@dataclass(frozen=True)
class Described:
    """One method of the library."""

    names: frozenset[str]
    required: frozenset[tuple[str, str]]
    answer: Anything

    def values(self, place: str, name: str) -> frozenset[str] | None:
        """Any value, for an argument that there is."""
        return frozenset() if name in self.names else None


def _methods(tree: ast.Module) -> Iterator[tuple[tuple[str, str], Described]]:
    """What each method of the client sends: `self.api_call("users.list", http_verb="GET", params=kwargs)`."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "api_call" and call.args:
                verbs = [each.value for each in call.keywords if each.arg == "http_verb"]
                verb = ast.literal_eval(verbs[0]) if verbs else "POST"
                place = "query" if verb == "GET" else "body"
                given = list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))
                required = frozenset((place, argument.arg) for argument, default in given if default is None)
                names = frozenset(argument.arg for argument, _ in given)
                yield (verb, f"/{ast.literal_eval(call.args[0])}"), Described(names, required, Anything())
