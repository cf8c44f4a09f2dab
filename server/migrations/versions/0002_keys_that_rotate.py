"""Keys that rotate and secrets that are gone: generations of the root key, carried-over derived keys, erasures."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.rename_table("vault_root", "vault_root_of_0001")
    op.create_table(
        "vault_root",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("location", sa.String(), nullable=False),
        sa.Column("check_blob", sa.LargeBinary(), nullable=True),
        sa.Column("installation_key", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.execute(
        "INSERT INTO vault_root (id, provider, location, check_blob, installation_key, created_at) "
        "SELECT id, provider, location, check_blob, installation_key, created_at FROM vault_root_of_0001"
    )
    op.drop_table("vault_root_of_0001")
    op.add_column("vault_org_key", sa.Column("root", sa.Integer(), server_default="1", nullable=False))
    op.create_table(
        "vault_derived",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["org", "key_version"], ["vault_org_key.org", "vault_org_key.version"]),
        sa.PrimaryKeyConstraint("org", "purpose"),
    )
    op.create_table(
        "erasure",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_table(
        "removed_org",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("connection", sa.Column("source", sa.String(), server_default="vault", nullable=False))
    op.add_column("connection", sa.Column("needs_consent_at", sa.BigInteger(), nullable=True))
