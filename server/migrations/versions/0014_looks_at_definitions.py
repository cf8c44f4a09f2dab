"""When each wrapped server was last asked what it says of its tools, without a call."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "definition_look",
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("looked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "connection"),
    )
