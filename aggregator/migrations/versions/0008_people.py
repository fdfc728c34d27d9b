"""People have roles, and the audit is a chain."""

import sqlalchemy as sa
from alembic import op

from aggregator.store.audit_chain import chain_all

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Everybody so far could do everything, and goes on so. Rows so far join the chain in their order."""
    # The comments of columns that stay: administrators.password_hash is now
    # "argon2id in PHC form; scrypt$n$r$p$salt$hash of 0.1.0 until the next log-in",
    # audit.actor "person:<name>, unix:<name> of the machine, site:<name>, driver:<owner>, dashboard".
    role = sa.Column(
        "role", sa.String(length=16), nullable=False, server_default="ADMIN", comment="what the person may do"
    )
    op.add_column("administrators", role)
    digest = sa.Column(
        "digest", sa.LargeBinary(), nullable=True, comment="over the digest of the row before and this row's content"
    )
    op.add_column("audit", digest)
    chain_all(op.get_bind())
