"""Connections to an account of the operator's, offered to an org on the operator's terms, which no org can change.

The secret is sealed for each org by itself, under that org's key. An org uses a managed connection, puts one of its own
in its place under the same name, or does without; the offer stands until the operator withdraws it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from server.errors import LimitReached
from server.identity import new_id, touch
from vault import Secret, Vault, source_of

THEIRS = "the operator's"
"""What an org is shown as the account, unless the operator says more."""
MOST_CALLS = 10**9
DAY_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True)
class Terms:
    """On what terms an org may use an account of the operator's."""

    account: str = THEIRS
    """what the org is shown"""
    own_project: bool = False
    """whether no other org uses this secret, nor what can be reached with it"""
    calls_per_day: int | None = None


@dataclass(frozen=True)
class Managed:
    """What the operator offers to one org. `in_use`: the org's calls under this name go to the operator's account."""

    connection: Connection
    """as the org uses it, or would"""
    terms: Terms
    set_aside_at: int | None
    used_day: int
    used_calls: int
    in_use: bool

    @property
    def org(self) -> str:
        return self.connection.org

    @property
    def name(self) -> str:
        return self.connection.name

    def used_today(self) -> int:
        """How many calls count against today's limit."""
        return self.used_calls if self.used_day >= _today() else 0


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
    _check_limit(terms.calls_per_day)
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


def _check_limit(calls_per_day: int | None) -> None:
    if calls_per_day is not None and not 1 <= calls_per_day <= MOST_CALLS:
        raise ConnectionProblem(
            f"A limit is a number of calls a day, from 1 to {MOST_CALLS}; `keyleash managed withdraw` ends the offer."
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
        shared_only=not terms.own_project,
    )
    taken = _find(rows, org, made.name)
    own = rows.execute("SELECT 1 FROM connection WHERE org = ? AND name = ?", (org, made.name)).fetchone()
    if taken is not None:
        raise ConnectionProblem(f"{made.name} was offered to this org meanwhile. Nothing was changed for it.")
    made = replace(made, credential_version=seal(rows, vault, made, fields))
    rows.execute(
        f"INSERT INTO managed_offer ({_COLUMNS}) VALUES ({', '.join('?' * 19)})",
        (
            *(org, made.id, made.name, made.connector, made.base_url, json.dumps(made.private), made.kind),
            *(made.scheme, made.credential_version, terms.account, made.source, terms.own_project),
            *(terms.calls_per_day, made.verified_at, by, now, now if own else None, 0, 0),
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


def limit(rows: Rows, managed: Managed, calls_per_day: int | None, *, by: str) -> None:
    """Change how many calls a day an org may make; None is as many as it likes. Raises ConnectionProblem."""
    _check_limit(calls_per_day)
    moved = rows.execute(
        "UPDATE managed_offer SET calls_per_day = ? WHERE org = ? AND id = ?",
        (calls_per_day, managed.org, managed.connection.id),
    )
    _require_one(moved.rowcount, managed)
    changed = replace(managed.terms, calls_per_day=calls_per_day)
    _told(rows, Event.MANAGED_CHANGED, managed.connection, by=by, **_terms(changed))


def tried(rows: Rows, managed: Managed, *, problem: str | None, by: str) -> None:
    """Write down what the operator's trying has shown. The account that it opens is no org's business."""
    if problem is None:
        rows.execute(
            "UPDATE managed_offer SET verified_at = ? WHERE org = ? AND id = ? AND credential_version = ?",
            (now_ms(), managed.org, managed.connection.id, managed.connection.credential_version),
        )
        touch(rows, managed.org)
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
    found = _find(rows, org, name)
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


def count_call(rows: Rows, connection: Connection) -> None:
    """One more call of a managed connection, in the transaction of its attempt. Raises LimitReached.

    An org's changes run one after another, so that no two calls, of whichever servers, take the same last one.
    """
    if not connection.managed:
        return
    today = _today()
    counted = rows.execute(
        "UPDATE managed_offer SET used_calls = CASE WHEN used_day < ? THEN 1 ELSE used_calls + 1 END, "
        "used_day = CASE WHEN used_day < ? THEN ? ELSE used_day END "
        "WHERE org = ? AND id = ? AND (calls_per_day IS NULL OR used_day < ? OR used_calls < calls_per_day)",
        (today, today, today, connection.org, connection.id, today),
    )
    if counted.rowcount != 1:
        raise LimitReached(connection.name)


def require_left(database: Database, connection: Connection) -> None:
    """Refuse a call that could not be carried out today, before anybody is asked about it. Raises LimitReached."""
    if not connection.managed:
        return
    left = database.of(connection.org).read(
        "SELECT 1 FROM managed_offer WHERE org = ? AND id = ? "
        "AND (calls_per_day IS NULL OR used_day < ? OR used_calls < calls_per_day)",
        (connection.org, connection.id, _today()),
    )
    if not left:
        raise LimitReached(connection.name)


# -- to find


def offered_to(database: Database, org: str) -> list[Managed]:
    """What the operator offers to an org, by name."""
    return [_managed(row) for row in database.of(org).read(f"{_FOUND} ORDER BY m.name", (org,))]


def offered(database: Database, org: str, name: str) -> Managed | None:
    """What the operator offers to an org by this name."""
    return next((each for each in offered_to(database, org) if each.name == name), None)


def _find(rows: Rows, org: str, name: str) -> Managed | None:
    row = rows.execute(f"{_FOUND} AND m.name = ?", (org, name)).fetchone()
    return None if row is None else _managed(row)


_COLUMNS = (
    "org, id, name, connector, base_url, private, kind, scheme, credential_version, account, source, own_project, "
    "calls_per_day, verified_at, offered_by, offered_at, set_aside_at, used_day, used_calls"
)
_FOUND = (
    "SELECT m.org, m.id, m.name, m.connector, m.base_url, m.private, m.kind, m.scheme, m.credential_version, "
    "m.account, m.source, m.own_project, m.calls_per_day, m.verified_at, m.offered_by, m.offered_at, m.set_aside_at, "
    "m.used_day, m.used_calls, c.id FROM managed_offer m LEFT JOIN connection c ON c.org = m.org AND c.id = m.id "
    "WHERE m.org = ?"
)


def _managed(row: Sequence[Any]) -> Managed:
    org, identifier, name, connector, base_url, private, kind, scheme, version, account, source, *rest = row
    own_project, calls_per_day, verified_at, by, at, set_aside_at, used_day, used_calls, used = rest
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
    terms = Terms(account, bool(own_project), calls_per_day)
    return Managed(connection, terms, set_aside_at, used_day, used_calls, used is not None)


def _require_one(found: int, managed: Managed) -> None:
    if found != 1:
        raise ConnectionProblem(f"{managed.name} was changed or withdrawn meanwhile. Look at it, then try again.")


def _terms(terms: Terms) -> Mapping[str, Any]:
    return {"own_project": terms.own_project, "calls_per_day": terms.calls_per_day}


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


def _today() -> int:
    """In days since the epoch, which begin at 00:00 UTC."""
    return now_ms() // DAY_MS
