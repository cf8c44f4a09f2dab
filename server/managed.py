"""Connections to an account of the operator's, offered to an org on the operator's terms, which no org can change.

The secret is sealed for each org by itself, under that org's key. An org uses a managed connection, puts one of its own
in its place under the same name, or does without; the offer stands until the operator withdraws it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from connectors.catalogue import Catalogue, is_shipped
from connectors.definition import Connector
from server.audit import Event, append
from server.clock import now_ms
from server.connections import (
    MANAGED,
    Connection,
    ConnectionProblem,
    Plan,
    bound_scheme,
    give_way,
    plan,
    seal,
    write,
)
from server.connections import remove as remove_own
from server.database import Database, Rows
from server.ending import end_with
from server.erasure import request
from server.identity import new_id, touch
from vault import Secret, Vault, source_of

THEIRS = "the operator's"
"""What an org is shown as the account, unless the operator says more."""
MOST_CALLS, MOST_TOKENS = 10**9, 10**15
DAY_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True)
class Terms:
    """On what terms an org may use an account of the operator's."""

    account: str = THEIRS
    """what the org is shown"""
    own_project: bool = False
    """whether no other org uses this secret, nor what can be reached with it"""
    calls_per_day: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None

    @property
    def limits(self) -> dict[str, int | None]:
        """How much of the account an org may use, by the name of each limit."""
        return {name: getattr(self, name) for name in LIMITS}


LIMITS = {"calls_per_day": MOST_CALLS, "tokens_per_day": MOST_TOKENS, "tokens_per_month": MOST_TOKENS}
"""What can be limited, and how much it can be at most; days and months begin at 00:00 UTC."""
NEAR = 80
"""Percent of a limit at which the operator is warned."""


@dataclass(frozen=True)
class Managed:
    """What the operator offers to one org. `in_use`: the org's calls under this name go to the operator's account."""

    connection: Connection
    """as the org uses it, or would"""
    terms: Terms
    set_aside_at: int | None
    used_day: int
    used_calls: int
    used_tokens: int
    used_month: int
    used_month_tokens: int
    in_use: bool

    @property
    def org(self) -> str:
        return self.connection.org

    @property
    def name(self) -> str:
        return self.connection.name

    def used(self) -> dict[str, int]:
        """How much counts against each limit now."""
        this_day, month = self.used_day >= today(), self.used_month >= this_month()
        return {
            "calls_per_day": self.used_calls if this_day else 0,
            "tokens_per_day": self.used_tokens if this_day else 0,
            "tokens_per_month": self.used_month_tokens if month else 0,
        }

    def reached(self, *, percent: int = 100) -> list[str]:
        """The names of the limits of which so much is used."""
        used = self.used()
        return [name for name, most in self.terms.limits.items() if most and used[name] * 100 >= most * percent]


def plan_offer(
    catalogue: Catalogue,
    *,
    connector: str,
    name: str | None,
    kind: str | None,
    base_url: str | None,
    private: Sequence[str],
    terms: Terms,
) -> Plan:
    """Check what can be checked before a secret is asked for. Raises ConnectionProblem."""
    _check_limits(terms)
    found = catalogue.connectors.get(connector)
    if found is not None and kind is None:
        kind = next((each.id for each in found.credentials if each.oauth is None), None)
    planned = plan(catalogue, [], connector=connector, name=name, kind=kind, base_url=base_url, private=private)
    title = planned.connector.title
    if planned.kind.oauth is not None:
        raise ConnectionProblem(
            f"What {title} is signed in to with by OAuth is one organisation's consent, and cannot be offered to "
            "others. Offer a key or a token, or your app: see KEYLEASH_OAUTH_APPS."
        )
    if not is_shipped(planned.connector):
        raise ConnectionProblem(
            f"{planned.connector.file} is no connector that comes with Keyleash, and only with those is an account of "
            "yours offered to others."
        )
    if not terms.own_project and not _shares(planned.connector):
        raise ConnectionProblem(
            f"No tool of {title} is safe where several organisations use one account: each would see, or change, what "
            "is another's. Give each a project of its own, and offer that with `--own-project`."
        )
    return planned


