"""The second wall between orgs, in PostgreSQL itself: a query that forgot to ask for one org's rows gets no other's.

The role that serves owns nothing. On every table with rows of orgs there is a policy: only the rows of the org that the
transaction named (`keyleash.org`) are seen and written; where none is named, none. The owner is held to it as well
(FORCE); without naming an org it sees all, which is the operator's work. `put_up` is run after every migration.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from server.postgres import PostgresDatabase

ORG_IS = {"org": "id", "removed_org": "id"}
"""Where the column that says whose a row is has another name than `org`."""

EVERYTHING = ("SELECT", "INSERT", "UPDATE", "DELETE")
"""What the role that serves may do with a table of orgs' rows, unless MAY says otherwise."""

MAY: dict[str, tuple[str, ...]] = {
    "audit_entry": ("SELECT", "INSERT"),
    "audit_key": ("SELECT", "INSERT"),
    "audit_stub": ("SELECT",),
    "org": ("SELECT", "UPDATE (preset, revision, frozen_at)"),
    "removed_org": ("SELECT",),
    "rule_version": ("SELECT", "INSERT"),
    "usage_day": ("SELECT", "INSERT", "UPDATE"),
    "usage_cost": ("SELECT", "INSERT", "UPDATE"),
    "recorded_call": ("SELECT", "INSERT", "DELETE"),
    "managed_offer": (
        "SELECT",
        "UPDATE (set_aside_at, used_day, used_calls, used_tokens, used_month, used_month_tokens)",
    ),
    "held_definition": ("SELECT", "INSERT", "DELETE"),
    "vault_org_key": ("SELECT",),
    "vault_derived": ("SELECT",),
    "vault_root": ("SELECT",),
    "alembic_version": ("SELECT",),
}
"""Less than EVERYTHING; and what of the installation's own, which is no org's, a server has to read."""

SCOPED, OPERATORS = "keyleash_org", "keyleash_operator"
NAMED = "nullif(current_setting('keyleash.org', true), '')"

_ORGS = """
CREATE OR REPLACE FUNCTION keyleash_orgs() RETURNS TABLE (id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
WITH RECURSIVE log(org) AS (
    SELECT MIN(org) FROM audit_entry
    UNION ALL SELECT (SELECT MIN(org) FROM audit_entry WHERE org > log.org) FROM log WHERE log.org IS NOT NULL
)
SELECT org FROM log WHERE org IS NOT NULL UNION SELECT id FROM org UNION SELECT id FROM removed_org
$$"""
"""The only thing that the role that serves learns without naming an org: which ids there are."""


class Executes(Protocol):
    """A connection as the owner, inside a transaction."""

    def execute(self, sql: str, /) -> Any: ...


def put_up(db: Executes, tables: Sequence[tuple[str, Sequence[str]]], *, role: str, schema: str) -> None:
    """Give every table (name and columns) its policies, and `role` its privileges. May be run again at any time."""
    app, where = quoted(role), quoted(schema)
    db.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA {where} FROM PUBLIC, {app}")
    db.execute(f"GRANT USAGE ON SCHEMA {where} TO {app}")
    for table, columns in tables:
        whose = ORG_IS.get(table, "org" if "org" in columns else None)
        name = quoted(table)
        if whose is not None:
            for statement in _policies(name, whose):
                db.execute(statement)
        may = MAY.get(table, EVERYTHING if whose is not None else ())
        if may:
            db.execute(f"GRANT {', '.join(may)} ON {name} TO {app}")
    db.execute(_ORGS.format(schema=where))
    db.execute("REVOKE ALL ON FUNCTION keyleash_orgs() FROM PUBLIC")
    db.execute(f"GRANT EXECUTE ON FUNCTION keyleash_orgs() TO {app}")


def _policies(table: str, whose: str) -> Iterator[str]:
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
    yield f"DROP POLICY IF EXISTS {SCOPED} ON {table}"
    yield f"CREATE POLICY {SCOPED} ON {table} USING ({whose} = {NAMED}) WITH CHECK ({whose} = {NAMED})"
    yield f"DROP POLICY IF EXISTS {OPERATORS} ON {table}"
    yield f"CREATE POLICY {OPERATORS} ON {table} TO CURRENT_USER USING ({NAMED} IS NULL) WITH CHECK ({NAMED} IS NULL)"


def faults(database: "PostgresDatabase") -> list[str]:
    """Why the role that serves would not be held to one org, one sentence each; nothing where it is."""
    role = database.role
    ((superuser, bypasses, creates),) = database.read(
        "SELECT rolsuper, rolbypassrls, has_schema_privilege(current_schema(), 'CREATE') FROM pg_roles "
        "WHERE rolname = current_user"
    )
    if superuser:
        return [f"{role} is a superuser, whom no policy holds"]
    found: list[str] = []
    if bypasses:
        found.append(f"{role} has BYPASSRLS, so no policy holds it")
    elif creates:
        found.append(f"{role} may create tables and functions in the schema")
    tables = database.read(_TABLES)
    if tables and all(owns for _, owns, *_ in tables):  # and so may do everything else that there is to say of each
        return [*found, f"{role} owns the tables, and could take their policies away"]
    for table in tables:
        found += _of_table(role, *table)
    return found


def owned(database: "PostgresDatabase") -> bool:
    """Whether it is opened as the very role that owns the tables."""
    mine = "relnamespace = current_schema()::regnamespace AND relowner = current_user::regrole"
    return bool(database.read(f"SELECT 1 FROM pg_class WHERE relname = 'org' AND {mine}"))


_TABLES = f"""
SELECT c.relname, pg_has_role(current_user, c.relowner, 'MEMBER'), c.relrowsecurity AND c.relforcerowsecurity,
    a.attname, has_any_column_privilege(c.oid, 'SELECT, INSERT, UPDATE') OR has_table_privilege(c.oid, 'DELETE'),
    has_any_column_privilege(c.oid, 'UPDATE') OR has_table_privilege(c.oid, 'DELETE'),
    has_table_privilege(c.oid, 'TRUNCATE, TRIGGER, REFERENCES'),
    (SELECT string_agg(concat_ws('|', p.polname, p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid),
        pg_get_expr(p.polwithcheck, p.polrelid)), ';')
     FROM pg_policy p WHERE p.polrelid = c.oid AND NOT (p.polname = '{OPERATORS}' AND p.polroles = ARRAY[c.relowner]))
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped AND a.attname =
    CASE c.relname {" ".join(f"WHEN '{table}' THEN '{column}'" for table, column in ORG_IS.items())} ELSE 'org' END
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') ORDER BY c.relname"""


def _of_table(role: str, table: str, *facts: Any) -> Iterator[str]:
    owns, held, whose, used, changes, more, policy = facts
    if owns:
        yield f"{role} owns {table}, and could take its policies away"
    if whose is None:
        if used and table not in MAY:
            yield f"{role} may use {table}, which is for the operator alone"
        return
    if not held:
        yield f"row-level security is not on and forced for {table}"
    expression = f"((({whose})::text = NULLIF(current_setting('keyleash.org'::text, true), ''::text)))"
    if policy != f"{SCOPED}|*|t|{expression[1:-1]}|{expression[1:-1]}":
        yield f"the policies of {table} are not those that keep orgs apart"
    if more or (table.startswith("audit_") and changes):
        yield f"{role} may do more with {table} than a server needs"


def quoted(name: str) -> str:
    """An identifier for a statement that cannot bind one."""
    return '"' + name.replace('"', '""') + '"'
