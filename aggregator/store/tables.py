"""The aggregator's state as tables. `docs/DATA_MODEL.md` explains them; `migrations` creates them.

Times are aware UTC. Digests are 32 raw bytes. Messages that are handed on to other sites are kept as serialized bytes,
so that the others check exactly the bytes that a site signed. Column comments are part of the schema: a change of one
needs a migration.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import DateTime, Enum, ForeignKey, Index, LargeBinary, MetaData, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from aggregator.states import FaultKind, ModelStanding, Role, RoundState, RunState, SeatState


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python, naive UTC in the database (SQLite keeps no zone). Refuses naive values."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to the database's form.

        Raises:
            ValueError: For a naive time.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("expected an aware datetime, got a naive one; pass datetime.now(UTC)")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Convert from the database's form."""
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """The common part of all tables: states as text, and names of constraints that PostgreSQL and SQLite agree on."""

    # States as text: PostgreSQL's own enum types cannot be shared by two tables or changed in a transaction.
    type_annotation_map: ClassVar[dict[Any, Any]] = {StrEnum: Enum(StrEnum, native_enum=False, length=16)}
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Invitation(Base):
    """A one-time token. Only its hash is stored."""

    __tablename__ = "invitations"

    site: Mapped[str] = mapped_column(primary_key=True, comment="name the token is bound to; a new one replaces it")
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary, comment="SHA-256 of the token's 32-byte secret")
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, comment="24 h after it was made")
    used_by: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="SHA-256 of the first JoinRequest; only that request may use the token again"
    )
    auto_approve: Mapped[bool] = mapped_column(comment="demo only: no telephone, approved on joining")
    replaces: Mapped[str | None] = mapped_column(
        comment="site that is revoked when the invited one is approved; its own name: it gets new keys"
    )


class Site(Base):
    """A hospital that has joined, approved or not."""

    __tablename__ = "sites"

    name: Mapped[str] = mapped_column(primary_key=True, comment="federation.names.check_site_name; from the token")
    csr_der: Mapped[bytes] = mapped_column(LargeBinary, comment="PKCS#10, until approved and after")
    signing_key: Mapped[bytes] = mapped_column(LargeBinary, comment="Ed25519 public key, 32 bytes")
    sealing_key: Mapped[bytes] = mapped_column(LargeBinary, comment="HPKE X-Wing public key")
    fingerprint: Mapped[str] = mapped_column(comment="six words to compare by telephone")
    joined_at: Mapped[datetime] = mapped_column(UtcDateTime)
    approved_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="null: pending")
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="set: every call is refused")
    left_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="set: the site left for good, likewise")
    recoveries_left: Mapped[int] = mapped_column(comment="challenge recoveries still allowed after long outages")
    suspended_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="set: no new round takes the site")


class Candidate(Base):
    """New keys of a site that has keys in force, until they are approved or withdrawn."""

    __tablename__ = "candidates"

    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    csr_der: Mapped[bytes] = mapped_column(LargeBinary, comment="PKCS#10")
    signing_key: Mapped[bytes] = mapped_column(LargeBinary, comment="Ed25519 public key, 32 bytes")
    sealing_key: Mapped[bytes] = mapped_column(LargeBinary, comment="HPKE X-Wing public key")
    fingerprint: Mapped[str] = mapped_column(comment="six words to compare by telephone")
    joined_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Certificate(Base):
    """Every certificate issued; a call is accepted only with one that stands here, unexpired, of an active site."""

    __tablename__ = "certificates"

    fingerprint: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True, comment="SHA-256 of the DER")
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), index=True)
    issued_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Challenge(Base):
    """A challenge that its site has answered; it is not answered again."""

    __tablename__ = "challenges"

    nonce: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, comment="of the challenge; the row is deleted afterwards")


class RosterEpoch(Base):
    """Every roster ever signed; the newest is in force."""

    __tablename__ = "rosters"

    # Counted by `sites.enrolment` and not by the database: two processes that make the next roster must collide.
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    signed: Mapped[bytes] = mapped_column(LargeBinary, comment="serialized SignedRoster")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SiteReport(Base):
    """A site's report in its last Poll; one row a site, overwritten."""

    __tablename__ = "site_reports"

    # State and reasons are text and not enums: a rollback must be able to read rows of a newer version.
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime, comment="when the Poll arrived: the age of all below")
    state: Mapped[str] = mapped_column(comment="name of a SiteState")
    reasons: Mapped[str] = mapped_column(comment="names of StateReasons, comma separated")
    progress_percent: Mapped[int] = mapped_column(comment="0..100 of local training")
    model_digest: Mapped[bytes] = mapped_column(LargeBinary, comment="newest model the site verified; may be empty")
    roster_epoch: Mapped[int] = mapped_column(comment="the roster the site holds")
    version: Mapped[str] = mapped_column(comment="hemofed version the site runs")
    ledger_entries: Mapped[int] = mapped_column(comment="length of the site's egress ledger")
    ledger_head: Mapped[bytes] = mapped_column(LargeBinary, comment="its head hash")


