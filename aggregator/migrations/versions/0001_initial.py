"""Every table as of version 0.1."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "administrators",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False, comment="scrypt$n$r$p$salt$hash, base64"),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_administrators"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False, comment="site:<name>, operator, driver:<owner>"),
        sa.Column(
            "subject",
            sa.String(),
            nullable=False,
            comment="run:<hex>, round:<hex>/<n>, seat:<hex>/<n>/<site>, site:<name>",
        ),
        sa.Column("before", sa.String(), nullable=True, comment="state left"),
        sa.Column("after", sa.String(), nullable=False, comment="state entered, or what happened"),
        sa.Column(
            "why", sa.String(), nullable=False, comment="one sentence or a closed code; never free text from a site"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"], unique=False)
    op.create_table(
        "invitations",
        sa.Column("site", sa.String(), nullable=False, comment="name the token is bound to; a new one replaces it"),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False, comment="SHA-256 of the token's 32-byte secret"),
        sa.Column("expires_at", sa.DateTime(), nullable=False, comment="24 h after it was made"),
        sa.Column(
            "used_by",
            sa.LargeBinary(),
            nullable=True,
            comment="SHA-256 of the first JoinRequest; only that request may use the token again",
        ),
        sa.Column("auto_approve", sa.Boolean(), nullable=False, comment="demo only: no telephone, approved on joining"),
        sa.PrimaryKeyConstraint("site", name="pk_invitations"),
    )
    op.create_table(
        "rosters",
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False, comment="serialized SignedRoster"),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("epoch", name="pk_rosters"),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.LargeBinary(), nullable=False, comment="16 bytes, from the plan"),
        sa.Column("name", sa.String(), nullable=False, comment="from the plan, for people"),
        sa.Column("signed_plan", sa.LargeBinary(), nullable=False, comment="serialized SignedPlan"),
        sa.Column("plan_digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the plan bytes"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(), nullable=True, comment="why it is paused or aborted"),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
        sa.UniqueConstraint("plan_digest", name="uq_runs_plan_digest"),
    )
    op.create_table(
        "sites",
        sa.Column("name", sa.String(), nullable=False, comment="federation.names.check_site_name; from the token"),
        sa.Column("csr_der", sa.LargeBinary(), nullable=False, comment="PKCS#10, until approved and after"),
        sa.Column("signing_key", sa.LargeBinary(), nullable=False, comment="Ed25519 public key, 32 bytes"),
        sa.Column("sealing_key", sa.LargeBinary(), nullable=False, comment="HPKE X-Wing public key"),
        sa.Column("fingerprint", sa.String(), nullable=False, comment="six words to compare by telephone"),
        sa.Column("joined_at", sa.DateTime(), nullable=False),
        sa.Column("approved_at", sa.DateTime(), nullable=True, comment="null: pending"),
        sa.Column("revoked_at", sa.DateTime(), nullable=True, comment="set: every call is refused"),
        sa.Column(
            "recoveries_left",
            sa.Integer(),
            nullable=False,
            comment="challenge recoveries still allowed after long outages",
        ),
        sa.PrimaryKeyConstraint("name", name="pk_sites"),
    )
    op.create_table(
        "certificates",
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False, comment="SHA-256 of the DER"),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("issued_at", sa.DateTime(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name="fk_certificates_site_sites"),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_certificates"),
    )
    op.create_index("ix_certificates_site", "certificates", ["site"], unique=False)
    op.create_table(
        "challenges",
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column(
            "expires_at", sa.DateTime(), nullable=False, comment="of the challenge; the row is deleted afterwards"
        ),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name="fk_challenges_site_sites"),
        sa.PrimaryKeyConstraint("nonce", name="pk_challenges"),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.LargeBinary(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False, comment="round that made it; 0 for the initial model"),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="federation.manifest.model_digest"),
        sa.Column("blob", sa.LargeBinary(), nullable=False, comment="SHA-256 of its safetensors file in blobs"),
        sa.Column("size_bytes", sa.Integer(), nullable=False, comment="of that file"),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_models_run_id_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("run_id", "round_number", name="uq_models_run_id"),
    )
    op.create_index("ix_models_digest", "models", ["digest"], unique=False)
    op.create_index("ix_models_run_id", "models", ["run_id"], unique=False)
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="1..; those past plan.rounds only evaluate"),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="1..; grows when masking starts over"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(), nullable=True, comment="why it was abandoned, or why the last attempt failed"),
        sa.Column("base_model", sa.LargeBinary(), nullable=False, comment="digest of the model it starts from"),
        sa.Column("roster_epoch", sa.Integer(), nullable=False, comment="frozen with the cohort; 0 while TRAINING"),
        sa.Column("opened_at", sa.DateTime(), nullable=False),
        sa.Column("phase_since", sa.DateTime(), nullable=False, comment="when it entered its state"),
        sa.Column("deadline", sa.DateTime(), nullable=False, comment="of its state; meaningless once over"),
        sa.Column("lease_owner", sa.String(), nullable=True, comment="the driver stepping it now"),
        sa.Column("lease_until", sa.DateTime(), nullable=True, comment="free again afterwards"),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.Column("sum_blob", sa.LargeBinary(), nullable=True, comment="digest of the opened sum; PUBLISHED only"),
        sa.Column("sum_size_bytes", sa.Integer(), nullable=True),
        sa.Column("members", sa.Integer(), nullable=True, comment="uploads in the sum; PUBLISHED only"),
        sa.Column("next_model", sa.LargeBinary(), nullable=True, comment="digest of the model it led to"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_rounds_run_id_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_rounds"),
        sa.UniqueConstraint("run_id", "number", name="uq_rounds_run_id"),
    )
    op.create_index("ix_rounds_due", "rounds", ["state", "lease_until"], unique=False)
    op.create_index("ix_rounds_run_id", "rounds", ["run_id"], unique=False)
    op.create_table(
        "site_reports",
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False, comment="when the Poll arrived: the age of all below"),
        sa.Column("state", sa.String(), nullable=False, comment="name of a SiteState"),
        sa.Column("reasons", sa.String(), nullable=False, comment="names of StateReasons, comma separated"),
        sa.Column("progress_percent", sa.Integer(), nullable=False, comment="0..100 of local training"),
        sa.Column(
            "model_digest", sa.LargeBinary(), nullable=False, comment="newest model the site verified; may be empty"
        ),
        sa.Column("roster_epoch", sa.Integer(), nullable=False, comment="the roster the site holds"),
        sa.Column("version", sa.String(), nullable=False, comment="hemofed version the site runs"),
        sa.Column("ledger_entries", sa.Integer(), nullable=False, comment="length of the site's egress ledger"),
        sa.Column("ledger_head", sa.LargeBinary(), nullable=False, comment="its head hash"),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name="fk_site_reports_site_sites"),
        sa.PrimaryKeyConstraint("site", name="pk_site_reports"),
    )
    op.create_table(
        "model_metrics",
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("model_digest", sa.LargeBinary(), nullable=False, comment="the model judged: the round's base model"),
        sa.Column("cohort_size", sa.Integer(), nullable=False, comment="sites in the sum"),
        sa.Column(
            "train_loss", sa.Double(), nullable=True, comment="mean local training loss of the round; null if untrained"
        ),
        sa.Column(
            "studies", sa.Integer(), nullable=True, comment="studies trained on, over the cohort; null if untrained"
        ),
        sa.Column(
            "report",
            sa.String(),
            nullable=False,
            comment="JSON: per label positives, negatives, AUC, log loss, ECE; weighted_log_loss; "
            "null where n is too small",
        ),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name="fk_model_metrics_round_id_rounds"),
        sa.PrimaryKeyConstraint("round_id", name="pk_model_metrics"),
    )
    op.create_table(
        "phase_times",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name="fk_phase_times_round_id_rounds"),
        sa.PrimaryKeyConstraint("id", name="pk_phase_times"),
    )
    op.create_index("ix_phase_times_round_id", "phase_times", ["round_id"], unique=False)
    op.create_table(
        "seats",
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("decline_reason", sa.String(), nullable=True, comment="name of a StateReason; DECLINED only"),
        sa.Column("advertisement", sa.LargeBinary(), nullable=True, comment="serialized Advertisement; from KEYED on"),
        sa.Column("shares", sa.LargeBinary(), nullable=True, comment="serialized SharesMessage; from SHARED on"),
        sa.Column("upload_claim", sa.LargeBinary(), nullable=True, comment="serialized UploadClaim; from UPLOADED on"),
        sa.Column("upload_digest", sa.LargeBinary(), nullable=True, comment="blob offered in UPLOAD, complete or not"),
        sa.Column(
            "confirmation", sa.LargeBinary(), nullable=True, comment="serialized Confirmation; from CONFIRMED on"
        ),
        sa.Column("reveal", sa.LargeBinary(), nullable=True, comment="serialized RevealMessage; REVEALED only"),
        sa.Column(
            "bytes_up", sa.Integer(), nullable=False, comment="message and blob bytes received from the site this round"
        ),
        sa.Column("bytes_down", sa.Integer(), nullable=False, comment="message and blob bytes sent to it this round"),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name="fk_seats_round_id_rounds"),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name="fk_seats_site_sites"),
        sa.PrimaryKeyConstraint("round_id", "site", name="pk_seats"),
    )


def downgrade() -> None:
    """Drop every table."""
    op.drop_table("seats")

    op.drop_table("phase_times")
    op.drop_table("model_metrics")
    op.drop_table("site_reports")

    op.drop_table("rounds")

    op.drop_table("models")
    op.drop_table("challenges")

    op.drop_table("certificates")
    op.drop_table("sites")
    op.drop_table("runs")
    op.drop_table("rosters")
    op.drop_table("invitations")

    op.drop_table("audit")
    op.drop_table("administrators")
