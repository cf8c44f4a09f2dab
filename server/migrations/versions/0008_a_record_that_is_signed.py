"""A record that is signed: each log's public key, and stubs in the place of what was pruned, which alone lets go."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COVERED = "EXISTS (SELECT 1 FROM audit_stub s WHERE s.org = OLD.org AND s.seq >= OLD.seq)"


def upgrade() -> None:
    op.create_table(
        "audit_key",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("public", sa.String(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("org"),
    )
    op.create_table(
        "audit_stub",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("org", "seq"),
    )
    if op.get_context().dialect.name == "postgresql":
        _on_postgres()
        return
    op.execute("DROP TRIGGER audit_entry_no_delete")
    op.execute(
        f"CREATE TRIGGER audit_entry_no_delete BEFORE DELETE ON audit_entry WHEN NOT {COVERED} "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    )
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_stub_no_{change.lower()} BEFORE {change} ON audit_stub "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


def _on_postgres() -> None:
    """What deletes has the owner's rights, whom the wall does not hold to one org: the function sees every stub."""
    op.execute("DROP TRIGGER audit_entry_stays ON audit_entry")
    op.execute(
        "CREATE TRIGGER audit_entry_stays BEFORE UPDATE OR TRUNCATE ON audit_entry EXECUTE FUNCTION audit_entry_stays()"
    )
    op.execute(
        "CREATE TRIGGER audit_stub_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_stub "
        "EXECUTE FUNCTION audit_entry_stays()"
    )
    op.execute(
        "CREATE FUNCTION audit_entry_pruned() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {COVERED} THEN RETURN OLD; END IF; RAISE EXCEPTION 'the audit log is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_entry_pruned BEFORE DELETE ON audit_entry FOR EACH ROW "
        "EXECUTE FUNCTION audit_entry_pruned()"
    )
