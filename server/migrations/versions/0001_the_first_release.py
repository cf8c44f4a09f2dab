"""The first release: every table, and triggers that keep the audit log append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agent",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("member", sa.String(), nullable=True),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("narrowing", sa.String(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
        sa.UniqueConstraint("org", "name"),
        sa.UniqueConstraint("org", "token_hash"),
    )
    op.create_table(
        "approval",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("agent", sa.String(), nullable=False),
        sa.Column("agent_name", sa.String(), nullable=False),
        sa.Column("member", sa.String(), nullable=True),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("credential_version", sa.Integer(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("definition", sa.String(), nullable=False),
        sa.Column("effect", sa.String(), nullable=False),
        sa.Column("call_hash", sa.String(), nullable=False),
        sa.Column("sealed_call", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_prompt", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_outcome", sa.LargeBinary(), nullable=True),
        sa.Column("ruling", sa.String(), nullable=False),
        sa.Column("needed", sa.Integer(), nullable=False),
        sa.Column("approvers", sa.String(), nullable=False),
        sa.Column("second_person", sa.Boolean(), nullable=False),
        sa.Column("rules", sa.String(), nullable=False),
        sa.Column("decisions", sa.String(), nullable=False),
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.Column("declined_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    with op.batch_alter_table("approval", schema=None) as batch_op:
        batch_op.create_index("approval_call", ["org", "agent", "call_hash"], unique=False)
        batch_op.create_index(
            "approval_one_pending",
            ["org", "agent", "call_hash"],
            unique=True,
            sqlite_where=sa.text("state = 'pending'"),
            postgresql_where=sa.text("state = 'pending'"),
        )
        batch_op.create_index("approval_state", ["org", "state"], unique=False)

    op.create_table(
        "audit_entry",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("agent", sa.String(), nullable=True),
        sa.Column("connection", sa.String(), nullable=True),
        sa.Column("tool", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("org", "seq"),
    )
    op.create_table(
        "call_grant",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("agent", sa.String(), nullable=False),
        sa.Column("agent_name", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("credential_version", sa.Integer(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("definition", sa.String(), nullable=False),
        sa.Column("ruling", sa.String(), nullable=False),
        sa.Column("bounds_hash", sa.String(), nullable=False),
        sa.Column("sealed_bounds", sa.LargeBinary(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("approval", sa.String(), nullable=False),
        sa.Column("decided_by", sa.String(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    with op.batch_alter_table("call_grant", schema=None) as batch_op:
        batch_op.create_index("grant_call", ["org", "agent", "tool"], unique=False)

    op.create_table(
        "connection",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("connector", sa.String(), nullable=False),
        sa.Column("ownership", sa.String(), nullable=False),
        sa.Column("base_url", sa.String(), nullable=False),
        sa.Column("private", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("scheme", sa.String(), nullable=False),
        sa.Column("credential_version", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(), nullable=True),
        sa.Column("verified_at", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
        sa.UniqueConstraint("org", "name"),
    )
    op.create_table(
        "member",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("os_user", sa.String(), nullable=True),
        sa.Column("roles", sa.String(), nullable=False),
        sa.Column("groups", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
        sa.UniqueConstraint("org", "name"),
        sa.UniqueConstraint("org", "os_user"),
    )
    op.create_table(
        "org",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("preset", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("frozen_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "rule",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_table(
        "vault_org_key",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "version"),
    )
    op.create_table(
        "vault_root",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("location", sa.String(), nullable=False),
        sa.Column("check_blob", sa.LargeBinary(), nullable=False),
        sa.Column("installation_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name="vault_root_is_one_row"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "vault_credential",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("data_key", sa.LargeBinary(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("scheme", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["org", "key_version"],
            ["vault_org_key.org", "vault_org_key.version"],
        ),
        sa.PrimaryKeyConstraint("org", "connection", "version"),
    )
    op.create_table(
        "vault_field",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("field", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["org", "connection", "version"],
            ["vault_credential.org", "vault_credential.connection", "vault_credential.version"],
        ),
        sa.PrimaryKeyConstraint("org", "connection", "version", "field"),
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_entry_stays() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_entry_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entry "
            "EXECUTE FUNCTION audit_entry_stays()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_entry_no_{change.lower()} BEFORE {change} ON audit_entry "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
