"""Which code asks the database for what, found by reading it and by watching it; and whether it says for which org.

`functions()` reads the modules: every function that holds SQL, or is handed the database. `Watching` sees every
statement that SQLite runs in this process, its values filled in, and which function asked for it.
"""

import ast
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from sqlmodel import SQLModel

import server.tables
import vault.tables

assert server.tables, vault.tables

ROOT = Path(__file__).parent.parent
KEYS = {
    **{table.name: "org" for table in SQLModel.metadata.sorted_tables if "org" in table.columns},
    "org": "id",
    "removed_org": "id",
}
"""Every table with rows of orgs → the column that says whose they are."""

CARRIERS = frozenset(
    {
        "Caller",
        "Approval",
        "Connection",
        "Managed",
        "Asked",
        "Org",
        "Member",
        "Agent",
        "Desk",
        "Pending",
        "Bound",
        "Log",
        "Hook",
        "_Leased",
        "LostCall",
        "Held",
        "Prunable",
    }
)
"""Classes whose every instance belongs to one org and says to which."""
DATABASE = frozenset({"Rows", "Database", "Reader"})
_SQL = re.compile(r"\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)\s|\s*FROM \w")
_MENTION = re.compile(
    r"\b(?:FROM|JOIN|INTO|UPDATE)\s+\"?(\{[^}]*\}|[a-z_.]+)\"?(?:\s+(?:AS\s+)?(?!WHERE|SET|ON|LEFT|JOIN|ORDER|GROUP"
    r"|LIMIT|VALUES|UNION|SELECT)([a-z]\w*))?",
)


@dataclass(frozen=True)
class Function:
    """A function as it stands in its module. `queries` is the SQL in it, with holes where something is filled in."""

    name: str
    queries: tuple[str, ...]
    takes_database: bool
    takes_org: bool

    @property
    def of_orgs(self) -> bool:
        """Whether it asks for rows of orgs itself."""
        return any(table in KEYS or table.startswith("{") for sql in self.queries for table in tables_in(sql))


def tables_in(sql: str) -> list[str]:
    return [found[1].removeprefix("main.") for found in _MENTION.finditer(sql)]


@cache
def functions() -> dict[str, Function]:
    """Every function of the server and the vault that has to do with the database, by its dotted name."""
    found: dict[str, Function] = {}
    for room in ("server", "vault"):
        for file in sorted((ROOT / room).rglob("*.py")):
            if "migrations" not in file.parts:
                module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                found |= {each.name: each for each in _functions(module, ast.parse(file.read_text()))}
    return found


def _functions(module: str, tree: ast.Module) -> Iterator[Function]:
    constants = {
        target.id: sql
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and (sql := " ".join(_texts(statement.value))) and _SQL.match(sql)
    }
    yield from _below(module, tree, constants, org=False)


def _below(path: str, node: ast.AST, constants: dict[str, str], *, org: bool) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _below(f"{path}.{child.name}", child, constants, org=org)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name, given = f"{path}.{child.name}", _parameters(child)
            knows = org or "org" in given or any(kind & CARRIERS for kind in given.values())
            own = [*_own(child)]
            queries = [sql for each in own for sql in _texts(each) if _SQL.match(sql)]
            queries += [constants[each.id] for each in own if isinstance(each, ast.Name) and each.id in constants]
            takes = any(kind & DATABASE for kind in given.values())
            if queries or takes:
                yield Function(name, tuple(queries), takes, knows)
            yield from _below(name, child, constants, org=knows)
        else:
            yield from _below(path, child, constants, org=org)


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function itself, and in no function or class inside it."""
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield child
        if not isinstance(child, ast.JoinedStr):
            yield from _own(child)


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield " ".join(node.value.split())
    elif isinstance(node, ast.JoinedStr):
        parts = (each.value if isinstance(each, ast.Constant) else f"{{{ast.unparse(each)}}}" for each in node.values)
        yield " ".join("".join(map(str, parts)).split())


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, set[str]]:
    """The parameters, each with the names that stand in its annotation."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {
        each.arg: set(re.findall(r"\w+", ast.unparse(each.annotation))) if each.annotation else set() for each in given
    }


# -- as it runs


@dataclass(frozen=True)
class Asked:
    """One statement as SQLite ran it, and the function that asked for it."""

    function: str
    sql: str


class Watching:
    """`with Watching() as watching:`; then `watching.asked`: every distinct statement, its values made plain."""

    def __init__(self) -> None:
        self.asked: dict[tuple[str, str], Asked] = {}
        self.times: Counter[tuple[CodeType, str]] = Counter()

    def __enter__(self) -> "Watching":
        self._connect = sqlite3.connect

        def connect(*given: Any, **named: Any) -> sqlite3.Connection:
            connection = self._connect(*given, **named)
            connection.set_trace_callback(self.see)
            return connection

        sqlite3.connect = connect  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        sqlite3.connect = self._connect

    def see(self, sql: str) -> None:
        code = _asking(sys._getframe(1))
        if code is None or not _SQL.match(sql):
            return
        often = (code, sql[:60])
        self.times[often] += 1
        if self.times[often] <= LOOKED_AT:
            shape = _plain(sql)
            self.asked.setdefault((_name(code), shape), Asked(_name(code), shape))


