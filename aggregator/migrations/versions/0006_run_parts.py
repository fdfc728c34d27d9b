"""A run remembers to which part of the network each tensor belongs, so that an exported model says it again."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; models of older runs say nothing."""
    parts = sa.Column("parts", sa.String(), nullable=True, comment="a letter a tensor, from the initial model file")
    op.add_column("runs", parts)
