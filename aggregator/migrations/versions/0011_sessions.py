"""Sessions of the dashboard are rows, so that each can be seen and ended."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. Sessions of before were cookies only; their people log in again."""
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False, comment="SHA-256 of the cookie's token"),
        sa.Column("name", sa.String(), nullable=False, comment="of the person; no foreign key, people are removed"),
        sa.Column(
            "password_mark",
            sa.LargeBinary(),
            nullable=False,
            comment="of the password hash at the log-in; the session ends with that password",
        ),
        sa.Column("address", sa.String(), nullable=False, comment="that the log-in came from"),
        sa.Column("began_at", sa.DateTime(), nullable=False),
        sa.Column("ends_at", sa.DateTime(), nullable=False, comment="whatever the person does meanwhile"),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_name"), "sessions", ["name"])
