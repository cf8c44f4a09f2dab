"""Every tool on offer, under its one name on the wire; a name and arguments become a `Call`, or a mendable error.

A definition that cannot be read hides no other. Wire names are looked up and never split.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from connectors.definition import Call, Connector, Tool
from connectors.errors import DefinitionError, InvalidArguments, UnknownTool
from connectors.finding import Index
from connectors.loading import load

MAX_ARGUMENTS = 1024 * 1024  # bytes of canonical JSON
MAX_DEPTH = 32
MAX_WIRE_NAME = 64
SEARCH, DESCRIBE, CALL = "search_tools", "describe_tool", "call_tool"
MORE = "read_more"
OWN_NAMES = frozenset({SEARCH, DESCRIBE, CALL, MORE})
"""Names on the wire that no connection's tool may have: they find, describe and call the others, and read on."""

_CONNECTION = re.compile(r"[a-z][a-z0-9_]{0,39}")
_UNSENDABLE = re.compile(r"[\x00\ud800-\udfff]")
_WHOLE = 2**53


def shipped_folder(package: Path = Path(__file__).parent) -> Path:
    """Where the definitions are that come with the program: inside the wheel, or in the checkout around it."""
    for folder in (package / "_definitions", package.parent / "configs" / "connectors"):
        if folder.is_dir():
            return folder
    raise DefinitionError(package, 1, "The connectors that come with Keyleash are missing.", "Install it again.")


def is_shipped(connector: Connector) -> bool:
    """Whether this definition comes with the program, and is nobody's own of the same id."""
    return Path(connector.file).parent == shipped_folder()


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool of one connection."""

    name: str  # on the wire
    connection: str
    connector: Connector
    tool: Tool


class Offer:
    """The tools of an org's connections."""

    def __init__(self, tools: Mapping[str, Offered], problems: tuple[str, ...] = ()) -> None:
        self._tools = tools
        self.tools: tuple[Offered, ...] = tuple(tools[name] for name in sorted(tools))
        self.problems = problems  # why a connection's tools, or some of them, are not there

    @cached_property
    def index(self) -> Index:
        """The words of all these tools; made when somebody first searches."""
        return Index(self.tools)

    def find(self, name: str) -> Offered | None:
        """The tool of this wire name, if there is one; without looking for names that are like it."""
        return self._tools.get(name)

    def get(self, name: str) -> Offered:
        """The tool of this wire name; raises UnknownTool."""
        if name in self._tools:
            return self._tools[name]
        import difflib

        raise UnknownTool(name, difflib.get_close_matches(name[:MAX_WIRE_NAME], self._tools, n=2))

    def bind(self, name: str, arguments: Mapping[str, Any]) -> Call:
        """The call of this tool with these arguments; raises UnknownTool or InvalidArguments.

        Whole floats become integers, so that equal calls are equal in every form.
        """
        offered = self.get(name)
        try:
            checked = {key: _plain(value, MAX_DEPTH) for key, value in arguments.items() if _key(key)}
            _check_known(offered.tool, checked)
            if not offered.tool.validator.is_valid(checked):
                raise _Unfit("; ".join(_problems(offered.tool, checked)))
            call = Call(offered.connection, offered.connector, offered.tool, name, checked)
            if len(call.canonical.encode()) > MAX_ARGUMENTS:
                raise _Unfit(f"The arguments are longer than {MAX_ARGUMENTS} bytes.")
        except _Unfit as problem:
            raise InvalidArguments(str(problem), [argument.name for argument in offered.tool.arguments]) from None
        return call


