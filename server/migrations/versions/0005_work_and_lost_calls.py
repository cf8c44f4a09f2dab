"""Approved work, calls that were lost on their way and what people say became of them; old texts can be emptied."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("approval") as approval:
        approval.alter_column("sealed_call", existing_type=sa.LargeBinary(), nullable=True)
        approval.alter_column("sealed_prompt", existing_type=sa.LargeBinary(), nullable=True)
        approval.add_column(sa.Column("resolution", sa.String(), nullable=True))
        approval.add_column(sa.Column("resent_at", sa.BigInteger(), nullable=True))
        approval.add_column(sa.Column("work", sa.String(), nullable=True))
    with op.batch_alter_table("call_grant") as grant:
        grant.alter_column("sealed_bounds", existing_type=sa.LargeBinary(), nullable=True)
    op.create_index("approval_opened", "approval", ["org", "created_at"])
    op.create_table(
        "work",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("approval", sa.String(), nullable=False),
        sa.Column("runner", sa.String(), nullable=False),
        sa.Column("sealed_bounds", sa.LargeBinary(), nullable=True),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("requester", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_table(
        "work_tool",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("work", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("credential_version", sa.Integer(), nullable=False),
        sa.Column("definition", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("org", "work", "tool"),
    )
    op.create_index("work_by_tool", "work_tool", ["org", "tool"])
    op.create_table(
        "lost_call",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("agent", sa.String(), nullable=False),
        sa.Column("agent_name", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("effect", sa.String(), nullable=False),
        sa.Column("call_grant", sa.String(), nullable=True),
        sa.Column("call_hash", sa.String(), nullable=True),
        sa.Column("under_way", sa.Boolean(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("resolution", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_index("lost_call_by_hash", "lost_call", ["org", "agent", "call_hash"])
    op.create_table(
        "log_mark",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org"),
    )