class Run(Base):
    """A signed plan being carried out."""

    __tablename__ = "runs"

    run_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True, comment="16 bytes, from the plan")
    name: Mapped[str] = mapped_column(comment="from the plan, for people")
    signed_plan: Mapped[bytes] = mapped_column(LargeBinary, comment="serialized SignedPlan")
    plan_digest: Mapped[bytes] = mapped_column(LargeBinary, comment="SHA-256 of the plan bytes", unique=True)
    state: Mapped[RunState] = mapped_column()
    reason: Mapped[str | None] = mapped_column(comment="why it is paused or aborted")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    parts: Mapped[str | None] = mapped_column(comment="a letter a tensor, from the initial model file")


class RollbackRecord(Base):
    """A rollback that the custodian has signed, and from when on a run goes on from an earlier model."""

    __tablename__ = "rollbacks"

    run_id: Mapped[bytes] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, comment="1.. in each run")
    after_round: Mapped[int] = mapped_column(comment="the next round begins from the model")
    model_digest: Mapped[bytes] = mapped_column(LargeBinary, comment="of a model of the run")
    signed: Mapped[bytes] = mapped_column(LargeBinary, comment="serialized SignedRollback")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Round(Base):
    """One round. A driver leases the rows that are not over and steps each."""

    __tablename__ = "rounds"
    __table_args__ = (
        UniqueConstraint("run_id", "number"),  # two processes cannot both begin the next round
        Index("ix_rounds_due", "state", "lease_until"),  # for the drivers, which look twice a second
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[bytes] = mapped_column(ForeignKey("runs.run_id"), index=True)
    number: Mapped[int] = mapped_column(comment="1..; those past plan.rounds only evaluate")
    attempt: Mapped[int] = mapped_column(comment="1..; grows when masking starts over")
    state: Mapped[RoundState] = mapped_column()
    reason: Mapped[str | None] = mapped_column(comment="why it was abandoned, or why the last attempt failed")
    base_model: Mapped[bytes] = mapped_column(LargeBinary, comment="digest of the model it starts from")
    roster_epoch: Mapped[int] = mapped_column(comment="frozen with the cohort; 0 while TRAINING")
    began_at: Mapped[datetime] = mapped_column(UtcDateTime)
    phase_since: Mapped[datetime] = mapped_column(UtcDateTime, comment="when it entered its state")
    deadline: Mapped[datetime] = mapped_column(UtcDateTime, comment="of its state; meaningless once over")
    # A lease and not a lock: it ends by itself when its driver is killed.
    lease_owner: Mapped[str | None] = mapped_column(comment="the driver stepping it now")
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="free again afterwards")
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    sum_blob: Mapped[bytes | None] = mapped_column(LargeBinary, comment="digest of the sum, published or refused")
    sum_size_bytes: Mapped[int | None] = mapped_column()
    members: Mapped[int | None] = mapped_column(comment="uploads in the sum; null without one")
    next_model: Mapped[bytes | None] = mapped_column(LargeBinary, comment="digest of the model it led to")
    predecessor: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="digest of the model that the base is a candidate against; null: it is none"
    )


class PhaseTime(Base):
    """The time that a round spent in each state, for the dashboard and the benchmark."""

    __tablename__ = "phase_times"

    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), index=True)
    attempt: Mapped[int] = mapped_column()
    state: Mapped[RoundState] = mapped_column()
    seconds: Mapped[float] = mapped_column()


class Seat(Base):
    """One site in one round. Payloads belong to the current attempt and are cleared when a new one begins."""

    __tablename__ = "seats"

    # Both columns are the key: a site cannot have two seats in one round, and so cannot count twice.
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    state: Mapped[SeatState] = mapped_column()
    decline_reason: Mapped[str | None] = mapped_column(comment="name of a StateReason; DECLINED only")
    # Kept as they came: a member signs its bytes, and the others check the signature.
    advertisement: Mapped[bytes | None] = mapped_column(LargeBinary, comment="serialized Advertisement; from KEYED on")
    shares_digest: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="SHA-256 of the serialized SharesMessage; from SHARED on"
    )
    complaints: Mapped[bytes | None] = mapped_column(LargeBinary, comment="serialized ComplaintMessage, if it sent one")
    upload_claim: Mapped[bytes | None] = mapped_column(LargeBinary, comment="serialized UploadClaim; from UPLOADED on")
    # Stays when an attempt fails, until housekeeping has deleted the blob.
    upload_digest: Mapped[bytes | None] = mapped_column(LargeBinary, comment="blob offered in UPLOAD, complete or not")
    confirmation: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="serialized Confirmation; from CONFIRMED on"
    )
    reveal: Mapped[bytes | None] = mapped_column(LargeBinary, comment="serialized RevealMessage; REVEALED only")
    model_signature: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="Ed25519 over the certificate of the model that the round led to"
    )
    bytes_up: Mapped[int] = mapped_column(default=0, comment="message and blob bytes received from the site this round")
    bytes_down: Mapped[int] = mapped_column(default=0, comment="message and blob bytes sent to it this round")


