"""Faults of sites, with the evidence. Comments of the columns that now also describe a refused sum."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


KINDS = ("SILENT", "BAD_SHARES", "BAD_DEALING", "SPOILED_SUM")


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "faults",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(*KINDS, name="faultkind", native_enum=False, length=16),
            nullable=False,
        ),
        sa.Column("detail", sa.String(), nullable=False, comment="one sentence for people"),
        sa.Column(
            "evidence",
            sa.LargeBinary(),
            nullable=True,
            comment="serialized BadShares or BadDealing, for kinds that have evidence",
        ),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_faults_round_id_rounds")),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name=op.f("fk_faults_site_sites")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_faults")),
        sa.UniqueConstraint("round_id", "attempt", "site", "kind", name=op.f("uq_faults_round_id")),
    )
    # SQLite keeps no comments.
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("rounds", "sum_blob", comment="digest of the sum, published or refused")
        op.alter_column("rounds", "members", comment="uploads in the sum; null without one")
    op.create_index(op.f("ix_faults_site"), "faults", ["site"])
