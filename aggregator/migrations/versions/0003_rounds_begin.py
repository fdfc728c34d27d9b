"""A round begins and is aggregated: the words for it in columns and states; what they mean stays."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rename the column and the state."""
    op.alter_column("rounds", "opened_at", new_column_name="began_at")
    for table in ("rounds", "phase_times"):
        state = sa.table(table, sa.column("state", sa.String()))
        op.execute(state.update().where(state.c.state == "OPENING").values(state="AGGREGATING"))