def _check_limits(terms: Terms) -> None:
    for name, most in terms.limits.items():
        if most is not None and not 1 <= most <= LIMITS[name]:
            what = name.replace("_per_", " a ")
            raise ConnectionProblem(
                f"A limit is a number of {what}, from 1 to {LIMITS[name]}; `keyleash managed withdraw` ends the offer."
            )


def _shares(connector: Connector) -> bool:
    return any(tool.shared for tool in connector.tools.values())


def require_room(
    catalogue: Catalogue, planned: Plan, existing: Sequence[Connection], offered: Sequence[Managed], org_name: str
) -> None:
    """Refuse an offer that an org could not use under this name beside what it has. Raises ConnectionProblem."""
    if any(each.name == planned.name for each in offered):
        raise ConnectionProblem(
            f"{planned.name} is offered to {org_name} already. `keyleash managed rotate {planned.name}` gives it "
            "another secret."
        )
    same = next((each for each in existing if each.name == planned.name), None)
    if same is not None and same.connector != planned.connector.id:
        raise ConnectionProblem(f"{org_name} has a connection {planned.name} to something else. Give this a `--name`.")
    if same is None:
        plan(
            catalogue,
            existing,
            connector=planned.connector.id,
            name=planned.name,
            kind=planned.kind.id,
            base_url=planned.base_url,
            private=planned.private,
        )


def offer(
    rows: Rows, vault: Vault, org: str, planned: Plan, terms: Terms, *, fields: Secret, verified: bool, by: str
) -> bool:
    """Seal the secret for the org, and write the offer, with its entry; returns whether the org uses it from now on.

    It does unless it has a connection of its own by that name, which stays. Raises ConnectionProblem.
    """
    now = now_ms()
    made = Connection(
        org=org,
        id=new_id("con"),
        name=planned.name,
        connector=planned.connector.id,
        ownership=MANAGED,
        base_url=planned.base_url,
        private=planned.private,
        kind=planned.kind.id,
        scheme=bound_scheme(planned.kind),
        credential_version=0,
        account=terms.account,
        verified_at=now if verified else None,
        created_by=by,
        created_at=now,
        source=source_of(fields),
    )
    taken = offered_in(rows, org, made.name)
    own = rows.execute("SELECT 1 FROM connection WHERE org = ? AND name = ?", (org, made.name)).fetchone()
    if taken is not None:
        raise ConnectionProblem(f"{made.name} was offered to this org meanwhile. Nothing was changed for it.")
    made = replace(made, credential_version=seal(rows, vault, made, fields))
    rows.execute(
        f"INSERT INTO managed_offer ({_COLUMNS}) VALUES ({', '.join('?' * 24)})",
        (
            *(org, made.id, made.name, made.connector, made.base_url, json.dumps(made.private), made.kind),
            *(made.scheme, made.credential_version, terms.account, made.source, terms.own_project),
            *(made.verified_at, by, now, now if own else None, *terms.limits.values(), 0, 0, 0, 0, 0),
        ),
    )
    if not own:
        write(rows, made)
    touch(rows, org)
    _told(rows, Event.MANAGED_OFFERED, made, by=by, **_terms(terms), verified=verified, in_use=not own)
    return not own


def withdraw(rows: Rows, vault: Vault, managed: Managed, *, by: str) -> None:
    """End an offer, with its secret; where the org used it, the connection with it. Acts on the next call.

    Raises ConnectionProblem where it was withdrawn meanwhile.
    """
    connection = managed.connection
    org = connection.org
    gone = rows.execute("DELETE FROM managed_offer WHERE org = ? AND id = ?", (org, connection.id))
    _require_one(gone.rowcount, managed)
    rows.execute("DELETE FROM connection WHERE org = ? AND id = ?", (org, connection.id))
    vault.remove(rows, org=org, connection=connection.id)
    request(rows, org, connection.id, "connection", connection.name)
    end_with(rows, org, "connection", connection.id, by=by)
    touch(rows, org)
    _told(rows, Event.MANAGED_WITHDRAWN, connection, by=by)


