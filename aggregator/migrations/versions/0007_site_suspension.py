"""A site may be suspended, get new keys, or come back under another name."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table of keys that wait for approval."""
    suspended_at = sa.Column("suspended_at", sa.DateTime(), nullable=True, comment="set: no new round takes the site")
    op.add_column("sites", suspended_at)
    replaces = sa.Column(
        "replaces",
        sa.String(),
        nullable=True,
        comment="site that is revoked when the invited one is approved; its own name: it gets new keys",
    )
    op.add_column("invitations", replaces)
    op.create_table(
        "candidates",
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("csr_der", sa.LargeBinary(), nullable=False, comment="PKCS#10"),
        sa.Column("signing_key", sa.LargeBinary(), nullable=False, comment="Ed25519 public key, 32 bytes"),
        sa.Column("sealing_key", sa.LargeBinary(), nullable=False, comment="HPKE X-Wing public key"),
        sa.Column("fingerprint", sa.String(), nullable=False, comment="six words to compare by telephone"),
        sa.Column("joined_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name="fk_candidates_site_sites"),
        sa.PrimaryKeyConstraint("site", name="pk_candidates"),
    )
