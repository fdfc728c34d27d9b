"""Alerts that hold are rows, so that people are told once of each."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "alerts",
        sa.Column("key", sa.String(), nullable=False, comment="<kind>:<subject>"),
        sa.Column("kind", sa.String(), nullable=False, comment="name of an AlertKind"),
        sa.Column(
            "subject", sa.String(), nullable=False, comment="site, run or round; empty where there is one of the kind"
        ),
        sa.Column(
            "sentence",
            sa.String(),
            nullable=False,
            comment="for people; no figure of a site, nothing about a patient",
        ),
        sa.Column("since", sa.DateTime(), nullable=False),
        sa.Column("told_at", sa.DateTime(), nullable=True, comment="null: no way has taken the message yet"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_alerts")),
    )