def rotate(
    rows: Rows, vault: Vault, managed: Managed, planned: Plan, *, fields: Secret, verified: bool, by: str
) -> None:
    """Seal another secret of the operator's for one org, for the same place; approvals for the one before end.

    Raises ConnectionProblem where the offer was changed meanwhile.
    """
    before = managed.connection
    changed = replace(
        before,
        kind=planned.kind.id,
        scheme=bound_scheme(planned.kind),
        source=source_of(fields),
        verified_at=now_ms() if verified else None,
    )
    changed = replace(changed, credential_version=seal(rows, vault, changed, fields))
    moved = rows.execute(
        "UPDATE managed_offer SET kind = ?, scheme = ?, source = ?, verified_at = ?, credential_version = ? "
        "WHERE org = ? AND id = ? AND credential_version = ?",
        (
            *(changed.kind, changed.scheme, changed.source, changed.verified_at, changed.credential_version),
            *(changed.org, changed.id, before.credential_version),
        ),
    )
    _require_one(moved.rowcount, managed)
    rows.execute(
        "UPDATE connection SET credential_version = ? WHERE org = ? AND id = ?",
        (changed.credential_version, changed.org, changed.id),
    )
    vault.remove_before(rows, org=changed.org, connection=changed.id, version=changed.credential_version)
    request(rows, changed.org, changed.id, "secret", changed.name)
    end_with(rows, changed.org, "connection", changed.id, by=by)
    touch(rows, changed.org)
    _told(rows, Event.CONNECTION_ROTATED, changed, by=by, verified=verified)


def limit(rows: Rows, managed: Managed, terms: Terms, *, by: str) -> None:
    """Change how much of the account an org may use; None is as much as it likes. Raises ConnectionProblem."""
    _check_limits(terms)
    moved = rows.execute(
        f"UPDATE managed_offer SET {', '.join(f'{name} = ?' for name in LIMITS)} WHERE org = ? AND id = ?",
        (*terms.limits.values(), managed.org, managed.connection.id),
    )
    _require_one(moved.rowcount, managed)
    changed = replace(managed.terms, **terms.limits)
    _told(rows, Event.MANAGED_CHANGED, managed.connection, by=by, **_terms(changed))


def tried(rows: Rows, managed: Managed, *, problem: str | None, by: str) -> None:
    """Write down what the operator's trying has shown. The account that it opens is no org's business."""
    if problem is None:
        rows.execute(
            "UPDATE managed_offer SET verified_at = ? WHERE org = ? AND id = ? AND credential_version = ?",
            (now_ms(), managed.org, managed.connection.id, managed.connection.credential_version),
        )
    outcome = "failed" if problem else "succeeded"
    _told(rows, Event.CONNECTION_TESTED, managed.connection, by=by, outcome=outcome, reason=problem)


# -- what an org does with it


def remove(rows: Rows, vault: Vault, connection: Connection, *, by: str) -> bool:
    """Remove an org's connection: its own with its secret, and of a managed one its use, which sets the offer aside.

    Returns whether the operator's stands in its place now: where the org's own had replaced that. Raises
    ConnectionProblem.
    """
    if not connection.managed:
        remove_own(rows, vault, connection, by=by)
        return come_back(rows, connection.org, connection.name, by=by)
    give_way(rows, connection, by=by)
    rows.execute(
        "UPDATE managed_offer SET set_aside_at = ? WHERE org = ? AND id = ?",
        (now_ms(), connection.org, connection.id),
    )
    _told(rows, Event.MANAGED_SET_ASIDE, connection, by=by)
    return False


def come_back(rows: Rows, org: str, name: str, *, by: str) -> bool:
    """Use what the operator offers by this name, where an own connection had taken its place and is gone."""
    found = offered_in(rows, org, name)
    if found is None or found.set_aside_at is not None or found.in_use:
        return False
    _take_up(rows, found, by=by)
    return True


