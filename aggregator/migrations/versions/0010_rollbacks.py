"""A run goes back to an earlier model by the custodian's signature."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; no run of before has a rollback."""
    op.create_table(
        "rollbacks",
        sa.Column("run_id", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="1.. in each run"),
        sa.Column("after_round", sa.Integer(), nullable=False, comment="the next round begins from the model"),
        sa.Column("model_digest", sa.LargeBinary(), nullable=False, comment="of a model of the run"),
        sa.Column("signed", sa.LargeBinary(), nullable=False, comment="serialized SignedRollback"),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_rollbacks_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_rollbacks")),
    )
    if op.get_bind().dialect.name == "postgresql":
        comment = "null: the plan has no gate, and no rollback passed it"
        op.alter_column("models", "standing", comment=comment)
