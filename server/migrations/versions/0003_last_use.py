"""When each agent was last used, and from where."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("agent", sa.Column("used_at", sa.BigInteger(), nullable=True))
    op.add_column("agent", sa.Column("used_over", sa.String(), nullable=True))
    op.add_column("agent", sa.Column("used_from", sa.String(), nullable=True))
    op.add_column("agent", sa.Column("used_client", sa.String(), nullable=True))