def take_up(rows: Rows, catalogue: Catalogue, existing: Sequence[Connection], managed: Managed, *, by: str) -> None:
    """Use what the operator offers, under a name that the org uses for nothing else. Raises ConnectionProblem."""
    clash = catalogue.collision(
        {each.name: each.connector for each in existing},
        managed.name,
        managed.connection.connector,
        {each.name for each in (*existing, managed.connection) if each.shared_only},
    )
    if clash:
        raise ConnectionProblem(f"{clash} Remove what is in the way first.")
    _take_up(rows, managed, by=by)


def _take_up(rows: Rows, managed: Managed, *, by: str) -> None:
    moved = rows.execute(
        "UPDATE managed_offer SET set_aside_at = NULL WHERE org = ? AND id = ? AND credential_version = ?",
        (managed.org, managed.connection.id, managed.connection.credential_version),
    )
    _require_one(moved.rowcount, managed)
    write(rows, managed.connection)
    touch(rows, managed.org)
    _told(rows, Event.MANAGED_TAKEN_UP, managed.connection, by=by)


# -- to find


def offered_to(database: Database, org: str) -> list[Managed]:
    """What the operator offers to an org, by name."""
    return [_managed(row) for row in database.of(org).read(f"{_FOUND} ORDER BY m.name", (org,))]


def offered(database: Database, org: str, name: str) -> Managed | None:
    """What the operator offers to an org by this name."""
    return next((each for each in offered_to(database, org) if each.name == name), None)


def offered_in(rows: Rows, org: str, name: str) -> Managed | None:
    """The same, as this transaction sees it."""
    row = rows.execute(f"{_FOUND} AND m.name = ?", (org, name)).fetchone()
    return None if row is None else _managed(row)


_USED = ("used_day", "used_calls", "used_tokens", "used_month", "used_month_tokens")
_NAMES = (
    *("org", "id", "name", "connector", "base_url", "private", "kind", "scheme", "credential_version", "account"),
    *("source", "own_project", "verified_at", "offered_by", "offered_at", "set_aside_at", *LIMITS, *_USED),
)
_COLUMNS = ", ".join(_NAMES)
_FOUND = (
    f"SELECT {', '.join(f'm.{name}' for name in _NAMES)}, c.id FROM managed_offer m "
    "LEFT JOIN connection c ON c.org = m.org AND c.id = m.id WHERE m.org = ?"
)


def _managed(row: Sequence[Any]) -> Managed:
    org, identifier, name, connector, base_url, private, kind, scheme, version, account, source, *rest = row
    own_project, verified_at, by, at, set_aside_at, *numbers, used = rest
    connection = Connection(
        org=org,
        id=identifier,
        name=name,
        connector=connector,
        ownership=MANAGED,
        base_url=base_url,
        private=tuple(json.loads(private)),
        kind=kind,
        scheme=scheme,
        credential_version=version,
        account=account,
        verified_at=verified_at,
        created_by=by,
        created_at=at,
        source=source,
        shared_only=not own_project,
    )
    terms = Terms(account, bool(own_project), *numbers[: len(LIMITS)])
    return Managed(connection, terms, set_aside_at, *numbers[len(LIMITS) :], in_use=used is not None)


def _require_one(found: int, managed: Managed) -> None:
    if found != 1:
        raise ConnectionProblem(f"{managed.name} was changed or withdrawn meanwhile. Look at it, then try again.")


def _terms(terms: Terms) -> Mapping[str, Any]:
    return {"own_project": terms.own_project, **terms.limits}


def _told(rows: Rows, event: Event, connection: Connection, *, by: str, **more: Any) -> None:
    """On record in the org's log: what of the operator's it may use, and never what opens it."""
    append(
        rows,
        connection.org,
        event,
        connection=connection.name,
        connector=connection.connector,
        account=connection.account,
        ownership=MANAGED,
        credential_version=connection.credential_version,
        by=by,
        **more,
    )


def today() -> int:
    """In days since the epoch, which begin at 00:00 UTC."""
    return now_ms() // DAY_MS


def this_month() -> int:
    """In months since the year 0, which begin at 00:00 UTC."""
    now = datetime.fromtimestamp(now_ms() // 1000, UTC)
    return now.year * 12 + now.month - 1
