"""People have roles, and the audit is a chain."""

import sqlalchemy as sa
from alembic import op

from aggregator.store.audit_chain import chain_all

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all people of before administrators, as they were, and chain the rows of before in their order."""
    role = sa.Column(
        "role", sa.String(length=16), nullable=False, server_default="ADMIN", comment="what the person may do"
    )
    op.add_column("administrators", role)
    digest = sa.Column(
        "digest", sa.LargeBinary(), nullable=True, comment="over the digest of the row before and this row's content"
    )
    op.add_column("audit", digest)
    chain_all(op.get_bind())
    if op.get_bind().dialect.name == "postgresql":
        comment = "argon2id in PHC form; scrypt$n$r$p$salt$hash of 0.1.0 until the next log-in"
        op.alter_column("administrators", "password_hash", comment=comment)
        comment = "person:<name>, unix:<name> of the machine, site:<name>, driver:<owner>, dashboard"
        op.alter_column("audit", "actor", comment=comment)