class Definitions(Mapping[str, Connector]):
    """Connectors by id, each read when it is first asked for: a server reads those that its orgs use, and no other.

    A file that cannot be used is as good as absent, and `problems` says why. A file is named for its id.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths: dict[str, Path] = {}
        self._read: dict[str, Connector | DefinitionError] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._second: list[DefinitionError] = []
        for path in paths:
            first = self._paths.setdefault(path.stem, path)
            if first is not path:
                self._second.append(_already(path, first))

    def __getitem__(self, identifier: str) -> Connector:
        path = self._paths[identifier]
        if identifier not in self._read:
            self._stamps[identifier] = _stamp(path)  # before: what changes meanwhile is seen at the next look
            self._read[identifier] = _read(path)
        found = self._read[identifier]
        if isinstance(found, DefinitionError):
            raise KeyError(identifier)
        return found

    def __iter__(self) -> Iterator[str]:
        return (identifier for identifier in self._paths if identifier in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def look_again(self, identifiers: Iterable[str]) -> None:
        """Read the files of wrapped servers anew that have changed, or could not be read: a review writes into them."""
        for identifier in identifiers:
            found = self._read.get(identifier)
            wrapped = isinstance(found, DefinitionError) or (found is not None and found.server is not None)
            if wrapped and self._stamps.get(identifier) != _stamp(self._paths[identifier]):
                del self._read[identifier]

    def problems(self, below: Path | None = None) -> tuple[DefinitionError, ...]:
        """What is wrong with these files, or with those in this folder alone; they are read for it."""
        looked_at = [name for name, path in self._paths.items() if below in (None, path.parent)]
        found = [self._read[name] for name in looked_at if name not in self]
        second = [problem for problem in self._second if below in (None, Path(problem.file).parent)]
        return (*(problem for problem in found if isinstance(problem, DefinitionError)), *second)


def _read(path: Path) -> Connector | DefinitionError:
    try:
        return load(path)
    except DefinitionError as problem:
        return problem
    except Exception as error:  # one file never hides the others, whatever is wrong with it
        return DefinitionError(path, 1, f"The file cannot be used ({type(error).__name__}).")


def _stamp(path: Path) -> tuple[int, ...]:
    """What differs once a file has been replaced or written to."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _already(path: Path, first: Path) -> DefinitionError:
    return DefinitionError(path, 1, f"{path.stem!r} is already defined in {first}.", "Rename it.")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every connector that could be read, and what was wrong with the others."""

    connectors: Mapping[str, Connector]

    @classmethod
    def load(cls, *folders: Path) -> "Catalogue":
        """Every *.yaml in these folders; a connector keeps its name against a later file's."""
        return cls(Definitions(path for folder in folders for path in sorted(folder.glob("*.yaml"))))

    @property
    def problems(self) -> tuple[DefinitionError, ...]:
        """What is wrong with any of the files; all of them are read for it."""
        return self.problems_in(None)

    def problems_in(self, folder: Path | None) -> tuple[DefinitionError, ...]:
        """What is wrong with the files in this folder; the others are not read."""
        return self.connectors.problems(folder) if isinstance(self.connectors, Definitions) else ()

    def look_again(self, identifiers: Iterable[str]) -> None:
        """Take in what has changed in the files of these wrapped servers."""
        if isinstance(self.connectors, Definitions):
            self.connectors.look_again(identifiers)

    def offer(self, connections: Mapping[str, str], shared: Collection[str] = ()) -> Offer:
        """The tools of these connections, given as connection name → connector id.

        Of those named in `shared`, which other orgs use as well, only the tools that are marked as safe for that.
        Where a changed definition has made two tools share a name, neither is offered: a name must not change hands.
        """
        tools: dict[str, Offered] = {}
        problems: list[str] = []
        clashing: set[str] = set()
        for connection, identifier in connections.items():
            connector = self.connectors.get(identifier)
            if connector is None:
                problems.append(f"The connection {connection} needs the connector {identifier}, which cannot be read.")
                continue
            for offered in _offered(connection, connector, shared=connection in shared):
                if offered.name in OWN_NAMES:
                    problems.append(_taken(offered.name, connection))
                elif offered.name in tools:
                    clashing.add(offered.name)
                    problems.append(_clash(offered.name, tools[offered.name].connection, connection))
                elif len(offered.name) > MAX_WIRE_NAME:
                    problems.append(f"The tool name {offered.name} is longer than {MAX_WIRE_NAME} characters.")
                else:
                    tools[offered.name] = offered
        return Offer({name: tool for name, tool in tools.items() if name not in clashing}, tuple(problems))

    def collision(
        self, existing: Mapping[str, str], new_name: str, connector_id: str, shared: Collection[str] = ()
    ) -> str | None:
        """Why a connection of this name cannot be added to these, or None. `shared` is as in `offer`.

        Raises DefinitionError where there is no such connector.
        """
        connector = self.connector(connector_id)
        if not _CONNECTION.fullmatch(new_name):
            return (
                f"{new_name!r} cannot be a connection's name: use a-z, 0-9 and _, beginning with a letter, at most 40."
            )
        if new_name in existing:
            return f"There is already a connection {new_name}."
        taken = {offered.name: offered.connection for offered in self.offer(existing, shared).tools}
        for offered in _offered(new_name, connector, shared=new_name in shared):
            if len(offered.name) > MAX_WIRE_NAME:
                return (
                    f"The tool name {offered.name} would be longer than {MAX_WIRE_NAME} characters: use a shorter name."
                )
            if offered.name in OWN_NAMES:
                return f"{_taken(offered.name, new_name)} Use another name."
            if offered.name in taken:
                return f"{_clash(offered.name, taken[offered.name], new_name)} Use another name."
        return None

    def connector(self, identifier: str) -> Connector:
        """The connector of this id; raises DefinitionError, which says why it could not be read where that is so."""
        if identifier in self.connectors:
            return self.connectors[identifier]
        for problem in self.problems:
            if Path(problem.file).stem == identifier:
                raise problem
        known = ", ".join(sorted(self.connectors))
        raise DefinitionError(f"{identifier}.yaml", 1, f"There is no connector {identifier!r}.", f"Known: {known}.")


