"""Reports of what calls took that could not be read, and how many tokens an org may use of the operator's account."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_day", _counter("unreported"))
    for limit in ("tokens_per_day", "tokens_per_month"):
        op.add_column("managed_offer", sa.Column(limit, sa.BigInteger(), nullable=True))
    for used in ("used_tokens", "used_month", "used_month_tokens"):
        op.add_column("managed_offer", _counter(used))


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
