"""The second wall: whatever a query forgets to ask for, PostgreSQL shows and changes the named org's rows alone.

None of these connects as a superuser; the role that serves is the one that production serves with.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Boolean, Integer, LargeBinary, Table
from sqlmodel import SQLModel

import server.tables
import vault.tables
from server.app import open_installation, require_kept_apart
from server.database import DatabaseProblem
from server.postgres import PostgresDatabase, as_role, migrate
from server.wall import EVERYTHING, MAY, NAMED, ORG_IS, SCOPED
from tests import postgres
from tests.commandline import CommandLine
from tests.installed import make

assert server.tables, vault.tables
TABLES: dict[str, Table] = {table.name: table for table in SQLModel.metadata.sorted_tables}
OF_ORGS = {name: ORG_IS.get(name, "org") for name, table in TABLES.items() if name in ORG_IS or "org" in table.columns}
A, B = "org_a", "org_b"


@dataclass
class Walled:
    """A database with one row of each of two orgs in every table: as its owner, and as the role that serves."""

    owner: PostgresDatabase
    serving: PostgresDatabase
    owner_url: str
    url: str


@pytest.fixture(scope="module")
def walled() -> Iterator[Walled]:
    name = postgres.server().new_database(postgres.template())
    urls = (postgres.server().url(name, postgres.OWNER), postgres.server().url(name, postgres.APP))
    with contextlib.closing(PostgresDatabase(urls[0])) as owner, contextlib.closing(PostgresDatabase(urls[1])) as app:
        for org in (A, B):
            owner.write_now(lambda rows, org=org: [rows.execute(*_row(table, org)) for table in OF_ORGS])
        yield Walled(owner, app, *urls)
    postgres.server().drop(name)


def _row(table: str, org: str, mark: str = "x") -> tuple[str, list[Any]]:
    columns = TABLES[table].columns
    values = {column.name: _value(column.type, mark) for column in columns}
    values[OF_ORGS[table]] = org
    if table == "org":
        values["name"] = f"name of {org}"
    if table == "audit_stub":
        values["seq"] = 0  # it stands for no entry, so none may go
    names = ", ".join(f'"{name}"' for name in values)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(values))})", list(values.values())


def _value(kind: Any, mark: str) -> Any:
    if isinstance(kind, Boolean):
        return False
    if isinstance(kind, Integer):
        return 1
    return mark.encode() if isinstance(kind, LargeBinary) else mark


def count(database: PostgresDatabase, table: str, where: str = "", values: tuple[Any, ...] = ()) -> int:
    ((found,),) = database.read(f"SELECT COUNT(*) FROM {table} {where}", values)
    return int(found)


# -- what is seen


@pytest.mark.parametrize("table", OF_ORGS)
def test_a_query_that_forgets_the_org_sees_the_named_one_alone(walled: Walled, table: str) -> None:
    assert walled.serving.of(A).read(f"SELECT {OF_ORGS[table]} FROM {table}") == [(A,)]
    assert walled.owner.of(A).read(f"SELECT {OF_ORGS[table]} FROM {table}") == [(A,)], "the owner is held to it too"
    for scoped in (walled.serving.of(A), walled.owner.of(A)):
        assert count(scoped, table, f"WHERE {OF_ORGS[table]} = ?", (B,)) == 0
        assert scoped.snapshot(lambda rows: rows.execute(f"SELECT COUNT(*) FROM {table}").fetchone()) == (1,)


@pytest.mark.parametrize("table", OF_ORGS)
def test_a_server_that_names_no_org_sees_and_writes_nothing(walled: Walled, table: str) -> None:
    assert count(walled.serving, table) == 0
    assert walled.serving.snapshot(lambda rows: rows.execute(f"SELECT * FROM {table}").fetchall()) == []
    with pytest.raises(DatabaseProblem, match="does not let this role"):
        walled.serving.write_now(lambda rows: rows.execute(*_row(table, "org_c")))
    assert count(walled.owner, table) == 2


@pytest.mark.parametrize("table", sorted(table for table in OF_ORGS if "INSERT" in MAY.get(table, EVERYTHING)))
def test_no_row_of_another_org_is_written_changed_or_taken(walled: Walled, table: str) -> None:
    scoped = walled.serving.of(A)
    with pytest.raises(DatabaseProblem, match="does not let this role"):
        scoped.write_now(lambda rows: rows.execute(*_row(table, B, "other")))
    if table not in MAY:
        with pytest.raises(DatabaseProblem, match="does not let this role"):
            scoped.write_now(lambda rows: rows.execute(f"UPDATE {table} SET org = ?", (B,)))

        def try_all(rows: Any) -> tuple[int, int]:
            changed = rows.execute(f"UPDATE {table} SET org = org WHERE org = ?", (B,)).rowcount
            taken = rows.execute(f"DELETE FROM {table} WHERE org = ?", (B,)).rowcount
            return changed, taken

        assert scoped.write_now(try_all) == (0, 0)
    assert count(walled.owner, table) == 2


def test_a_key_that_another_org_has_is_free_here(walled: Walled) -> None:
    """No unique constraint tells an org what another has: each begins with the org."""
    unique = walled.owner.read(
        "SELECT c.relname, a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] "
        "WHERE i.indisunique AND c.relnamespace = current_schema()::regnamespace"
    )
    others = {(table, column) for table, column in unique if column != "org"}
    assert others == {
        ("org", "id"),
        ("org", "name"),  # which a server may not change
        ("removed_org", "id"),
        ("vault_root", "id"),
        ("alembic_version", "version_num"),
    }
    with pytest.raises(DatabaseProblem, match="does not let this role"):
        walled.serving.of(A).write_now(lambda rows: rows.execute("UPDATE org SET name = ?", (f"name of {B}",)))


def test_which_orgs_there_are_is_all_that_is_told_without_naming_one(walled: Walled) -> None:
    assert walled.serving.orgs() == [A, B]
    assert walled.serving.of(A).orgs() == [A]


# -- how long it lasts


def test_the_org_ends_with_its_transaction_and_no_connection_carries_it_over(walled: Walled) -> None:
    with contextlib.closing(PostgresDatabase(walled.url)) as database:
        named = f"SELECT {NAMED}, pg_backend_pid()"
        ((org, reader),) = database.of(A).read(named)
        assert (org, database.read(named)) == (A, [(None, reader)])
        assert database.of(B).snapshot(lambda rows: rows.execute(named).fetchone()) == (B, reader)
        assert database.read(named) == [(None, reader)]
        org, writer = database.of(A).write_now(lambda rows: rows.execute(named).fetchone())
        assert (org, database.write_now(lambda rows: rows.execute(named).fetchone())) == (A, (None, writer))

        def fail(rows: Any) -> None:
            rows.execute(named)
            raise KeyError

        with pytest.raises(KeyError):
            database.of(A).write_now(fail)
        with pytest.raises(DatabaseProblem):
            database.of(A).read("SELECT no_such_column FROM org")
        assert database.write_now(lambda rows: rows.execute(named).fetchone()) == (None, writer)
        assert database.read(named) == [(None, reader)]


@pytest.mark.parametrize(
    "org", ["", "org_a'", "org_a' OR '1'='1", 'org_a"', "org_a\0", "org_a;", "org_%", "a b", "org_a\n", "ö", "x" * 101]
)
def test_what_is_no_orgs_id_is_refused_before_it_reaches_the_database(walled: Walled, org: str) -> None:
    with pytest.raises(DatabaseProblem, match="no org's id"):
        walled.serving.of(org)


def test_what_is_for_one_org_is_not_turned_to_another(walled: Walled) -> None:
    with pytest.raises(DatabaseProblem, match="not for another"):
        walled.serving.of(A).of(B)
    assert walled.serving.of(A).of(A).read("SELECT id FROM org") == [(A,)]


# -- who is held by it


def test_the_log_is_only_ever_added_to_even_by_the_owner(walled: Walled) -> None:
    changes = ("UPDATE audit_entry SET body = 'x'", "DELETE FROM audit_entry", "TRUNCATE audit_entry")
    for change in changes:
        with pytest.raises(DatabaseProblem, match="does not let this role"):
            walled.serving.of(A).write_now(lambda rows, change=change: rows.execute(change))
        with pytest.raises(DatabaseProblem, match="append-only"):
            walled.owner.write_now(lambda rows, change=change: rows.execute(change))
    assert count(walled.owner, "audit_entry") == 2


def test_the_role_that_serves_may_do_exactly_this(walled: Walled) -> None:
    granted = walled.owner.read(
        "SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = ? "
        "UNION SELECT table_name, privilege_type || ' ' || column_name FROM information_schema.column_privileges "
        "WHERE grantee = ? AND privilege_type = 'UPDATE' AND table_name IN ('org', 'managed_offer')",
        (postgres.APP, postgres.APP),
    )
    all_four = ("member", "agent", "connection", "rule", "approval", "call_grant", "channel", "notice", "erasure")
    all_four += ("work", "work_tool", "lost_call", "log_mark", "oauth_token", "oauth_revocation")
    all_four += ("usage_quota", "budget", "connection_limit", "connection_pace", "definition_look")
    wanted = {
        (table, may)
        for table in (*all_four, "vault_credential", "vault_field")
        for may in ("SELECT", "INSERT", "UPDATE", "DELETE")
    }
    wanted |= {("audit_key", "SELECT"), ("audit_key", "INSERT"), ("audit_stub", "SELECT")}
    wanted |= {("rule_version", "SELECT"), ("rule_version", "INSERT")}
    wanted |= {(table, may) for table in ("usage_day", "usage_cost") for may in ("SELECT", "INSERT", "UPDATE")}
    brief = ("recorded_call", "held_definition")
    wanted |= {(table, may) for table in brief for may in ("SELECT", "INSERT", "DELETE")}
    wanted |= {("audit_entry", "SELECT"), ("audit_entry", "INSERT"), ("org", "SELECT"), ("removed_org", "SELECT")}
    wanted |= {("org", f"UPDATE {column}") for column in ("preset", "revision", "frozen_at")}
    used = ("used_day", "used_calls", "used_tokens", "used_month", "used_month_tokens")
    wanted |= {("managed_offer", f"UPDATE {column}") for column in ("set_aside_at", *used)}
    wanted |= {("managed_offer", "SELECT")}
    wanted |= {(table, "SELECT") for table in ("vault_org_key", "vault_derived", "vault_root", "alembic_version")}
    assert set(granted) == wanted
    ((creates, temporary, owns),) = walled.serving.read(
        "SELECT has_schema_privilege(current_schema(), 'CREATE'), has_database_privilege(current_database(), 'TEMP'), "
        "(SELECT COUNT(*) FROM pg_class WHERE relowner = current_user::regrole)"
    )
    assert (creates, temporary, owns) == (False, False, 0)


def test_every_table_of_orgs_is_behind_the_wall(walled: Walled) -> None:
    """Found in the database itself, so that a new table is covered by being there."""
    tables = walled.owner.read(
        "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity, "
        "ARRAY(SELECT polname::text FROM pg_policy WHERE polrelid = c.oid ORDER BY 1) "
        "FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
    )
    held = {name for name, forced, policies in tables if forced and policies == ["keyleash_operator", SCOPED]}
    assert held == set(OF_ORGS)
    assert {name for name, _, _ in tables} - held == {"vault_root", "alembic_version"} <= set(MAY)
    assert walled.serving.faults() == []


BREACHES = {
    "off": ("ALTER TABLE rule DISABLE ROW LEVEL SECURITY", "not on and forced for rule"),
    "not forced": ("ALTER TABLE rule NO FORCE ROW LEVEL SECURITY", "not on and forced for rule"),
    "no policy": (f"DROP POLICY {SCOPED} ON rule", "policies of rule"),
    "a wider policy": (f"ALTER POLICY {SCOPED} ON rule USING (true)", "policies of rule"),
    "a second policy": ("CREATE POLICY more ON rule FOR SELECT USING (true)", "policies of rule"),
    "the operator's policy for all": ("ALTER POLICY keyleash_operator ON rule TO PUBLIC", "policies of rule"),
    "may change the log": ("GRANT UPDATE ON audit_entry TO keyleash_app", "may do more with audit_entry"),
    "may empty a table": ("GRANT TRUNCATE ON rule TO keyleash_app", "may do more with rule"),
    "a table outside": ("CREATE TABLE more (x text); GRANT SELECT ON more TO keyleash_app", "may use more"),
    "may make tables": ("GRANT CREATE ON SCHEMA public TO keyleash_app", "may create tables"),
    "a superuser": ("ALTER ROLE keyleash_app SUPERUSER", "is a superuser"),
    "no policy holds it": ("ALTER ROLE keyleash_app BYPASSRLS", "has BYPASSRLS"),
    "is the owner as well": ("GRANT keyleash_owner TO keyleash_app", "owns the tables"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_nothing_is_served_where_the_wall_has_a_breach(
    tmp_path: Path, keyleash: CommandLine, monkeypatch: pytest.MonkeyPatch, breach: str
) -> None:
    monkeypatch.setenv("KEYLEASH_TEST_DATABASE", "postgres")
    statement, said = BREACHES[breach]
    place = make(tmp_path / "home")
    place.installation.close()
    database = postgres.name_of(tmp_path / "home")
    with postgres.server().superuser(database) as db, contextlib.ExitStack() as undo:
        undo.callback(db.execute, b"ALTER ROLE keyleash_app NOSUPERUSER NOBYPASSRLS")
        undo.callback(db.execute, b"REVOKE keyleash_owner FROM keyleash_app")
        db.execute(statement.encode())
        with pytest.raises(DatabaseProblem, match=said):
            open_installation(place.installation.settings)
        ran = keyleash("serve", "--http", "127.0.0.1:0")
        assert (ran.code, said in ran.err, "Traceback" in ran.err) == (1, True, False)
        (found,) = [one for one in keyleash("doctor", "--json").json if one["check"] == "database"]
        assert (found["status"], said in found["message"]) == ("fail", True)
    postgres.drop_all()


def test_the_wall_is_put_back_by_an_upgrade(
    tmp_path: Path, keyleash: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYLEASH_TEST_DATABASE", "postgres")
    place = make(tmp_path / "home")
    place.database.write_now(lambda rows: rows.execute(f"DROP POLICY {SCOPED} ON rule"))
    assert keyleash("upgrade").code == 0
    assert place.installation.database.faults() == []
    place.installation.close()
    place.database.close()
    postgres.drop_all()


def test_the_owner_does_not_serve(walled: Walled) -> None:
    assert any("owns the tables" in fault for fault in walled.owner.faults())
    with pytest.raises(DatabaseProblem) as refused:
        require_kept_apart(walled.owner)
    named = as_role(walled.owner_url, postgres.APP)
    assert str(refused.value) == (
        "KEYLEASH_DATABASE names keyleash_owner, which row-level security does not hold. Name the role that owns "
        f"nothing: {named}"
    )
    assert named == walled.owner_url.replace(postgres.OWNER, postgres.APP)
    with pytest.raises(DatabaseProblem, match="both the owner and the role that serves"):
        migrate(walled.owner_url, postgres.OWNER)


def test_none_of_these_tests_is_a_superuser(walled: Walled) -> None:
    for database in (walled.owner, walled.serving):
        assert database.read("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user") == [
            (False, False)
        ]
