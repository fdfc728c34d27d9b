"""A site may leave."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the time at which a site left."""
    left_at = sa.Column("left_at", sa.DateTime(), nullable=True, comment="set: the site left for good, likewise")
    op.add_column("sites", left_at)