def _offered(connection: str, connector: Connector, *, shared: bool) -> Iterator[Offered]:
    for tool in connector.tools.values():
        if tool.shared or not shared:
            yield Offered(f"{connection}_{tool.name}", connection, connector, tool)


def _clash(name: str, one: str, other: str) -> str:
    return f"The connections {one} and {other} would both have a tool {name}."


def _taken(name: str, connection: str) -> str:
    return f"The connection {connection} would have a tool {name}, which is a name of Keyleash's own."


class _Unfit(Exception):
    """What is wrong with the arguments, in words."""


def _key(key: object) -> bool:
    if not isinstance(key, str) or _UNSENDABLE.search(key):
        raise _Unfit("A name is not text, or holds a NUL or half of a surrogate pair.")
    return True


def _plain(value: Any, depth: int) -> Any:
    """A copy that is plain JSON and can be written in UTF-8."""
    if depth == 0:
        raise _Unfit(f"The arguments are nested deeper than {MAX_DEPTH} levels.")
    match value:
        case str():
            if _UNSENDABLE.search(value):
                raise _Unfit("A value holds a NUL or half of a surrogate pair; send whole characters.")
            return value
        case bool() | None:
            return value
        case int():
            if abs(value) > 2**63 - 1:
                raise _Unfit("A number does not fit 64 bits.")
            return value
        case float():
            if not math.isfinite(value):
                raise _Unfit("A number is not finite.")
            return int(value) if value.is_integer() and abs(value) <= _WHOLE else value
        case dict():
            items = cast("dict[Any, Any]", value).items()
            return {key: _plain(item, depth - 1) for key, item in items if _key(key)}
        case list():
            return [_plain(item, depth - 1) for item in cast("list[Any]", value)]
        case _:
            raise _Unfit("A value is not JSON.")


def _check_known(tool: Tool, arguments: Mapping[str, Any]) -> None:
    names = [argument.name for argument in tool.arguments]
    unknown = [name for name in arguments if name not in names]
    if not unknown:
        return
    import difflib

    near = difflib.get_close_matches(unknown[0][:80], names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise _Unfit(f"There is no argument {_shown(unknown[0])}.{hint}")


def _problems(tool: Tool, arguments: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    for error in tool.validator.iter_errors(arguments):
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        problems.append(f"{where[1:] + ': ' if where else ''}{_shown(error.message)}")
        if len(problems) == 3:
            break
    return [problem if problem.endswith(".") else f"{problem}." for problem in problems]


def _shown(text: str) -> str:
    """A bounded line without characters that would change how it reads."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= 200 else f"{line[:200]}…"
