"""Read an org's log in pages: any length in constant memory, and a damaged entry never hides the others."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypedDict, Unpack, cast

from server.audit.entry import CannotRead, Entry, Event, Head, canonical, checked_head, column

PAGE = 100


class Reader(Protocol):
    """The part of the database that this room reads by. Whatever it raises becomes `CannotRead`."""

    def read(self, sql: str, params: Sequence[Any] = (), /) -> list[tuple[Any, ...]]: ...


class Filters(TypedDict, total=False):
    """What to select. Times are milliseconds since the epoch, `since` included and `until` not.

    `agent`, `member` and `grant` match a name or an id; `argument` is a keyed hash, or an argument's name, ``=`` and
    its hash; every other value is matched whole. Of several values in a list, any is enough. None is as if not given.
    """

    since: int | None
    until: int | None
    event: Event | str | list[str] | None
    agent: str | list[str] | None
    member: str | list[str] | None
    connection: str | list[str] | None
    tool: str | list[str] | None
    outcome: str | list[str] | None
    grant: str | list[str] | None
    argument: str | list[str] | None
    limit: int | None


Condition = tuple[Any, ...]
"""SQL, and a value for each placeholder in it."""

COLUMNS = ("seq", "at", "event", "body", "previous", "hash", "agent", "connection", "tool", "outcome")


def select(
    db: Reader, org: str, *, newest_first: bool = False, after: int | None = None, **filters: Unpack[Filters]
) -> Iterator[Entry]:
    """The org's entries that match every filter, in order, oldest first unless asked otherwise.

    With `after`, only those whose number is greater.
    """
    given = {name: value for name, value in filters.items() if value is not None}
    left = filters.get("limit")
    beyond: list[Condition] = [] if after is None else [("seq > ?", after)]
    for row in rows(db, org, where=[*beyond, *_where(given)], newest_first=newest_first):
        if left is not None and left <= 0:
            return
        seq, at, event, text, previous, own, *_ = row
        entry = Entry(org=org, seq=seq, at=at, event=event, text=text, previous=previous, hash=own)
        if not _matches(entry, given):
            continue
        yield entry
        left = None if left is None else left - 1


def head(db: Reader, org: str) -> Head | None:
    """How far the org's log goes now; None when it is empty. Raises `Damaged` when the last entry has no hash."""
    last = next(rows(db, org, newest_first=True, page=1), None)
    return None if last is None else checked_head(last[0], last[5])


def first_number(db: Reader, org: str) -> Any:
    """The number of the first entry that is there, as stored; None when there is none."""
    first = next(rows(db, org, page=1), None)
    return None if first is None else first[0]


def rows(
    db: Reader,
    org: str,
    *,
    where: Sequence[Condition] = (),
    newest_first: bool = False,
    page: int = PAGE,
) -> Iterator[tuple[Any, ...]]:
    """Rows as stored, in the order of `COLUMNS`; `where` holds conditions, each with its values."""
    order, beyond = ("DESC", "seq < ?") if newest_first else ("ASC", "seq > ?")
    conditions: list[Condition] = [("org = ?", org), *where]
    while True:
        params = [each for _, *values in conditions for each in values]
        found = _page(db, " AND ".join(sql for sql, *_ in conditions), order, [*params, page])
        yield from found
        if len(found) < page:
            return
        conditions = [("org = ?", org), *where, (beyond, found[-1][0])]


def _page(db: Reader, where: str, order: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    end = f"FROM audit_entry WHERE {where} ORDER BY seq {order} LIMIT ?"
    try:
        return db.read(f"SELECT {', '.join(COLUMNS)} {end}", params)
    except Exception as error:
        return _page_as_bytes(db, end, params, error)


def _page_as_bytes(db: Reader, end: str, params: Sequence[Any], why: Exception) -> list[tuple[Any, ...]]:
    """The same page where the database refuses to read it as text: a byte that is none, written past Keyleash."""
    casts = ", ".join(f"CAST({name} AS BLOB)" for name in COLUMNS[2:])
    try:
        found = db.read(f"SELECT seq, at, {casts} {end}", params)
    except Exception:
        raise CannotRead(f"The audit log cannot be read: {str(why).rstrip('.')}. Run `keyleash doctor`.") from None
    return [(*row[:2], *(_text(value) for value in row[2:])) for row in found]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


_BY_COLUMN = ("event", "connection", "tool", "outcome")
_BY_NAME = {"agent": ("agent", "agent_id"), "member": ("member", "member_id"), "grant": ("grant", "work")}


def _where(given: dict[str, Any]) -> list[Condition]:
    """Conditions that the database can narrow by; `_matches` has the last word."""
    conditions = [
        _any(f"{name} = ?", [column(each) for each in _several(given[name])]) for name in _BY_COLUMN if name in given
    ]
    held = [_several(given[name]) for name in _BY_NAME if name in given]
    if "argument" in given:
        held.append([_hash_of(each)[1] for each in _several(given["argument"])])
    conditions += [_any("body LIKE ? ESCAPE '!'", [_containing(each) for each in values]) for values in held]
    if "since" in given:
        conditions.append(("at >= ?", given["since"]))
    if "until" in given:
        conditions.append(("at < ?", given["until"]))
    return conditions


def _any(sql: str, values: Sequence[Any]) -> Condition:
    return f"({' OR '.join([sql] * len(values))})", *values


def _several(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _containing(value: str) -> str:
    escaped = canonical(value)
    for special in "!%_":
        escaped = escaped.replace(special, f"!{special}")
    return f"%{escaped}%"


def _matches(entry: Entry, given: dict[str, Any]) -> bool:
    if given.keys().isdisjoint({*_BY_COLUMN, *_BY_NAME, "argument"}):
        return True
    body = entry.body
    fields = {**{name: (name,) for name in _BY_COLUMN}, **_BY_NAME}
    named = all(
        any(body.get(each) in _several(given[name]) for each in found)
        for name, found in fields.items()
        if name in given
    )
    return named and (
        "argument" not in given or any(_has(body, *_hash_of(each)) for each in _several(given["argument"]))
    )


def _hash_of(argument: str) -> tuple[str | None, str]:
    name, equals, own = argument.rpartition("=")
    return name if equals else None, own


def _has(body: dict[str, Any], name: str | None, own: str) -> bool:
    arguments = body.get("arguments")
    if not isinstance(arguments, dict):
        return False
    hashes = cast("dict[str, Any]", arguments)
    return own in hashes.values() if name is None else hashes.get(name) == own
