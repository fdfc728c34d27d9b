"""Models of a run with a gate are candidates until a round has judged them."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; plans of older runs have no gate."""
    standing = sa.Column("standing", sa.String(length=16), nullable=True, comment="null: the plan has no gate")
    op.add_column("models", standing)
    predecessor = sa.Column(
        "predecessor",
        sa.LargeBinary(),
        nullable=True,
        comment="digest of the model that the base is a candidate against; null: it is none",
    )
    op.add_column("rounds", predecessor)