class DealtShare(Base):
    """The shares of one dealer for one member, as the dealer signed them. Of the current attempt, like a seat's."""

    __tablename__ = "dealt_shares"

    # In the order of reading: each member asks for its own, and a recovery for those of the members that vanished.
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    member: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    dealer: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    message: Mapped[bytes] = mapped_column(LargeBinary, comment="serialized EncryptedShare")


class Fault(Base):
    """A site held up a round: the reason why it sits out later ones, with the evidence."""

    __tablename__ = "faults"
    # A step that is carried out twice holds one fault against a site, not two.
    __table_args__ = (UniqueConstraint("round_id", "attempt", "site", "kind"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"))
    attempt: Mapped[int] = mapped_column()
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), index=True)
    kind: Mapped[FaultKind] = mapped_column()
    detail: Mapped[str] = mapped_column(comment="one sentence for people")
    evidence: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="serialized BadShares or BadDealing, for kinds that have evidence"
    )
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class ModelVersion(Base):
    """A model of a run: the initial one, and one a published round."""

    __tablename__ = "models"
    # A round that is aggregated twice cannot add a second model.
    __table_args__ = (UniqueConstraint("run_id", "round_number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[bytes] = mapped_column(ForeignKey("runs.run_id"), index=True)
    round_number: Mapped[int] = mapped_column(comment="round that made it; 0 for the initial model")
    # Two digests: this one is over the tensors and is what sites compare, the blob's is over the bytes of the file.
    digest: Mapped[bytes] = mapped_column(LargeBinary, comment="federation.manifest.model_digest", index=True)
    blob: Mapped[bytes] = mapped_column(LargeBinary, comment="SHA-256 of its safetensors file in blobs")
    size_bytes: Mapped[int] = mapped_column(comment="of that file")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    standing: Mapped[ModelStanding | None] = mapped_column(
        comment="null: the plan has no gate, and no rollback passed it"
    )


class ModelMetrics(Base):
    """Figures of a round's base model over the whole cohort, from the header words of the decoded sum."""

    __tablename__ = "model_metrics"

    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    model_digest: Mapped[bytes] = mapped_column(LargeBinary, comment="the model judged: the round's base model")
    cohort_size: Mapped[int] = mapped_column(comment="sites in the sum")
    train_loss: Mapped[float | None] = mapped_column(comment="mean local training loss of the round; null if untrained")
    studies: Mapped[int | None] = mapped_column(comment="studies trained on, over the cohort; null if untrained")
    report: Mapped[str] = mapped_column(
        comment="JSON: per label positives, negatives, AUC, log loss, ECE; weighted_log_loss; null where n is too small"
    )


class Audit(Base):
    """Append-only: who changed what, from what, to what, why. One row a transition, in its transaction."""

    __tablename__ = "audit"
    # No foreign keys: the trail also names invitations and administrators that are deleted.

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    actor: Mapped[str] = mapped_column(
        comment="person:<name>, unix:<name> of the machine, site:<name>, driver:<owner>, dashboard"
    )
    subject: Mapped[str] = mapped_column(comment="run:<hex>, round:<hex>/<n>, seat:<hex>/<n>/<site>, site:<name>")
    before: Mapped[str | None] = mapped_column(comment="state left")
    after: Mapped[str] = mapped_column(comment="state entered, or what happened")
    why: Mapped[str] = mapped_column(comment="one sentence or a closed code; never free text from a site")
    digest: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="over the digest of the row before and this row's content"
    )


class Administrator(Base):
    """A person who may log in to the dashboard, and act on the command line."""

    __tablename__ = "administrators"

    name: Mapped[str] = mapped_column(primary_key=True)
    password_hash: Mapped[str] = mapped_column(
        comment="argon2id in PHC form; scrypt$n$r$p$salt$hash of 0.1.0 until the next log-in"
    )
    role: Mapped[Role] = mapped_column(server_default=Role.ADMIN.name, comment="what the person may do")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DashboardSession(Base):
    """A person's session at the dashboard, from the log-in until it ends."""

    __tablename__ = "sessions"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True, comment="SHA-256 of the cookie's token")
    name: Mapped[str] = mapped_column(index=True, comment="of the person; no foreign key, people are removed")
    password_mark: Mapped[bytes] = mapped_column(
        LargeBinary, comment="of the password hash at the log-in; the session ends with that password"
    )
    address: Mapped[str] = mapped_column(comment="that the log-in came from")
    began_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ends_at: Mapped[datetime] = mapped_column(UtcDateTime, comment="whatever the person does meanwhile")


class RaisedAlert(Base):
    """A condition that needs a person and holds now."""

    __tablename__ = "alerts"

    key: Mapped[str] = mapped_column(primary_key=True, comment="<kind>:<subject>")
    # Text and not an enum: a rollback must be able to read rows of a newer version.
    kind: Mapped[str] = mapped_column(comment="name of an AlertKind")
    subject: Mapped[str] = mapped_column(comment="site, run or round; empty where there is one of the kind")
    sentence: Mapped[str] = mapped_column(comment="for people; no figure of a site, nothing about a patient")
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    told_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="null: no way has taken the message yet")
