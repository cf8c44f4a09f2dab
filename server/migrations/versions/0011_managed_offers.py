"""Connections that the operator offers to orgs: whose account, on what terms, and how much was used today."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "managed_offer",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("connector", sa.String(), nullable=False),
        sa.Column("base_url", sa.String(), nullable=False),
        sa.Column("private", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("scheme", sa.String(), nullable=False),
        sa.Column("credential_version", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("own_project", sa.Boolean(), nullable=False),
        sa.Column("calls_per_day", sa.BigInteger(), nullable=True),
        sa.Column("verified_at", sa.BigInteger(), nullable=True),
        sa.Column("offered_by", sa.String(), nullable=False),
        sa.Column("offered_at", sa.BigInteger(), nullable=False),
        sa.Column("set_aside_at", sa.BigInteger(), nullable=True),
        sa.Column("used_day", sa.BigInteger(), nullable=False),
        sa.Column("used_calls", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
        sa.UniqueConstraint("org", "name"),
    )