LOOKED_AT = 25
"""How often a statement of one function is looked at; it is the same text each time, but for its values."""


def _asking(frame: FrameType | None) -> CodeType | None:
    """The code of ours that asked; None where a test itself did."""
    while frame is not None:
        ours = _is_ours(frame.f_code)
        if ours is not None:
            return frame.f_code if ours else None
        frame = frame.f_back
    return None


@cache
def _is_ours(code: CodeType) -> bool | None:
    """Whether this is the server's or the vault's; False for a test's, None for what is neither."""
    file = Path(code.co_filename)
    if file.is_relative_to(ROOT / "tests"):
        return None if file.name == "tenancy.py" else False
    known = file.is_relative_to(ROOT / "server") or file.is_relative_to(ROOT / "vault")
    handed_on = file.parent == ROOT / "server" and file.name in _LAYER and code.co_name not in _ITS_OWN
    return True if known and not handed_on else None


_LAYER = ("database.py", "sqlite.py", "postgres.py")
_ITS_OWN = ("orgs", "tables", "erase", "_write_anew", "moved_to")
"""What the database asks by itself; everything else it only hands on."""


@cache
def _name(code: CodeType) -> str:
    """The function's dotted name, as `functions` has it."""
    module = ".".join(Path(code.co_filename).relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    inside = re.sub(r"<locals>\.|\.?<(?:lambda|listcomp|genexpr|dictcomp)>", "", code.co_qualname)
    return f"{module}.{inside}".rstrip(".")


_TEXT = re.compile(r"[xX]?'(?:[^']|'')*'")
_NUMBER = re.compile(r"(?<![\w.:])-?\d+(?:\.\d+)?\b")


def _plain(sql: str) -> str:
    """The statement with its values as marks: orgs are numbered, `:org1` and so on, in the order in which they come."""
    orgs: dict[str, str] = {}

    def mark(found: re.Match[str]) -> str:
        if re.fullmatch(r"'org_[a-z2-9]{16}'", found[0]):
            return orgs.setdefault(found[0], f":org{len(orgs) + 1}")
        return found[0] if found[0] in ("'pending'", "'approved'") else ":value"

    return _NUMBER.sub(":number", _TEXT.sub(mark, " ".join(sql.split())))


def lacks(sql: str) -> str | None:
    """What a statement, its values made plain, lacks to be about one org's rows only; None where it lacks nothing."""
    mentioned = [
        (found[1].removeprefix("main."), found[2])
        for found in _MENTION.finditer(sql)
        if found[1].removeprefix("main.") in KEYS
    ]
    if not mentioned:
        return None
    if ":org2" in sql:
        return "it names two orgs"
    if sql.startswith("INSERT"):
        return None if _inserts_for_one(sql, mentioned[0][0]) else "what it inserts has no org"
    for table, alias in mentioned:
        if not _is_held(sql, table, alias, mentioned):
            return f"{table} is not held to one org"
    bare = [table for table, alias in mentioned if alias is None]
    if len(re.findall(r"(?<!\.)\b(?:org|id) = :org1", sql)) < len(bare):
        return "one of several tables is not held to an org"
    return None


def _is_held(sql: str, table: str, alias: str | None, mentioned: list[tuple[str, str | None]]) -> bool:
    """Whether this table's rows are an org's by themselves, or by being equal to those of another that are."""
    key = KEYS[table]
    if alias is None:
        return re.search(rf"(?<!\.)\b{key} = :org1\b", sql) is not None
    held = {
        each
        for other, each in mentioned
        if each is not None and re.search(rf"\b{each}\.{KEYS[other]} = :org1\b", sql) is not None
    }
    held |= {other for other, each in mentioned if each is None and _is_held(sql, other, None, mentioned)}
    for _ in mentioned:
        for one, two in re.findall(r"\b(\w+)\.(?:org|id) = (\w+)\.(?:org|id)\b", sql):
            if one in held or two in held:
                held |= {one, two}
    return alias in held


def _inserts_for_one(sql: str, table: str) -> bool:
    # The second form inserts nothing where the org is gone.
    given = r"(?:VALUES \((.*?)\)|SELECT (.*?) WHERE EXISTS \(SELECT :number FROM org WHERE id = :org1\))"
    found = re.match(rf"INSERT INTO \w+ \(([^)]*)\) {given}(?: ON CONFLICT.*)?$", sql)
    if found is None:
        return False
    columns, values = ([each.strip() for each in part.split(",")] for part in found.groups() if part is not None)
    return KEYS[table] in columns and values[columns.index(KEYS[table])] == ":org1"
