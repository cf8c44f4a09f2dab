"""Usage, budgets and pace: what calls came to, how much they may, and how fast a connection takes them."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0007"
branch_labels = None
depends_on = None

NUMBERS = (
    *("calls", "approved", "refused", "held", "succeeded", "failed", "milliseconds", "bytes"),
    *("reported", "tokens_in", "tokens_out", "tokens_cached"),
)


def upgrade() -> None:
    op.create_table(
        "usage_day",
        *_texts("org", "day", "line", "agent_id", "agent", "member_id", "member", "connection", "account"),
        *_texts("ownership", "tool"),
        *(_counter(name) for name in NUMBERS),
        sa.PrimaryKeyConstraint("org", "day", "line"),
    )
    op.create_table(
        "usage_cost",
        *_texts("org", "day", "line", "unit"),
        _counter("billionths"),
        sa.PrimaryKeyConstraint("org", "day", "line", "unit"),
    )
    op.create_table(
        "usage_quota",
        *_texts("org", "connection", "account", "name"),
        sa.Column("remaining", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "connection", "account", "name"),
    )
    op.create_table(
        "budget",
        *_texts("org", "id", "agent", "connection", "measure", "unit", "per"),
        sa.Column("most", sa.BigInteger(), nullable=False),
        sa.Column("warn", sa.Integer(), nullable=False),
        sa.Column("window_at", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("told", sa.Integer(), nullable=False),
        *_texts("created_by"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_table(
        "connection_limit",
        *_texts("org", "connection"),
        sa.Column("concurrent", sa.Integer(), nullable=True),
        sa.Column("per_minute", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("org", "connection"),
    )
    op.create_table(
        "connection_pace",
        *_texts("org", "connection"),
        sa.Column("window_at", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "connection"),
    )


def _texts(*names: str) -> tuple[sa.Column[str], ...]:
    return tuple(sa.Column(name, sa.String(), nullable=False) for name in names)


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
