"""Version 2 of secure aggregation: members' messages have other contents, so an attempt of version 1 cannot go on.

Rounds in masking go back to TRAINING, where the sites still hold their updates. A round that has revealed shares must
not try again; it ends at the next look of a driver.
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ANSWERED_BY = timedelta(days=1)  # time to bring the sites to this version, too
PAST = datetime(2000, 1, 1)


def upgrade() -> None:
    """Add the tables and columns of version 2, and leave the attempts of version 1."""
    op.create_table(
        "dealt_shares",
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("member", sa.String(), nullable=False),
        sa.Column("dealer", sa.String(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False, comment="serialized EncryptedShare"),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_dealt_shares_round_id_rounds")),
        sa.ForeignKeyConstraint(["member"], ["sites.name"], name=op.f("fk_dealt_shares_member_sites")),
        sa.ForeignKeyConstraint(["dealer"], ["sites.name"], name=op.f("fk_dealt_shares_dealer_sites")),
        sa.PrimaryKeyConstraint("round_id", "member", "dealer", name=op.f("pk_dealt_shares")),
    )
    digest = "SHA-256 of the serialized SharesMessage; from SHARED on"
    op.add_column("seats", sa.Column("shares_digest", sa.LargeBinary(), nullable=True, comment=digest))
    complaints = "serialized ComplaintMessage, if it sent one"
    op.add_column("seats", sa.Column("complaints", sa.LargeBinary(), nullable=True, comment=complaints))
    signature = "Ed25519 over the certificate of the model that the round led to"
    op.add_column("seats", sa.Column("model_signature", sa.LargeBinary(), nullable=True, comment=signature))
    _leave_attempts_of_version_1()
    op.drop_column("seats", "shares")


def _leave_attempts_of_version_1() -> None:
    rounds = sa.table(
        "rounds",
        *(sa.column(name) for name in ("id", "state", "attempt", "roster_epoch", "reason")),
        sa.column("deadline", sa.DateTime()),
    )
    seats = sa.table(
        "seats",
        sa.column("round_id"),
        sa.column("state"),
        *(sa.column(name) for name in ("advertisement", "shares", "upload_claim", "confirmation", "reveal")),
    )
    before_reveal = sa.select(rounds.c.id).where(rounds.c.state.in_(("KEYS", "SHARES", "UPLOAD", "CONFIRM")))
    members = sa.and_(
        seats.c.round_id.in_(before_reveal),
        seats.c.state.in_(("JOINED", "KEYED", "SHARED", "UPLOADED", "CONFIRMED")),
    )
    op.execute(seats.update().where(members).values(state="READY"))
    nothing = {"advertisement": None, "shares": None, "upload_claim": None, "confirmation": None, "reveal": None}
    op.execute(seats.update().where(seats.c.round_id.in_(before_reveal)).values(nothing))
    op.execute(
        rounds.update()
        .where(rounds.c.id.in_(before_reveal))
        .values(
            state="TRAINING",
            attempt=rounds.c.attempt + 1,
            roster_epoch=0,
            deadline=datetime.now(UTC).replace(tzinfo=None) + ANSWERED_BY,
            reason="hemofed was updated while the attempt was on",
        )
    )
    revealed = rounds.c.state.in_(("REVEAL", "AGGREGATING"))
    op.execute(rounds.update().where(revealed).values(state="AGGREGATING", deadline=PAST))
